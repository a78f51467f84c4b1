"""What every method checks before it computes: rows to forget, rows to keep, and their history."""

from __future__ import annotations

import operator
import warnings
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipproj._provenance import made_by
from clipproj._tensors import as_tensor
from clipproj.models.text import Embeddings
from clipproj.models.words import name_key
from clipproj.refusal import Refusal

SAME = 1 - 1e-6  # cosine from which two texts are one
NEAR = 0.95  # cosine from which a name of a lexicon is a forgotten one, or another spelling of it


def number(op: str, name: str, value: Any) -> float:
    """A number or a tensor of one as a float, which provenance can hold; TypeError for others."""
    if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.numel() == 1):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{op}: {name} must be a number, got {got}")
    return float(value)


def above_zero(op: str, name: str, value: Any) -> float:
    """A finite number above 0; ValueError for another."""
    value = number(op, name, value)
    if not 0 < value < float("inf"):
        raise Refusal(op, name, f"must be finite and above 0, got {value:g}")
    return value


def at_least_zero(op: str, name: str, value: Any) -> float:
    """A finite number that is not negative; ValueError for another."""
    value = number(op, name, value)
    if not 0 <= value < float("inf"):
        raise Refusal(op, name, f"must be finite and at least 0, got {value:g}")
    return value


def integer(op: str, name: str, value: Any, least: int | None = None) -> int:
    """An int of at least `least`; TypeError for no integer, ValueError for a smaller one."""
    try:
        value = operator.index(value)
    except TypeError:
        got = type(value).__name__
        raise TypeError(f"{op}: {name} must be an integer, got {got}") from None
    if least is not None and value < least:
        raise Refusal(op, name, f"must be at least {least}, got {value}")
    return value


def rank_and_tol(op: str, rank: Any, tol: Any) -> tuple[int | None, float]:
    """How many directions of a span count at most, and from which relative singular value on."""
    if rank is not None:
        rank = integer(op, "rank", rank, least=1)
    tol = number(op, "tol", tol)
    if not 0 < tol < 1:
        raise Refusal(op, "tol", f"must be in (0, 1), got {tol:g}")
    return rank, tol


def unit_rows(op: str, name: str, value: Embeddings | Tensor | np.ndarray) -> Tensor:
    """Rows of `value` [m, d] in float64 and of length 1, on their device.

    Raises TypeError, or ValueError naming the row that is NaN, inf or zero.
    """
    rows = value.tensor if isinstance(value, Embeddings) else as_tensor(op, name, value)
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        got = rows.dtype if isinstance(rows, Tensor) else type(value).__name__
        raise TypeError(f"{op}: {name} must be Embeddings or a floating point tensor, got {got}")
    if rows.ndim != 2 or 0 in rows.shape:
        raise Refusal(op, name, f"must be [m, d] with m >= 1, got {list(rows.shape)}")
    rows = rows.detach().double()
    lengths = torch.linalg.vector_norm(rows, dim=1)
    # the length of a row of float64's largest numbers is inf too
    for wrong, what in ((~lengths.isfinite(), "a NaN or inf"), (lengths == 0, "a zero vector")):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            label = f" ({value.names[row]})" if isinstance(value, Embeddings) else ""
            kind = "nonzero rows" if what == "a zero vector" else "finite rows"
            raise Refusal(op, name, f"must be [m, d] with {kind}, got {what} in row {row}{label}")
    return rows / lengths[:, None]


