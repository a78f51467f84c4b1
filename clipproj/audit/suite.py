"""All audits of one edit, one after the other, each result kept as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipproj.audit.cache import Cache
from clipproj.audit.evaluate import Comparison, as_dict
from clipproj.audit.registry import AuditInput, audits
from clipproj.audit.stats import plain
from clipproj.refusal import Refusal, refusal

Words = Callable[[str, Any], Any]


@dataclass(frozen=True)
class AuditResult:
    """One audit's numbers, or why it was not made.

    Args:
        key: of `registry.audits`.
        numbers: plain JSON; None where it was not made.
        words: what `words` of `audit` made of the result, as JSON.
        refused: why it was not made, or "".
    """

    key: str
    numbers: dict[str, Any] | None
    words: Any = None
    refused: str = ""


def audit(
    given: AuditInput,
    only: Sequence[str] | None = None,
    *,
    words: Words | None = None,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[AuditResult]:
    """Run audits, in the order of `registry.audits`.

    An audit that refuses this input (no model at hand, a tower without maps, no image of the
    class, a package that is not installed) is not left out silently, nor does it end the others:
    its result says why. Any other error is a bug, and ends the run.

    Args:
        only: keys of audits; None: all.
        words: from a key and what that audit gave to what else is kept of it, as JSON:
            `report.sections.kept` makes pages.
        cache: results of earlier runs, which are not computed again; new ones are added.
        progress: called with (audits done, audits in all), the first time before any.

    Raises Refusal for an unknown key or a forgotten name that is no class.

    Example:
        >>> given = AuditInput(samples, projector, ("cat",))
        >>> [one.numbers for one in audit(given, ["accuracy", "leak"])]
    """
    check_keys(only)
    wanted = [key for key in audits() if only is None or key in only]
    given = replace(given, forget=given.samples.classes.select(given.forget).names)
    cache = Cache(None) if cache is None else cache
    of_input = given.key()
    results = []
    if progress is not None:
        progress(0, len(wanted))
    for key in wanted:
        entry = json.dumps([of_input, key, words is not None])
        if entry not in cache:
            cache.put(entry, _made(given, key, words))
        results.append(AuditResult(key, **cache[entry]))
        if progress is not None:
            progress(len(results), len(wanted))
    return results


def check_keys(only: Sequence[str] | None) -> None:
    """Refusal for a key that is of no audit."""
    for key in only or ():
        if key not in audits():
            raise Refusal("audit", "only", f"must be some of {', '.join(audits())}, got {key!r}")


def plain_numbers(result: Any) -> dict[str, Any]:
    """What an audit gave, as JSON."""
    return as_dict(result) if isinstance(result, Comparison) else plain(result)


def _made(given: AuditInput, key: str, words: Words | None) -> dict[str, Any]:
    """The fields of an `AuditResult` but its key."""
    try:
        result = audits()[key](given)
        told = None if words is None else words(key, result)
    except (Refusal, ImportError) as error:
        return {"numbers": None, "words": None, "refused": refusal(error)}
    return {"numbers": plain_numbers(result), "words": told, "refused": ""}
