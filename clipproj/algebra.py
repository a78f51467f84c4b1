"""Two projectors as one: erase what either erases, or do one edit after the other."""

from __future__ import annotations

import torch

from clipproj._factors import LinearFactors
from clipproj._provenance import made_by
from clipproj.projector import Projector
from clipproj.refusal import Refusal

_METRIC_TOL = 1e-5  # of an element of read @ write.T; float32 factors carry 1e-7
_TOL = 1e-5  # singular values, relative, of directions that are one; float32 factors carry 1e-7


def union(p: Projector, q: Projector) -> Projector:
    """The projector that erases what either erases, overlapping or not, at their strength.

    Of symmetric ones the orthogonal projector of both spans: I - P - Q is no projector unless the
    two are orthogonal; the basis of the sum of both spans is found by a rank-revealing
    decomposition instead, so rank <= p.rank + q.rank. Of one-sided ones in the metric of the same
    kept texts the half-spaces of both together; those that both have are taken once.

    Raises:
        ValueError: for oblique or affine projectors (use `compose`), for a linear and a one-sided
            one, for one-sided ones of other kept texts, for different sides, widths or strengths.

    Example:
        >>> p, q = (clipproj.Projector(row[None]) for row in torch.eye(3)[:2])
        >>> clipproj.union(p, q)(torch.ones(1, 3)).abs()
        tensor([[0., 0., 1.]])
    """
    _check_pair("union", p, q)
    if p.one_sided != q.one_sided:
        raise Refusal("union", "q", f"must be {p.form} as p is, got {q.form}; use linear()")
    for name, one in (("p", p), ("q", q)):
        if one.form not in ("symmetric", "one-sided"):
            raise Refusal("union", name, f"must be symmetric, got an {one.form} one; use compose()")
    if p.strength != q.strength:
        raise Refusal(
            "union",
            "q",
            f"must have the strength of p, {float(p.strength):g}, got "
            f"{float(q.strength):g}; use scaled()",
        )
    if p.one_sided:
        return _half_spaces_of(p, q)
    rows = torch.cat([p.read, q.read.to(p.read.device)]).double()
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    basis = right[: int((singular > _TOL).sum())]
    return Projector(basis, strength=p.strength, side=p.side, provenance=_history("union", p, q))


def _half_spaces_of(p: Projector, q: Projector) -> Projector:
    """Of one-sided ones: the rows of p, and those of q that p does not have."""
    f, g = p.factors(torch.float64), _on(p.read.device, q.factors(torch.float64))
    across, back = f["read"] @ g["write"].T, g["read"] @ f["write"].T
    # In one metric M both are R_p M R_q^T.
    if across.numel() and (off := (across - back.T).abs().amax()) > _METRIC_TOL:
        raise Refusal(
            "union",
            "q",
            "must be measured by the kept texts that p is measured by, got another metric (read @ "
            f"write.T off by {off:.2g}); make both from the same keep and keep_weight",
        )
    offsets = [one["read"].new_zeros(len(one["read"])) if one["offset"] is None else one["offset"]
               for one in (f, g)]  # fmt: skip
    same = (across > 1 - _METRIC_TOL) & ((offsets[0][:, None] - offsets[1]).abs() <= _METRIC_TOL)
    new = ~same.any(0)
    read, write = (torch.cat([f[name], g[name][new]]) for name in ("read", "write"))
    gram = read @ write.T
    forget = None
    if p.forget is not None and q.forget is not None:
        forget = torch.cat([p.forget, q.forget.to(p.forget.device)])
    return Projector(
        read,
        write,
        torch.cat([offsets[0], offsets[1][new]]),
        p.strength,
        gram=gram,
        side=p.side,
        provenance=_history("union", p, q),
        forget=forget,
    )


def compose(p: Projector, q: Projector) -> Projector:
    """First p, then q, as one oblique (or affine) projector of strength 1.

    With rows `z_p = z - s_p (z R_p^T - c_p) W_p` put into q,

        R = [R_p; R_q],  c = [c_p; c_q],  W = [s_p (W_p - s_q W_p R_q^T W_q); s_q W_q],

    and without offsets directions that R has twice are merged, so rank <= p.rank + q.rank.

    Raises:
        ValueError: for different sides or widths; for one-sided projectors; for affine projectors
            of rank sum above d.

    Example:
        >>> p, q = (clipproj.Projector(row[None], strength=0.5) for row in torch.eye(3)[:2])
        >>> clipproj.compose(p, q)(torch.ones(1, 3))
        tensor([[0.5000, 0.5000, 1.0000]])
    """
    _check_pair("compose", p, q)
    f = p.linear_factors("compose", torch.float64)
    g = _on(p.read.device, q.linear_factors("compose", torch.float64))
    crossed = g["strength"] * f["write"] @ g["read"].T @ g["write"]
    read = torch.cat([f["read"], g["read"]])
    write = torch.cat([f["strength"] * (f["write"] - crossed), g["strength"] * g["write"]])
    history = _history("compose", p, q)
    if p.offset is not None or q.offset is not None:
        if len(read) > p.dim:
            raise Refusal(
                "compose",
                None,
                f"p.rank + q.rank must be at most {p.dim} with an offset, got {len(read)}",
            )
        offset = torch.cat([read.new_zeros(len(one["read"])) if one["offset"] is None
                            else one["offset"] for one in (f, g)])  # fmt: skip
        return Projector(read, write, offset, side=p.side, provenance=history)
    lengths = torch.linalg.vector_norm(read, dim=1, keepdim=True)
    lengths = torch.where(
        lengths > 0, lengths, 1
    )  # which rows are one must not hang on their scale
    left, singular, right = torch.linalg.svd(read / lengths, full_matrices=False)
    live = singular > _TOL * singular.amax() if len(singular) else singular.bool()
    write = (singular[live, None] * left[:, live].T) @ (
        lengths * write
    )  # R^T W = right^T (S left^T W)
    return Projector(right[live], write, side=p.side, provenance=history)


def _check_pair(op: str, p: Projector, q: Projector) -> None:
    for name, one in (("p", p), ("q", q)):
        if not isinstance(one, Projector):
            raise TypeError(f"{op}: {name} must be a Projector, got {type(one).__name__}")
        if one.read.is_meta:
            raise Refusal(op, name, "must have data, got one on the meta device")
    if p.side != q.side:
        raise Refusal(op, "q", f"must be of side {p.side!r} as p is, got {q.side!r}; use .T")
    if p.dim != q.dim:
        raise Refusal(op, "q", f"must be of width {p.dim} as p is, got {q.dim}")
    theirs = p.provenance.get("head_hash")
    q.require_model(op, theirs, argument="q", model="the model that p comes from")


def _on(device: torch.device, factors: LinearFactors) -> LinearFactors:
    offset = factors["offset"]
    return {
        "read": factors["read"].to(device),
        "write": factors["write"].to(device),
        "offset": None if offset is None else offset.to(device),
        "strength": factors["strength"].to(device),
    }


def _history(method: str, p: Projector, q: Projector) -> dict:
    out = made_by(method, {"of": [p.provenance, q.provenance]})
    names = [n for one in (p, q) for n in one.provenance.get("forget", {}).get("names", ())]
    if names:
        out["forget"] = {"names": list(dict.fromkeys(names))}
    for key in ("model", "head_hash"):
        value = p.provenance.get(key) or q.provenance.get(key)
        if value:
            out[key] = value
    return out