def forget_and_keep(
    op: str,
    forget: Embeddings | Tensor,
    keep: Embeddings | Tensor | None,
    lexicon: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Unit rows of both, after the checks that need both: one space, nothing on both lists.

    Of a `lexicon`, which holds names in general, what is forgotten is left out in place of refused:
    forgotten names, and rows with a cosine of NEAR or more to a forgotten text.
    """
    f = unit_rows(op, "forget", forget)
    if keep is None:
        return f, None
    k = unit_rows(op, "keep", keep).to(f.device)
    if f.shape[1] != k.shape[1]:
        raise Refusal(op, "keep", f"must be [m, {f.shape[1]}] as forget is, got {list(k.shape)}")
    one_model(op, "keep", keep, forget)
    if isinstance(forget, Embeddings) and isinstance(keep, Embeddings):
        if forget.templates != keep.templates:
            warnings.warn(
                f"{op}: keep and forget were embedded with different templates "
                f"({len(keep.templates)} and {len(forget.templates)}): what sets those apart is "
                "erased with the class; embed both alike",
                stacklevel=3,
            )
        kept = {name_key(name) for name in keep.names}
        both = [name for name in forget.names if name_key(name) in kept]
        if both and not lexicon:
            raise Refusal(op, "keep", f"must not name what forget names, got {both} in both")
    if lexicon:
        return f, k[others(op, forget, keep, f, k)]
    apart(op, "keep", k, f)
    return f, k


def others(
    op: str, forget: Embeddings | Tensor, keep: Embeddings | Tensor, f: Tensor, k: Tensor
) -> Tensor:
    """The numbers of a lexicon's rows k that are none of the forgotten f. ValueError for none."""
    far = (k @ f.T).amax(1) < NEAR
    if isinstance(forget, Embeddings) and isinstance(keep, Embeddings):
        gone = {name_key(name) for name in forget.names}
        own = [name_key(name) in gone for name in keep.names]
        far &= ~torch.tensor(own, device=far.device)
    if not far.any():
        why = f"must hold other names, with a cosine below {NEAR} to every forgotten one"
        raise Refusal(op, "keep", f"{why}, got none of {len(k)} rows")
    return far.nonzero().flatten()


def without(lexicon: Embeddings, forget: Embeddings) -> Embeddings:
    """A lexicon less what is forgotten, and what is another spelling of it. Raises as `others`."""
    f, k = unit_rows("lexicon", "forget", forget), unit_rows("lexicon", "keep", lexicon)
    left = others("lexicon", forget, lexicon, f, k.to(f.device))
    return lexicon.select([lexicon.names[i] for i in left.tolist()])


def one_model(op: str, name: str, value: Embeddings | Tensor, forget: Embeddings | Tensor) -> None:
    """ValueError where `value` and forget are known to come from different models."""
    if isinstance(forget, Embeddings) and isinstance(value, Embeddings):
        theirs, ours = value.head_hash, forget.head_hash
        if theirs is not None and ours is not None and theirs != ours:
            raise Refusal(
                op,
                name,
                f"must come from the model that forget comes from, got {value.model} "
                f"with head {theirs[:12]}, not {forget.model} with head {ours[:12]}",
            )


def whose(value: object, rows: Tensor) -> dict[str, Any]:
    """Rows in a provenance: by their names where they have some, else how many."""
    return {"names": list(value.names)} if isinstance(value, Embeddings) else {"rows": len(rows)}


def apart(op: str, name: str, rows: Tensor, f: Tensor) -> None:
    """ValueError where a row to forget is one of `rows`; both are unit rows."""
    same = (f @ rows.T > SAME).nonzero()
    if len(same):
        i, j = same[0].tolist()
        raise Refusal(op, "forget", f"must differ from {name}, got row {i} equal to {name} row {j}")


def provenance(
    method: str, parameters: dict[str, Any], forget: Any = None, keep: Any = None
) -> dict[str, Any]:
    """What a projector's file says of where it comes from; plain JSON."""
    out = made_by(method, parameters)
    for name, value in (("forget", forget), ("keep", keep)):
        if isinstance(value, Embeddings):
            out[name] = {"names": list(value.names), "templates": list(value.templates)}
            known = {"model": value.model, "head_hash": value.head_hash}
            out = {key: told for key, told in known.items() if told is not None} | out
        elif isinstance(value, Tensor | np.ndarray):
            out[name] = {"rows": len(value)}
    return out
