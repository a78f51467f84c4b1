"""`projected_norm`: the length of the projected row, for every layout and size of number."""

from __future__ import annotations

import pytest
import torch
from cases import OPTIONS, SHAPES, assert_bits, factors, features

from clipproj import ops, reference


@pytest.mark.pairwise
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES[::2])
def test_matches_reference(
    device: str, dtype: torch.dtype, n: int, d: int, k: int, option: str
) -> None:
    x = features(n, d, dtype, device)
    given_factors = factors(option, n, d, k, dtype, device)
    norm = ops.projected_norm(x, **given_factors)
    assert norm.dtype == given_factors["read"].dtype
    assert norm.shape == (n,)
    # No half type is stored, so what the accumulator's type allows is all that is allowed.
    wide = x.to(norm.dtype)
    bound = reference.tolerance(wide, **given_factors).norm(dim=-1)
    assert ((norm.double() - reference.projected_norm(x, **given_factors)).abs() <= bound).all()


def test_layouts_and_leading_dims(device: str, dtype: torch.dtype) -> None:
    block = features(12, 40, dtype, device).view(3, 4, 40)
    given_factors = factors("per-row", 12, 20, 4, dtype, device)
    for x in (block[..., 1:21], block[..., ::2], block.transpose(0, 1)[..., :20]):
        norm = ops.projected_norm(x, **given_factors)
        assert norm.shape == x.shape[:-1]
        dense = x.contiguous().view(12, 20)
        assert_bits(norm, ops.projected_norm(dense, **given_factors).view(x.shape[:-1]))
    given_factors["strength"] = given_factors["strength"][:1]
    one = ops.projected_norm(block[0, 0, :20], **given_factors)
    assert one.shape == ()
    assert_bits(one, ops.projected_norm(block[0, :1, :20], **given_factors)[0])


def test_is_the_length_that_normalize_divides_by(device: str, dtype: torch.dtype) -> None:
    x = features(33, 100, dtype, device)
    given_factors = factors("oblique", 33, 100, 7, dtype, device)
    norm = ops.projected_norm(x, **given_factors)
    wide = x.to(norm.dtype)
    projected = ops.project(wide, **given_factors)
    unit = ops.project(wide, **given_factors, normalize=True)
    eps = torch.finfo(norm.dtype).eps
    torch.testing.assert_close(unit * norm[:, None], projected, rtol=4 * eps, atol=0)


def test_zero_and_huge_and_bad_rows(device: str) -> None:
    x = torch.zeros(5, 100, device=device)
    x[1] = 1e30  # squares overflow, the length does not
    x[2, 3] = float("nan")
    x[3, 3] = float("inf")
    norm = ops.projected_norm(x, **factors("symmetric", 5, 100, 0, device=device))
    assert norm[0] == 0
    torch.testing.assert_close(norm[1].item(), 1e31, rtol=1e-6, atol=0)
    assert norm[2].isnan()
    assert norm[3].isinf()
    assert norm[4] == 0


def test_does_not_cancel(device: str) -> None:
    """|z|^2 - |z R^T|^2 would leave noise of 3e-4 |z| here."""
    given_factors = factors("symmetric", 1, 64, 1, device=device)
    read = given_factors["read"]
    across = features(1, 64, device=device)
    across -= across @ read.T @ read
    across *= 1e-4 / across.norm()
    x = read + across
    norm = ops.projected_norm(x, **given_factors)
    assert (norm.double() - reference.projected_norm(x, **given_factors)).abs() <= 1e-6


@pytest.mark.parametrize("d", [16, 17, 33])
def test_infinite_coefficients_do_not_depend_on_the_width(device: str, d: int) -> None:
    read = torch.full((1, d), 1e20, device=device)
    length = ops.projected_norm(torch.full((2, d), 1e20, device=device), read, read.sign())
    assert length.isinf().all()
