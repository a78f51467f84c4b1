"""Whether a head went through an edit, from that edit's receipt alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipproj import files
from clipproj.editing import attachment, log
from clipproj.editing.attachment import AttachReceipt
from clipproj.editing.receipt import Receipt, check_certificate, dtype_name, probes
from clipproj.editing.weights import Weights, rows_of, weights_of
from clipproj.refusal import Refusal

TAIL = 9.0  # |e G| > 9 |e| happens to fewer than one row in 1e11, see receipt.probes
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)  # coarsest first


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. True exactly when `status` is "edited" or "attached".

    Attributes:
        status: "edited", of a projector on the fly "attached", "unedited", "undecided" (too small
            an edit for this precision: both would measure the same) or "tampered" (neither).
        exact: the bits are those after the edit (or those before it), by SHA-256.
        error: how far, at least, the row that is worst for its bound lies from where the edit
            takes it; in units of the original rows' root mean square length. NaN for a head with
            NaN or inf; 0 of a projector on the fly, for which nothing is measured.
        bound: what rounding explains for that row, same unit. error <= bound says edited.
        text: all of it in a sentence.
    """

    status: str
    exact: bool
    error: float
    bound: float
    text: str

    def __bool__(self) -> bool:
        return self.status in ("edited", "attached")


def verify(
    target: nn.Module | Mapping[str, Tensor] | Tensor | Weights, receipt: Receipt | AttachReceipt
) -> Verdict:
    """Whether `target` is the head that an edit left behind, from its receipt alone.

    With a receipt of `clipproj.plugins.attach` whether that projector stands in a live model, by
    its hash, on that head, by the SHA-256 of its bits or, after a cast, of its signs. A certificate
    in a receipt must be of its projector.

    Of an edit that was folded the SHA-256 of the head decides first. A head with other bits, such
    as one cast since, is measured: rows T against rows A that were projected with factors R, W,
    offset c (the bias row only) and strength s must satisfy, up to the rounding e of each row,

        T [R^T, G] = A [R^T, G] - s (A R^T - c) [W R^T, W G] + e [R^T, G]

    for the read directions R and 8 random vectors G. All of the right side is in the receipt. With
    u the unit roundoffs of the edit's store and of a later cast to a coarser type (recognised by
    the values, also when widened again), eps that of the fold's sums (float32, or float64),

        |e| <= u (|A| + s |(A R^T - c) W|) + eps sqrt(d + k) (|A| + s (|A| |R| + |A R^T - c|) |W|)

    row by row, plus half the smallest float16 number per element for what passed through float16.
    |e r| <= |e| |r| and, but for one row in 1e11, |e G| <= 9 |e|. So a change of one row is caught
    from 3 to 9 times its bound on: for a projection at d = 512 from 5e-5 of the row's length in
    float32, 5e-3 in float16, 4e-2 in bfloat16. Smaller ones show in the hash alone (`exact`).

    It is a check against accidents and mix-ups. Whoever has the receipt can construct weights that
    measure right; only `exact` excludes those.

    Args:
        target: a model; a state dict (names with or without the parts that DataParallel or
            torch.compile put in); or the weight, or (weight, bias). float64, float32,
            bfloat16 or float16, on any device.
        receipt: of the edit to look for. A head edited again since counts as "tampered", and the
            text names the later edit if this process made it.

    Raises:
        TypeError, ValueError: when target holds no such head: name, shape, dtype; when receipt is
            none, or has another projector's certificate; for a target that is no live model with a
            receipt of a projector on the fly.

    Example:
        >>> p = clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"]), "hull")
        >>> with clipproj.edit(model, p) as handle:
        ...     clipproj.verify(model, handle.receipt).status
        'edited'
        >>> clipproj.verify(model, handle.receipt).status
        'unedited'
    """
    if isinstance(receipt, AttachReceipt):
        status, exact, text = attachment.found(target, receipt)
        return Verdict(status, exact, 0.0, 0.0, text)
    if not isinstance(receipt, Receipt):
        got = type(receipt).__name__
        raise TypeError(
            f"verify: receipt must be a Receipt (edit.receipt, or Receipt.load(path)), got {got}"
        )
    check_certificate("verify", receipt.projector, receipt.certificate)
    weights = weights_of("verify", target, receipt.weight, receipt.bias)
    _check_shapes(weights, receipt)
    digest = files.sha256(*weights)
    rows = rows_of(weights, receipt.dim)
    cast = _cast(weights, receipt.dtype)
    error, bound = _compare(rows, receipt, receipt.strength, cast)
    error0, bound0 = _compare(rows, receipt, 0.0, cast)

    what = f"{receipt.tower} head"
    edit = f"{receipt.label}, strength {receipt.strength:g}"
    numbers = f"error {error:.2g}, bound {bound:.2g}"
    original = f"error {error0:.2g} from the original, bound {bound0:.2g}"
    noop = receipt.head_before == receipt.head_after
    if digest == receipt.head_after:
        note = ", which leaves this head as it was" if noop else ""
        return Verdict("edited", True, error, bound, f"{what} edited, bit for bit ({edit}){note}")
    if digest == receipt.head_before:
        text = f"{what} not edited, bit for bit the original ({edit}: {numbers})"
        return Verdict("unedited", True, error, bound, text)
    after, before = error <= bound, error0 <= bound0
    if after and (noop or not before):
        text = f"{what} edited ({edit}), other bits than then: {numbers}"
        return Verdict("edited", False, error, bound, text)
    if before and not after:
        text = f"{what} not edited ({edit}: {numbers}), other bits than the original: {original}"
        return Verdict("unedited", False, error, bound, text)
    if after:
        text = f"{what} edited or not, the edit is too weak to tell ({edit}: {numbers}; {original})"
        return Verdict("undecided", False, error, bound, text)
    text = f"{what} neither edited ({edit}: {numbers}) nor original ({original})"
    return Verdict("tampered", False, error, bound, text + _later(target, receipt))


