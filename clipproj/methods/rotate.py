"""Turn a class's direction into a neutral one: every length stays, and every bit of information."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from clipproj.methods.contrast import CONTRASTS, contrasted, less_keep, ridge_less, row_basis
from clipproj.methods.inputs import forget_and_keep, integer, number, provenance, unit_rows, whose
from clipproj.methods.method import Method, Option, Setting, Task
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.refusal import Refusal

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
    same angle however alike the classes are. On image features it is M^T. Every length and every
    angle between images stays, so a probe finds the class exactly as before, and `unrotate` is
    the way back: only the alignment with texts changes.

    An image then scores for a text t what it scored for M t. As long as texts have nothing along B
    and the image neither, that is what the null space of A leaves at strength `1 - cos(angle)`:
    90 degrees are strength 1, 120 are 1.5, 180 reflect. Hence what B must be. The direction that
    all texts share (mean(keep)) will not do: every image has much of it, and it turns into the
    class. On the embedded model at 90 degrees it costs kept classes 0.05 of accuracy, another
    class's direction 0.07 (a rotation turns that class out as well), a direction that kept texts
    avoid 0.006. That is the default: seeded random rows, less what kept texts have of them.

    Args:
        forget: [m, d], any row lengths.
        target: [m, d], neutral texts, one for each forgotten text since an invertible map cannot
            make one of two; None for directions that kept texts avoid, which needs keep.
        keep: [m_k, d], texts to keep.
        angle: degrees in (0, 180]. With ViT-B/32's texts and vectors that have its images'
            cosines 90 leave 0.1 of a class against nine names and 0.4 against a thousand, 120 at
            most 0.01. On the embedded model 90 forget it all, for 0.006 of accuracy and not 0.022.
        contrast: as for `nullspace`, of forget and target alike.
            With "none" 0.4 of that class is left even at 120.
        seed: of the neutral directions.
        side: "image" or "text", whose features the projector edits.

    Returns:
        An oblique Projector of rank <= 2 m and strength 1. Only that strength keeps lengths (less
        shortens rows, up to 2 lengthens them): for a weaker edit take a smaller angle. Turning both
        towers with it changes no similarity at all.

    Raises:
        TypeError, ValueError: for NaN, inf or zero rows, texts on both lists, a forget or target
            row with no direction of its own, too many rows for d, options out of range.

    Example:
        >>> forget, keep = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
        >>> turned = clipproj.rotate(forget, keep=keep)(forget)
        >>> round(float(turned.norm()), 5), bool(turned[0, 0] < 0)
        (1.0, True)
    """
    f, k = forget_and_keep("rotate", forget, keep)
    angle = number("rotate", "angle", angle)
    if not 0 < angle <= 180:
        raise Refusal("rotate", "angle", f"must be in (0, 180] degrees, got {angle:g}")
    seed = integer("rotate", "seed", seed)
    if target is None and k is None:
        raise Refusal("rotate", None, "target or keep must be given, got None for both")
    t = None if target is None else unit_rows("rotate", "target", target).to(f.device)
    if t is not None and t.shape != f.shape:
        raise Refusal(
            "rotate",
            "target",
            f"must be {list(f.shape)} as forget is, a row each, got {list(t.shape)}",
        )

    rows, contrast, _ = contrasted(
        "rotate", f, k, contrast, _TOL, forget,
        "the direction that all texts share is turned too, and much of a real class survives",
    )  # fmt: skip
    a, singular, _ = row_basis(rows, _TOL)
    neutral = _neutral(rows, a, k, contrast, seed) if t is None else less_keep(t, k, contrast)
    # Each singular direction gets the mixture of them that it is of forgotten texts. That also
    # takes out its sign, which linear algebra libraries choose as they like.
    b = _orthonormal_to(a, (rows @ a.T / singular[: len(a)]).T @ neutral)
    if b is None:
        raise Refusal(
            "rotate",
            None,
            f"forget{'' if k is None else ' and keep'} must leave {len(a)} of the "
            f"{f.shape[1]} dimensions to "
            + ("neutral directions, got none" if t is None else "target, got a target inside them"),
        )

    basis, turned = plane_rotation(a, b, math.radians(angle))
    parameters: dict[str, Any] = {"angle": angle, "contrast": contrast, "directions": len(a)}
    if t is None:
        parameters["target"] = {"kind": "avoids keep", "seed": seed}
    else:
        parameters["target"] = {"kind": "given"} | whose(target, t)
    history = provenance("rotate", parameters, forget, keep)
    read, write = (basis, turned) if side == "image" else (turned, basis)
    return Projector(read, write, side=side, provenance=history, forget=f)


