"""`fold_`: the folded head gives the projected features, whatever layout its weight has."""

from __future__ import annotations

import pytest
import torch
from cases import assert_bits, assert_reference, factors, features
from torch import Tensor, nn

from clipproj import ops, reference

OPTIONS = ["symmetric", "oblique", "strength"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("rows", "d", "k"), [(1, 7, 2), (33, 17, 17), (100, 64, 7), (17, 100, 0)])
def test_matches_reference_along_both_dims(
    device: str, dtype: torch.dtype, rows: int, d: int, k: int, option: str
) -> None:
    given_factors = factors(option, rows, d, k, dtype, device)
    weight = features(rows, d, dtype, device)  # [in, d] of x @ A
    folded = weight.clone()
    assert ops.fold_(folded, **given_factors, dim=1) is folded
    assert_reference(folded, weight, **given_factors)
    want = reference.fold(weight.T, **given_factors, dim=0).T
    assert torch.equal(want, reference.fold(weight, **given_factors, dim=-1))

    linear = weight.T.contiguous()  # [d, in] of nn.Linear
    got = ops.fold_(linear.clone(), **given_factors, dim=0).T
    assert_reference(got, weight, **given_factors)
    assert_bits(ops.fold_(linear.clone(), **given_factors, dim=-2).T, got)
    assert_bits(ops.fold_(weight.clone(), **given_factors, dim=-1), folded)
    assert_bits(ops.project(weight, **given_factors), folded)


def test_bias_takes_the_offset(device: str, dtype: torch.dtype) -> None:
    given_factors = factors("offset", 1, 17, 4, dtype, device)
    given_factors["strength"] = given_factors["offset"].new_tensor(0.7)
    bias = features(1, 17, dtype, device)[0]
    folded = ops.fold_(bias.clone(), **given_factors, dim=0)
    assert_reference(folded, bias, **given_factors)
    assert_bits(ops.fold_(bias.clone(), **given_factors, dim=-1), folded)


def strided(name: str, rows: int, d: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """A buffer and a [rows, d] view of it."""
    buffer = features(2 * max(rows, d) + 3, 2 * max(rows, d) + 5, dtype, device)
    view = {
        "slice": buffer[3 : 3 + rows, 5 : 5 + d],
        "transposed": buffer[3 : 3 + d, 5 : 5 + rows].T,
        "every other column": buffer[:rows, 1 : 1 + 2 * d : 2],
        "every other row": buffer[1 : 1 + 2 * rows : 2, :d],
    }[name]
    return buffer, view


@pytest.mark.parametrize("name", ["slice", "transposed", "every other column", "every other row"])
def test_strided_weights_change_and_nothing_else_does(
    device: str, dtype: torch.dtype, name: str
) -> None:
    given_factors = factors("oblique", 20, 33, 5, dtype, device)
    for dim in (0, 1):
        buffer, view = strided(name, 20, 33, dtype, device)
        weight = view if dim == 1 else view.T
        before, want = buffer.clone(), ops.project(view, **given_factors)
        ops.fold_(weight, **given_factors, dim=dim)
        torch.testing.assert_close(view, want)
        view.copy_(before.as_strided(view.shape, view.stride(), view.storage_offset()))
        assert_bits(buffer, before)


@pytest.mark.parametrize("bias", [False, True])
def test_folded_linear_gives_projected_features(device: str, bias: bool) -> None:
    head = nn.Linear(48, 64, bias=bias, device=device).requires_grad_(False)
    x = features(9, 48, device=device)
    given_factors = factors("offset" if bias else "oblique", 9, 64, 6, device=device)
    want = ops.project(head(x), **given_factors)
    weight_factors = {name: given_factors[name] for name in ("read", "write")}
    ops.fold_(head.weight, **weight_factors, dim=0)
    if bias:
        ops.fold_(head.bias, **given_factors, dim=0)
    torch.testing.assert_close(head(x), want, rtol=1e-5, atol=1e-5)


def test_bits_of_a_column_depend_on_that_column_alone(
    threads: None, device: str, dtype: torch.dtype
) -> None:
    d, columns = 77, 1111
    given_factors = factors("strength", columns, d, 18, dtype, device)
    weight = features(d, columns, dtype, device)

    def fold(part: Tensor) -> Tensor:
        return ops.fold_(part.clone(memory_format=torch.contiguous_format), **given_factors, dim=0)

    torch.set_num_threads(1)
    want = fold(weight)
    for count in (2, 3):
        torch.set_num_threads(count)
        assert_bits(fold(weight), want)
    # As rows of another length, so that they fall elsewhere into vectors and panels.
    for part in (slice(0, 1), slice(3, 40), slice(63, 200), slice(1110, 1111)):
        assert_bits(fold(weight[:, part]), want[:, part])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_stay_in_their_column(device: str, dtype: torch.dtype, bad: float) -> None:
    given_factors = factors("oblique", 21, 33, 5, dtype, device)
    weight = features(33, 21, dtype, device)
    clean = ops.fold_(weight.clone(), **given_factors, dim=0)
    weight[7, 4] = bad
    folded = ops.fold_(weight, **given_factors, dim=0)
    others = torch.arange(21, device=device) != 4
    assert_bits(folded[:, others], clean[:, others])
    assert not folded[:, 4].isfinite().all()
