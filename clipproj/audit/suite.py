"""All audits of one edit, one after the other, each result kept as soon as it is there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from clipproj import files
from clipproj.audit.cache import Journal, code_digest
from clipproj.audit.calibration import calibration
from clipproj.audit.domains import domains
from clipproj.audit.drift import drift
from clipproj.audit.evaluate import compare
from clipproj.audit.leak import leak
from clipproj.audit.paraphrase import Embed, paraphrase
from clipproj.audit.recover import recover
from clipproj.audit.relearn import relearn
from clipproj.audit.relevance import relevance
from clipproj.audit.retrieval import retrieval
from clipproj.audit.samples import Samples
from clipproj.audit.stats import plain
from clipproj.audit.tagging import tagging
from clipproj.audit.tune import tune
from clipproj.projector import Projector
from clipproj.refusal import Refusal
from clipproj.report import page as pages
from clipproj.report.page import Page


@dataclass(frozen=True, eq=False)
class Subject:
    """An edit and what it is audited on.

    Args:
        samples: pictures before the edit.
        projector: the edit.
        forget: its classes, of `samples`.
        model, preprocess, embed: the unedited model, for audits that need more than features; None
            where there are only these.
        truncate: whether `embed` cuts prompts that the model would not read to their end.
        synonyms: other words for forgotten names, for `paraphrase`.
        seed: of everything random.
    """

    samples: Samples
    projector: Projector
    forget: tuple[str, ...]
    model: nn.Module | None = None
    preprocess: Callable[..., Any] | None = None
    embed: Embed | None = None
    truncate: bool = False
    synonyms: Mapping[str, Sequence[str]] | None = None
    seed: int = 0

    def key(self) -> str:
        """Hex digest of all that results depend on."""
        s = self.samples
        told = [
            code_digest(), self.projector.content_hash(), s.names, self.forget, self.seed, s.scale,
            dict(self.synonyms or {}), s.classes.templates, [str(p) for p in s.paths or ()],
            self.model is not None, s.domains, self.truncate,
        ]  # fmt: skip
        return files.sha256(s.features, s.labels, s.texts, s.classes.tensor, text=json.dumps(told))


def _accuracy(subject: Subject) -> Any:
    samples = subject.samples
    return compare(samples, samples.edited(subject.projector), subject.forget)


def _tune(subject: Subject) -> Any:
    return tune(subject.projector, subject.samples, subject.forget)


def _paraphrase(subject: Subject) -> Any:
    if subject.embed is None:
        raise Refusal("paraphrase", None, "needs the model, features alone embed no prompt")
    return paraphrase(
        subject.samples, subject.projector, subject.forget, subject.embed,
        synonyms=subject.synonyms,
    )  # fmt: skip


def _relevance(subject: Subject) -> Any:
    if subject.model is None or subject.samples.paths is None:
        raise Refusal(
            "relevance", None, "needs the model and the pictures, features alone show no map"
        )
    return relevance(
        subject.samples, subject.projector, subject.forget, subject.model, subject.preprocess
    )


def _domains(subject: Subject) -> Any:
    if subject.samples.domains is None:
        raise Refusal("domains", None, "needs to be told which picture is of which domain")
    return domains(subject.samples, subject.projector, subject.forget)


def _seeded(audit: Callable[..., Any]) -> Callable[[Subject], Any]:
    return lambda s: audit(s.samples, s.projector, s.forget, seed=s.seed)


def _plainly(audit: Callable[..., Any]) -> Callable[[Subject], Any]:
    return lambda s: audit(s.samples, s.projector, s.forget)


AUDITS: dict[str, Callable[[Subject], Any]] = {
    "accuracy": _accuracy,
    "tune": _tune,
    "tagging": _plainly(tagging),
    "retrieval": _plainly(retrieval),
    "paraphrase": _paraphrase,
    "recover": _seeded(recover),
    "relearn": _seeded(relearn),
    "leak": _plainly(leak),
    "relevance": _relevance,
    "domains": _domains,
    "drift": _plainly(drift),
    "calibration": _plainly(calibration),
}


@dataclass(frozen=True)
class Finding:
    """One audit's numbers (plain JSON) and page, or why it was not made."""

    key: str
    numbers: dict[str, Any] | None
    page: Page
    skipped: str = ""


def audit(
    subject: Subject,
    only: Sequence[str] | None = None,
    *,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Run audits, in the order of `AUDITS`.

    An audit that refuses this subject (no model at hand, a tower without maps, no picture of the
    class) is not left out silently, nor does it end the others: its finding says why.

    Args:
        only: keys of `AUDITS`; None: all.
        journal: findings of earlier runs, which are not computed again; new ones are added.
        progress: called with (audits done, audits in all), the first time before any.

    Raises ValueError for an unknown key or a forgotten name that is no class.
    """
    check_keys(only)
    wanted = tuple(AUDITS) if only is None else tuple(only)
    subject = replace(subject, forget=subject.samples.classes.select(subject.forget).names)
    journal = Journal(None) if journal is None else journal
    of_subject = subject.key()
    findings = []
    if progress is not None:
        progress(0, len(wanted))
    for key in AUDITS:
        if key not in wanted:
            continue
        entry = json.dumps([of_subject, key])
        if entry not in journal:
            journal.put(entry, _made(subject, key))
        found = journal[entry]
        findings.append(
            Finding(key, found["numbers"], pages.from_json(found["page"]), found["skipped"])
        )
        if progress is not None:
            progress(len(findings), len(wanted))
    return findings


def check_keys(only: Sequence[str] | None) -> None:
    """ValueError for a key that is none of `AUDITS`."""
    for key in only or ():
        if key not in AUDITS:
            raise Refusal("audit", "only", f"must be some of {', '.join(AUDITS)}, got {key!r}")


_REFUSAL = re.compile(r"\w+: |.*install clipproj\[")  # the forms of what clipproj refuses


def _made(subject: Subject, key: str) -> dict[str, Any]:
    try:
        result = AUDITS[key](subject)
    except (ValueError, ImportError) as error:
        if not _REFUSAL.match(str(error)):  # a bug, which must not look like a refusal
            raise
        lead = f"Not made: {error}."
        page = Page(key, key.capitalize(), lead)
        return {"numbers": None, "page": pages.as_json(page), "skipped": str(error)}
    numbers = plain_numbers(result)
    return {"numbers": numbers, "page": pages.as_json(result.page()), "skipped": ""}


def plain_numbers(result: Any) -> dict[str, Any]:
    """What an audit gave, as JSON."""
    from clipproj.audit.evaluate import Comparison, as_dict

    return as_dict(result) if isinstance(result, Comparison) else plain(result)
