"""What a certificate says, in numbers, words and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipproj.refusal import Refusal

_SHOWN = 5  # names in a paragraph


@dataclass(frozen=True)
class Certificate:
    """A bound on the lead of forgotten names over kept ones, for every row of length 1.

    Attributes:
        leads: for each forgotten name the largest lead over the highest kept name that an edited
            row can give it, in exact arithmetic; a difference of cosines times the row's length.
        eps: for each, what rounding may add to it.
        witnesses: for each, the kept names whose mixture carries the bound, with their weights, of
            sum 1, the largest first. The bound holds for every list that has these names.
        kept: how many kept names there were.
        form: of the projector: "one-sided", "symmetric", "oblique", "affine".
        strength: of the projector.
        length: how long an edited row of length 1 can become.
        dtype: that edited rows are stored in, such as "bfloat16".
        projector: its `content_hash`.
    """

    leads: Mapping[str, float]
    eps: Mapping[str, float]
    witnesses: Mapping[str, list[tuple[str, float]]]
    kept: int
    form: str
    strength: float
    length: float
    dtype: str
    projector: str

    @property
    def nearest(self) -> str:
        """The forgotten name that comes nearest to being answered."""
        return max(self.leads, key=lambda name: self.leads[name] + self.eps[name])

    @property
    def lead(self) -> float:
        """The largest lead, before rounding: that of `nearest`."""
        return self.leads[self.nearest]

    @property
    def certified(self) -> bool:
        """Whether no row is answered by a forgotten name: every lead, rounding included, is below
        0."""
        return self.lead + self.eps[self.nearest] < 0

    @property
    def covers(self) -> str:
        """What it holds for."""
        return (
            f"Every row of length 1, edited at strength {self.strength:g} and stored in "
            f"{self.dtype}, against any list of names that has the witnesses."
        )

    @property
    def does_not_cover(self) -> tuple[str, ...]:
        """What it says nothing about."""
        return (
            "names outside the list, such as another word for a forgotten one, and lists without "
            "the witnesses",
            "the rounding of the scores themselves, above all of logits in half precision",
            "what a classifier trained on edited rows (a probe) finds",
            "rows of another length when they are edited, and other texts of the same names",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for `from_json`; with what follows from it, for whoever reads it."""
        return {
            "certified": self.certified,
            "lead": self.lead,
            "leads": dict(self.leads),
            "eps": dict(self.eps),
            "witnesses": {name: [list(one) for one in of] for name, of in self.witnesses.items()},
            "kept": self.kept,
            "form": self.form,
            "strength": self.strength,
            "length": self.length,
            "dtype": self.dtype,
            "projector": self.projector,
            "covers": self.covers,
            "does_not_cover": list(self.does_not_cover),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """The certificate whose `to_json` it is. ValueError for anything else."""
        try:
            found = cls(
                {str(name): float(lead) for name, lead in data["leads"].items()},
                {str(name): float(eps) for name, eps in data["eps"].items()},
                {
                    str(name): [(str(kept), float(weight)) for kept, weight in of]
                    for name, of in data["witnesses"].items()
                },
                int(data["kept"]),
                str(data["form"]),
                float(data["strength"]),
                float(data["length"]),
                str(data["dtype"]),
                str(data["projector"]),
            )
            whole = found.to_json() == dict(data)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refusal("from_json", "data", f"must be a certificate, got {error!r}") from error
        if not whole:
            raise Refusal("from_json", "data", "must be a certificate, got one that was changed")
        return found

    def __str__(self) -> str:
        name = self.nearest
        rounding, bound = self.eps[name], self.lead + self.eps[name]
        if self.certified:
            said = (
                "Certified: no row is answered by a forgotten name. Whatever the row of length 1, "
                f"edited at strength {self.strength:g} and stored in {self.dtype}, each scores at "
                f"least {-bound / self.length:.1e} below the highest of {self.kept} kept names."
            )
        elif self.lead <= rounding:
            said = (
                "Not certified: rounding may decide. No forgotten name leads the highest of "
                f"{self.kept} kept names by more than {bound:.1e}, before rows are normalised."
            )
        else:
            said = (
                f"Not certified: on some row {name!r} may lead the highest of {self.kept} kept "
                f"names, by at most {bound:.2g} before the row is normalised."
            )
        carried = [f"{kept} {weight:.2f}" for kept, weight in self.witnesses[name][:_SHOWN]]
        more = len(self.witnesses[name]) - len(carried)
        tail = f" and {more} more" if more > 0 else ""
        carry = f" What {name!r} is held by: {', '.join(carried)}{tail}."
        return f"{said}{carry} Not covered: {'; '.join(self.does_not_cover)}."
