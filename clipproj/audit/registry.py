"""The audits that there are: each module of this folder with an `AUDIT` declares one."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor, nn

import clipproj.audit
from clipproj import files
from clipproj.audit.cache import code_digest
from clipproj.audit.samples import Samples
from clipproj.projector import Projector
from clipproj.refusal import Refusal

Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, eq=False)
class AuditInput:
    """An edit and what it is audited on.

    Args:
        samples: images before the edit.
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

    @property
    def edit(self) -> tuple[Samples, Projector, tuple[str, ...]]:
        """What most audits begin with: samples, edit, forget."""
        return self.samples, self.projector, self.forget

    def key(self) -> str:
        """Hex digest of all that results depend on."""
        s = self.samples
        told = [
            code_digest(), self.projector.content_hash(), s.names, self.forget, self.seed, s.scale,
            dict(self.synonyms or {}), s.classes.templates, [str(p) for p in s.paths or ()],
            self.model is not None, s.domains, self.truncate,
        ]  # fmt: skip
        return files.sha256(s.features, s.labels, s.texts, s.classes.tensor, text=json.dumps(told))


@dataclass(frozen=True)
class Audit:
    """One audit.

    Args:
        key: what it is called on the command line and in files; `report/sections/KEY.py` has what
            it says.
        title: the heading of its page.
        place: pages come in this order.
        run: from the input to a result.
        needs: what of the input or of its samples ("model", "embed", "paths", "domains") it cannot
            do without, to what is said where that is None.
    """

    key: str
    title: str
    place: int
    run: Callable[[AuditInput], Any]
    needs: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, given: AuditInput) -> Any:
        """The result. Refusal for an input without what it needs, and as the audit's function."""
        for name, why in self.needs.items():
            if getattr(given, name, None) is None and getattr(given.samples, name, None) is None:
                raise Refusal(self.key, None, why)
        return self.run(given)


@cache
def audits() -> Mapping[str, Audit]:
    """Every audit by its key, in the order of their pages."""
    folder = pkgutil.iter_modules(clipproj.audit.__path__)
    modules = [importlib.import_module(f"clipproj.audit.{module.name}") for module in folder]
    found = [module.AUDIT for module in modules if hasattr(module, "AUDIT")]
    return {audit.key: audit for audit in sorted(found, key=lambda audit: audit.place)}