def _check_shapes(weights: Weights, receipt: Receipt) -> None:
    n = len(receipt.norms) - (receipt.bias is not None)
    d = receipt.projector.dim
    for name, t, want in zip(
        ("weight", "bias"), weights, ([n, d] if receipt.dim == 1 else [d, n], [d]), strict=True
    ):
        if t is not None and list(t.shape) != want:
            raise Refusal("verify", "target", f"must have a {name} {want}, got {list(t.shape)}")
        if t is not None and t.dtype not in DTYPES:
            names = ", ".join(map(dtype_name, DTYPES))
            raise Refusal("verify", "target", f"must be one of {names}, got {dtype_name(t.dtype)}")


def _compare(
    rows: Tensor, receipt: Receipt, strength: float, cast: tuple[float, float]
) -> tuple[float, float]:
    """(error, bound) of the worst row, had the original been edited with `strength`."""
    p = receipt.projector.linear_factors("verify", torch.float64)
    read, write, d = p["read"], p["write"], rows.shape[1]
    lines = receipt.measured
    if p["offset"] is not None:  # it moves the bias alone, the last row
        lines = lines.clone()
        lines[-1] -= p["offset"]
    vectors = probes(d, receipt.head_before)
    step = strength * lines @ write
    rows = rows.cpu()
    off_read = (rows @ read.T - receipt.measured + step @ read.T).abs()
    off_probe = (rows @ vectors - receipt.sketch + step @ vectors).norm(dim=1)
    tiny = torch.finfo(torch.float64).tiny
    lengths = read.norm(dim=1).clamp_min(tiny)
    off = torch.cat([off_read / lengths, off_probe[:, None] / TAIL], dim=1).amax(1)

    unit, floor = cast
    wide = torch.finfo(torch.float64).eps
    stored = getattr(torch, receipt.dtype)
    sums = wide if stored == torch.float64 else torch.finfo(torch.float32).eps
    size = receipt.norms + step.norm(dim=1)
    bound = (unit + 4 * wide * math.sqrt(d)) * size + floor * math.sqrt(d)
    if strength:
        spans = [torch.linalg.matrix_norm(f, 2) if len(f) else 0.0 for f in (read, write)]
        taken = receipt.norms * spans[0] + lines.norm(dim=1)
        bound += torch.finfo(stored).eps / 2 * size
        bound += sums * math.sqrt(d + len(read)) * (receipt.norms + strength * taken * spans[1])
    worst = int((off / bound.clamp_min(tiny)).argmax())
    unit_length = float(receipt.norms.square().mean().sqrt()) or 1.0
    return float(off[worst]) / unit_length, float(bound[worst]) / unit_length


def _cast(weights: Weights, edited: str) -> tuple[float, float]:
    """(unit roundoff, smallest step / 2) of a cast since the edit, both 0 where there was none."""
    narrow = next(t for t in DTYPES if all(_holds(t, one) for one in weights))
    coarser = DTYPES.index(narrow) < DTYPES.index(getattr(torch, edited))
    floor = 2.0**-25 if all(_holds(torch.float16, one) for one in weights) else 0.0
    return (torch.finfo(narrow).eps / 2 if coarser else 0.0), floor


def _holds(dtype: torch.dtype, t: Tensor | None) -> bool:
    return t is None or bool((t.to(dtype).double() == t.double()).all()) or dtype == torch.float64


def _later(target: object, receipt: Receipt) -> str:
    """What the log knows about edits after this one."""
    if not isinstance(target, nn.Module):
        return ""
    edits = [entry.receipt for entry in log.entries(target, receipt.tower)]
    made = [one.head_after for one in edits]
    if receipt.head_after not in made[:-1]:
        return ""
    later = edits[made.index(receipt.head_after) + 1 :]
    return "; edited again since: " + ", ".join(f'"{one.label}"' for one in later)
