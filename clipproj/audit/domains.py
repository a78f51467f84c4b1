"""Domain by domain: whether a class went where it was to go, and stayed where it was to stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipproj.audit.registry import Audit
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.stats import Measured, share
from clipproj.refusal import Refusal


@dataclass(frozen=True)
class Domain:
    """Zero-shot accuracy in one domain; NaN where it has no such image.

    Args:
        forget_before, forget_after: of its images of forgotten classes.
        keep_before, keep_after: of its other images.
    """

    name: str
    forget_before: Measured
    forget_after: Measured
    keep_before: Measured
    keep_after: Measured


@dataclass(frozen=True)
class DomainsResult:
    """The matrix of classes and domains that selective forgetting (arXiv 2512.14113) is judged by.

    Args:
        forget: the forgotten classes.
        domains: one each, sorted by name.
    """

    forget: tuple[str, ...]
    domains: tuple[Domain, ...]


def domains(samples: Samples, edit: RowEdit, forget: Sequence[str]) -> DomainsResult:
    """Accuracy on forgotten and other classes before and after, in each domain of the images.

    Args:
        samples: before the edit, with `domains`.
        edit: of either tower.
        forget: names of classes.

    Raises ValueError for samples without domains, or a name that is no class.
    """
    if samples.domains is None:
        raise Refusal("domains", "samples", "must have domains, got None")
    forgotten, before = samples.of(forget), samples.correct()
    after = samples.edited(edit).correct()
    of = {name: i for i, name in enumerate(sorted(set(samples.domains)))}
    number = torch.tensor([of[name] for name in samples.domains], device="cpu")

    def shares(mask: Tensor) -> tuple[Measured, Measured]:
        return share(before[mask]), share(after[mask])

    found = tuple(
        Domain(name, *shares((number == i) & forgotten), *shares((number == i) & ~forgotten))
        for name, i in of.items()
    )
    return DomainsResult(tuple(forget), found)


AUDIT = Audit(
    key="domains",
    title="Domain by domain",
    place=100,
    run=lambda given: domains(*given.edit),
    needs={"domains": "needs to be told which image is of which domain"},
)
