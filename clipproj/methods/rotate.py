"""Turn a class's direction into a neutral one: every length stays, and every bit of information."""

from __future__ import annotations

import math
import operator
import warnings

import torch
from torch import Tensor

from clipproj.methods.inputs import forget_and_keep, provenance, unit_rows
from clipproj.methods.nullspace import SPAN_UP_TO, _contrasted, _row_basis
from clipproj.projector import Projector
from clipproj.text import Embeddings

_TOL = 1e-4  # relative, of singular values: directions below it are one with the others
_AVOID = 100.0  # how much the neutral direction stays away from kept texts


def rotate(
    forget: Embeddings | Tensor,
    target: Embeddings | Tensor | None = None,
    keep: Embeddings | Tensor | None = None,
    *,
    angle: float = 120.0,
    contrast: str = "auto",
    seed: int = 0,
    side: str = "image",
) -> Projector:
    """Rotate the directions of the forgotten texts by `angle` into neutral ones.

    With orthonormal rows A, which span what sets the forgotten texts apart, and B, the neutral
    directions, orthogonal to A, texts (as columns) are acted on by

        M = I + (cos - 1) (A^T A + B^T B) + sin (B^T A - A^T B),

    the Cayley transform `(I - S)^-1 (I + S)` of the skew `S = tan(angle / 2) (B^T A - A^T B)`: the
    parametrisation of orthogonal fine-tuning in OrthSR (arXiv 2407.08374), here solved instead of
    trained. Since A and B are orthonormal nothing need be inverted, and every class turns by the
    same angle however alike the classes are. On image features it is M^T. Lengths and all that an
    invertible map keeps stay, so a probe still finds the class; `unrotate` undoes it.

    The picture scores for the forgotten names what it scored for M f. As long as texts have nothing
    along B that is what the null space of A leaves at strength `1 - cos(angle)`: 90 degrees are
    strength 1, 120 are 1.5, 180 reflect. Hence what B must be. The direction that all texts share
    (mean(keep)) will not do: every picture has much of it, and it turns into the class. Measured on
    the embedded model at 90 degrees it costs kept classes 0.05 of accuracy, another class's
    direction 0.07 (a rotation turns that class out as well), a direction that kept texts avoid
    0.006. That is the default: seeded random rows, less what kept texts have of them.

    Args:
        forget: [m, d], any row lengths.
        target: [m, d], neutral texts, one for each forgotten text since an invertible map cannot
            make one of two; None for directions that kept texts avoid, which needs keep.
        keep: [m_k, d], texts to keep.
        angle: degrees in (0, 180]. Real CLIP needs 120 against a long generic list; the embedded
            model, whose texts share no direction, only 90, which costs its kept classes less.
        contrast: "none", "span", "mean" or "auto", as for `nullspace`, of forget and target alike.
            Without it a class of real CLIP survives 90 degrees.
        seed: of the neutral directions.
        side: "image" or "text", whose features the projector edits.

    Returns:
        An oblique Projector of rank <= 2 m and strength 1. Only that strength keeps lengths (less
        shortens rows, up to 2 lengthens them): for a weaker edit take a smaller angle. Turning both
        towers with it changes no similarity at all.

    Raises:
        TypeError, ValueError: for NaN, inf or zero rows, texts on both lists, a forget or target
            row with no direction of its own, too many rows for d, options out of range.
    """
    f, k = forget_and_keep("rotate", forget, keep)
    angle = float(angle)
    if not 0 < angle <= 180:
        raise ValueError(f"rotate: angle must be in (0, 180] degrees, got {angle:g}")
    if contrast not in ("auto", "none", "span", "mean"):
        options = '"auto", "none", "span" or "mean"'
        raise ValueError(f"rotate: contrast must be {options}, got {contrast!r}")
    seed = operator.index(seed)
    if target is None and k is None:
        raise ValueError("rotate: target or keep must be given, got None for both")
    if contrast == "auto":
        contrast = "none" if k is None else "span" if len(k) <= SPAN_UP_TO else "mean"
        if k is None:
            warnings.warn(
                "rotate: without keep the direction that all texts share is turned too, and much "
                "of a real CLIP's class survives; give keep, or clipproj.generic_keep()",
                stacklevel=2,
            )
    if contrast != "none" and k is None:
        raise ValueError(f'rotate: contrast must be "none" without keep, got {contrast!r}')
    t = None if target is None else unit_rows("rotate", "target", target).to(f.device)
    if t is not None and t.shape != f.shape:
        raise ValueError(
            f"rotate: target must be {list(f.shape)} as forget is, a row each, got {list(t.shape)}"
        )

    rows = _contrasted(f, k, contrast)
    inside = torch.linalg.vector_norm(rows, dim=1) < _TOL
    if inside.any():
        row = int(inside.nonzero()[0])
        where = "inside span(keep)" if contrast == "span" else "equal to mean(keep)"
        label = f" ({forget.names[row]})" if isinstance(forget, Embeddings) else ""
        raise ValueError(f"rotate: forget must not lie {where}, got row {row}{label} there")
    a, singular, _ = _row_basis(rows, _TOL)
    if t is None:
        b = _neutral(a, k, contrast, seed)
    else:  # each singular direction gets the mixture of targets that it is of forgotten texts
        b = (rows @ a.T / singular[: len(a)]).T @ _contrasted(t, k, contrast)
    b = _orthonormal_to(a, b)
    if b is None:
        raise ValueError(
            f"rotate: forget{'' if k is None else ' and keep'} must leave {len(a)} of the "
            f"{f.shape[1]} dimensions to "
            + ("neutral directions, got none" if t is None else "target, got a target inside them")
        )

    basis, turned = plane_rotation(a, b, math.radians(angle))
    parameters = {"angle": angle, "contrast": contrast, "directions": len(a)}
    if t is None:
        parameters["target"] = {"kind": "avoids keep", "seed": seed}
    else:
        named = isinstance(target, Embeddings)
        told = {"names": list(target.names)} if named else {"rows": len(t)}
        parameters["target"] = {"kind": "given"} | told
    history = provenance("rotate", parameters, forget, keep)
    read, write = (basis, turned) if side == "image" else (turned, basis)
    return Projector(read, write, side=side, provenance=history)


