"""A class in domains: rows for each cell (a class in a domain), and the algebra on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipproj.methods.contrast import less_keep, ridge_less, row_basis
from clipproj.methods.inputs import unit_rows
from clipproj.models.text import Embeddings
from clipproj.models.words import strings
from clipproj.refusal import Refusal

_GAINS = (0.2, 1.0)  # few images may measure nonsense; images show no more than texts do
_SAME_DOMAIN = 1e-6  # of the contrast of the class
_RIDGE = 0.3  # of the writer, against kept texts of length 1


@dataclass(frozen=True, eq=False)
class Cells:
    """Rows of classes in domains ("cat" as "sketch"): of texts, or of images.

    Args:
        rows: [p, d] floating point; kept as float32 rows of length 1.
        names: the class of each row.
        domains: the domain of each row. A pair may come more than once.

    Raises:
        TypeError, ValueError: for another dtype or shape, rows that are zero or not finite, labels
            that are blank or not one a row.
    """

    rows: Tensor
    names: tuple[str, ...]
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        rows = unit_rows("Cells", "rows", self.rows)
        for label in ("names", "domains"):
            values = strings("Cells", label, getattr(self, label))
            if len(values) != len(rows):
                raise Refusal("Cells", label, f"must be {len(rows)}, one a row, got {len(values)}")
            object.__setattr__(self, label, values)
        object.__setattr__(self, "rows", rows.float())

    def __len__(self) -> int:
        return len(self.names)

    def where(self, names: Sequence[str] | None, domains: Sequence[str] | None) -> Tensor:
        """[p] bool: rows of any of these classes in any of these domains; None for all."""
        chosen = [
            (names is None or name in names) and (domains is None or domain in domains)
            for name, domain in zip(self.names, self.domains, strict=True)
        ]
        return torch.tensor(chosen, device=self.rows.device)


class Space:
    """Texts and cells of one task in float64, and what both forms of `selective` make of them."""

    def __init__(
        self, classes: Embeddings, cells: Cells, name: str,
        domains: tuple[str, ...], keep_domains: tuple[str, ...],
    ) -> None:  # fmt: skip
        self.name, self.domains, self.names = name, domains, classes.names
        self.served = unit_rows("selective", "classes", classes)
        device = self.served.device
        self.row = classes.names.index(name)
        others = [i for i in range(len(classes)) if i != self.row]
        self.others = torch.tensor(others, device=device)
        rows = cells.rows.double().to(device)
        places: dict[tuple[str, str], list[int]] = {}
        for i, pair in enumerate(zip(cells.names, cells.domains, strict=True)):
            places.setdefault(pair, []).append(i)
        grid = []  # [domains, classes, d]: forgotten domains first
        for domain in (*domains, *keep_domains):
            for one in classes.names:
                if (one, domain) not in places:
                    raise Refusal(
                        "selective",
                        "cells",
                        f"must hold each class in each domain, got no row of {one!r} in {domain!r}",
                    )
                grid.append(rows[places[one, domain]].mean(dim=0))
        self.grid = torch.stack(grid).view(-1, len(classes), classes.dim)

    def contrast(self, texts: Tensor) -> Tensor:
        """[C, d] -> [d]: the class less the mean of the others."""
        return texts[self.row] - texts[self.others].mean(dim=0)

    def of_domain(self) -> Tensor:
        """[C, d]: forgotten less kept domains."""
        m = len(self.domains)
        return self.grid[:m].mean(dim=0) - self.grid[m:].mean(dim=0)

    def reader(self, mode: str, depth: float, gain: float) -> tuple[Tensor, Tensor]:
        """read [1, d] and write [1, d]; gain has no say in mode "global"."""
        q, level = self.contrast(self.served), self.contrast(self.grid.mean(dim=0))
        level = level @ q
        if level <= 0:
            raise Refusal(
                "selective",
                "cells",
                f"must lie with their class, got those of {self.name!r} nearer to the others",
            )
        # what all scores move by alike changes no answer, so the class moves by 1 against the rest
        write = _dual(self.served[self.row], self.served[self.others])
        write = write / (write @ q)
        if mode == "global":
            return (depth * q)[None], write[None]
        m, change = len(self.domains), self.of_domain()
        shared = change.mean(dim=0)
        g = (change[self.row] + shared) / 2
        off = self.grid[:, self.row] - self.grid[:, self.row].mean(dim=0)
        forgotten, kept = gain * off[:m].mean(dim=0), gain * off[m:].mean(dim=0)
        apart = (forgotten - kept) @ g
        if apart <= _SAME_DOMAIN * level:
            raise Refusal(
                "selective", "domains", "must differ from keep_domains, got texts that do not"
            )
        equations = torch.stack([
            torch.stack([level + forgotten @ q, forgotten @ g]),
            torch.stack([level + kept @ q, kept @ g]),
        ])  # fmt: skip
        a, b = torch.linalg.solve(equations, torch.stack([depth * level, 0 * level]))
        if mode == "complete":
            # what a forgotten cell reads also takes its domain to the level of the kept ones
            sign = _dual(shared, self.served)
            write = write + gain * (shared @ shared) / (depth * level) * sign
        return (a * q + b * g)[None], write[None]

    def gain(self, images: Cells) -> float:
        """How much images show the domain over how much they show the class, as texts do."""
        rows = images.rows.double().to(self.served.device)
        forgotten = images.where(None, self.domains).to(rows.device)
        if forgotten.all() or not forgotten.any():
            raise Refusal(
                "selective",
                "prototypes",
                "must be of forgotten and of kept domains, got "
                f"{len(forgotten)} of one kind; or give domain_gain",
            )
        shared = self.of_domain().mean(dim=0)
        shown = rows @ shared
        domain = (shown[forgotten].mean() - shown[~forgotten].mean()) / (shared @ shared)
        own = torch.tensor([self.names.index(one) for one in images.names], device=rows.device)
        cells = self.grid.mean(dim=0)
        q = self.served[own] - self.served.mean(dim=0)
        as_texts = ((cells[own] - cells.mean(dim=0)) * q).sum(dim=1).mean()
        seen = (rows * q).sum(dim=1).mean() / as_texts
        if not (domain > 0 and seen > 0):
            raise Refusal(
                "selective",
                "prototypes",
                "must show their class and their domain as texts do, got "
                f"{float(seen):.3g} and {float(domain):.3g} times; or give domain_gain",
            )
        return min(max(float(domain / seen), _GAINS[0]), _GAINS[1])

    def subspace(self, mode: str, prototypes: Cells | None, rank: int | None, tol: float) -> Tensor:
        """[k, d] orthonormal: what the paper's form projects out."""
        m = len(self.domains)
        rows, kept = self.grid[:m, self.row], self.grid[m:, self.row]
        if mode == "global":
            rows = torch.cat([rows, self.served[self.row][None]])
        if prototypes is not None:
            mine = prototypes.where((self.name,), self.domains)
            rows = torch.cat([rows, prototypes.rows[mine].double().to(rows.device)])
        if mode != "global":
            rows = less_keep(rows, kept, "span")
        if mode == "complete":
            domain = self.grid.mean(dim=1)
            left = torch.cat([kept, self.served[self.others]])
            rows = torch.cat([rows, less_keep(domain[:m] - domain.mean(dim=0), left, "span")])
        basis, singular, _ = row_basis(rows, tol)
        if singular[0] < tol:
            raise Refusal(
                "selective", "domains", "must differ from keep_domains, got texts that do not"
            )
        basis = basis[:rank]
        if len(basis) == rows.shape[1]:
            raise Refusal(
                "selective",
                "domains",
                f"must leave something of the {len(basis)} dimensions, got "
                "rows that span all of them; give rank",
            )
        return basis


def _dual(text: Tensor, others: Tensor) -> Tensor:
    """The short vector with product 1 with `text` [d] and small ones with `others` [m, d]."""
    out = ridge_less(text[None], others, 1 / _RIDGE)[0]
    return out / (out @ text)