def unrotate(projector: Projector) -> Projector:
    """The projector that undoes one which keeps every length: its transpose, for the same tower.

    Raises ValueError for one that does not keep lengths, as no projection or redirection does.
    """
    if not isinstance(projector, Projector):
        got = type(projector).__name__
        raise TypeError(f"unrotate: projector must be a Projector, got {got}")
    one = projector.linear_factors("unrotate", torch.float64)
    # I - s R^T W differs from I inside the span of both factors only: enough to look there
    inside = torch.linalg.qr(torch.cat([one["read"], one["write"]]).T)[0]
    eye = torch.eye(inside.shape[1], dtype=torch.float64, device=inside.device)
    matrix = eye - one["strength"] * (one["read"] @ inside).T @ (one["write"] @ inside)
    off = float((matrix @ matrix.T - eye).abs().amax()) if len(matrix) else 0.0
    if one["offset"] is not None or not off < 1e-5:
        raise Refusal(
            "unrotate",
            "projector",
            "must keep every length, got one that changes squared lengths by "
            f"up to {off:.3g}" + ("" if one["offset"] is None else " and has an offset"),
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


def _neutral(own: Tensor, a: Tensor, k: Tensor | None, contrast: str, seed: int) -> Tensor:
    """Random rows as many as own has, less what is in a and what kept texts have of them."""
    generator = torch.Generator().manual_seed(seed)  # of the CPU: the same rows on every device
    rows = torch.randn(own.shape, dtype=own.dtype, device="cpu", generator=generator).to(a.device)
    if contrast == "span":
        return less_keep(rows, k, contrast)
    assert k is not None  # without keep there is a target
    # kept texts without a: else taking a out of the rows later brought kept texts back in
    rows, k = rows - rows @ a.T @ a, k - k @ a.T @ a
    return ridge_less(rows, k, _AVOID)


def _orthonormal_to(a: Tensor, rows: Tensor) -> Tensor | None:
    """The orthonormal rows nearest to `rows` that are orthogonal to a; None if there are none."""
    before = torch.linalg.matrix_norm(rows, 2)
    for _ in range(2):  # the second pass takes out the rounding of the first
        rows = rows - rows @ a.T @ a
    left, singular, right = torch.linalg.svd(rows, full_matrices=False)
    if len(singular) < len(rows) or not singular[-1] > _TOL * before:
        return None
    return left @ right


def make(task: Task, angle: float = 120.0, contrast: str = "auto") -> Projector:
    """`rotate` of names, into directions that kept texts avoid."""
    return rotate(
        task.forget, keep=task.keep, angle=angle, contrast=contrast, seed=task.seed,
        side=task.side,
    )  # fmt: skip


METHOD = Method(
    "rotate",
    "turns the names' directions into neutral ones; at strength 1 no length changes",
    make,
    options=(
        Option("angle", float, "degrees to turn by", "120", above=0, high=180),
        Option(
            "contrast", str, "what the names are told apart from",
            "span(keep) up to 16 names, else mean(keep)",
            choices=(*CONTRASTS, "auto"),
        ),
    ),
    promise="an orthogonal map with an exact inverse",
    paper="arXiv 2407.08374",
    settings=(
        Setting(
            "rotate",
            "turned into the neutral direction, no length changed (OrthSR's Cayley form)",
        ),
    ),
)  # fmt: skip