def unrotate(projector: Projector) -> Projector:
    """The projector that undoes one which keeps every length: its transpose, for the same tower.

    Raises ValueError for one that does not keep lengths, as no projection or redirection does.
    """
    if not isinstance(projector, Projector):
        got = type(projector).__name__
        raise TypeError(f"unrotate: projector must be a Projector, got {got}")
    one = projector.factors(torch.float64)
    # I - s R^T W differs from I inside the span of both factors only: enough to look there
    inside = torch.linalg.qr(torch.cat([one["read"], one["write"]]).T)[0]
    eye = torch.eye(inside.shape[1], dtype=torch.float64, device=inside.device)
    matrix = eye - one["strength"] * (one["read"] @ inside).T @ (one["write"] @ inside)
    off = float((matrix @ matrix.T - eye).abs().amax()) if len(matrix) else 0.0
    if one["offset"] is not None or not off < 1e-5:
        raise ValueError(
            "unrotate: projector must keep every length, got one that changes squared lengths by "
            f"up to {off:.3g}" + ("" if one["offset"] is None else " and has an offset")
        )
    swapped = None if projector.symmetric else projector.read
    history = projector.provenance | {"undoes": projector.content_hash()}
    strength, side = projector.strength, projector.side
    return Projector(projector.write, swapped, strength=strength, side=side, provenance=history)


def plane_rotation(a: Tensor, b: Tensor, radians: float) -> tuple[Tensor, Tensor]:
    """Factors R, W [2 k, d] of `M = I - R^T W`, which turns each row of a towards that of b.

    a and b [k, d] are orthonormal rows, orthogonal to each other.
    """
    cos, sin = math.cos(radians), math.sin(radians)
    turned = torch.cat([(1 - cos) * a + sin * b, (1 - cos) * b - sin * a])
    return torch.cat([a, b]), turned


def _neutral(a: Tensor, k: Tensor, contrast: str, seed: int) -> Tensor:
    """Random rows as many as a has, less what is in a and what kept texts have of them."""
    generator = torch.Generator().manual_seed(seed)  # of the CPU: the same rows on every device
    rows = torch.randn(a.shape, dtype=a.dtype, generator=generator).to(a.device)
    if contrast == "span":
        return _contrasted(rows, k, contrast)
    # kept texts without a: else taking a out of the rows later brought kept texts back in
    rows, k = rows - rows @ a.T @ a, k - k @ a.T @ a
    eye = torch.eye(len(k), dtype=k.dtype, device=k.device)
    return rows - _AVOID * torch.linalg.solve(eye + _AVOID * k @ k.T, k @ rows.T).T @ k


def _orthonormal_to(a: Tensor, rows: Tensor) -> Tensor | None:
    """The orthonormal rows nearest to `rows` that are orthogonal to a; None if there are none."""
    before = torch.linalg.matrix_norm(rows, 2)
    for _ in range(2):  # the second pass takes out the rounding of the first
        rows = rows - rows @ a.T @ a
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    if len(singular) < len(rows) or not singular[-1] > _TOL * before:
        return None
    return left @ right
