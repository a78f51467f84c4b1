"""Gradients in x, and the rules for operators that write in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import HALF, OPTIONS, factors, features
from torch import Tensor
from torch.nn import functional

from clipproj import ops

RAW = torch.ops.clipproj


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("k", [0, 3])
def test_gradcheck(option: str, k: int) -> None:
    x = features(6, 5, torch.float64).view(2, 3, 5).requires_grad_()
    given_factors = factors(option, 6, 5, k, torch.float64)
    for function in (
        lambda x: ops.project(x, **given_factors),
        lambda x: ops.project(x, **given_factors, normalize=True),
        lambda x: ops.projected_norm(x, **given_factors),
    ):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("layout", ["transposed", "permuted", "one", "expanded"])
def test_gradcheck_layouts(layout: str) -> None:
    x = {
        "transposed": features(5, 4, torch.float64).T,
        "permuted": features(6, 5, torch.float64).view(2, 3, 5).transpose(0, 1),
        "one": features(1, 5, torch.float64)[0],
        "expanded": features(1, 5, torch.float64)[0],
    }[layout].requires_grad_()
    given_factors = factors("offset", 1, 5, 2, torch.float64)

    def function(x: Tensor) -> Tensor:
        x = x.expand(3, 5) if layout == "expanded" else x
        return ops.project(x, **given_factors, normalize=True)

    assert torch.autograd.gradcheck(function, x)


def plain_gradient(x: Tensor, grad: Tensor, given_factors: dict[str, Tensor]) -> Tensor:
    """The gradient of `project(normalize=True)` by torch's autograd in float64."""
    x = x.detach().double().requires_grad_()
    read, write = (given_factors[name].double() for name in ("read", "write"))
    out = functional.normalize(x - x @ read.T @ write, dim=-1)
    return torch.autograd.grad(out, x, grad.double())[0]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_gradient_is_rounded_once(device: str, dtype: torch.dtype) -> None:
    given_factors = factors("oblique", 9, 64, 8, dtype, device)
    x = features(9, 64, dtype, device).requires_grad_()
    grad = features(9, 64, dtype, device)
    out = ops.project(x, **given_factors, normalize=True)
    (found,) = torch.autograd.grad(out, x, grad)
    want = plain_gradient(x, grad, given_factors)
    assert found.dtype == dtype
    eps = max(torch.finfo(dtype).eps / 2, 32 * torch.finfo(torch.float32).eps)
    assert ((found.double() - want).abs() <= 1.05 * eps * want.abs() + 1e-5).all()


def test_short_rows_have_the_gradient_of_torch_normalize() -> None:
    given_factors = factors("oblique", 3, 7, 2, torch.float64)
    x = features(3, 7, torch.float64)
    x[0] = 0
    x[1] *= 1e-13
    x.requires_grad_()
    grad = features(3, 7, torch.float64)
    out = ops.project(x, **given_factors, normalize=True)
    (found,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(found, plain_gradient(x, grad, given_factors))

    given_factors = factors("oblique", 3, 7, 2, torch.float64)
    (found,) = torch.autograd.grad(ops.projected_norm(x, **given_factors).sum(), x)
    assert (found[0] == 0).all()
    assert found.isfinite().all()


def test_gradient_of_a_sum_comes_expanded() -> None:
    given_factors = factors("per-row", 6, 5, 2)
    x = features(6, 5).view(2, 3, 5).requires_grad_()
    (found,) = torch.autograd.grad(ops.project(x, **given_factors).sum(), x)
    swapped = {"read": given_factors["write"], "write": given_factors["read"]}
    want = ops.project(torch.ones(2, 3, 5), **swapped, strength=given_factors["strength"])
    assert torch.equal(found, want)


@pytest.mark.parametrize("name", ["read", "write", "offset", "strength"])
@pytest.mark.parametrize("operator", [ops.project, ops.projected_norm])
def test_factors_that_require_grad_are_refused(operator: Callable, name: str) -> None:
    given_factors = factors("per-row", 4, 5, 2)
    given_factors[name].requires_grad_()
    text = rf"{operator.__name__}: {name} must not require grad, got requires_grad=True; train"
    for x in (features(4, 5), features(4, 5).requires_grad_()):
        with pytest.raises(RuntimeError, match=text):
            operator(x, **given_factors)
        with torch.no_grad():
            operator(x, **given_factors)


def in_place_calls() -> dict[str, Callable]:
    return {
        "project_": ops.project_,
        "raw project_": lambda *args, **kwargs: RAW.project_(*args, **kwargs),
        "fold_": lambda *args, **kwargs: ops.fold_(*args, **kwargs, dim=1),
        "raw fold_": lambda *args, **kwargs: RAW.fold_.default(*args, **kwargs, dim=1),
    }


@pytest.fixture(params=list(in_place_calls()))
def write(request: pytest.FixtureRequest) -> Callable:
    return in_place_calls()[request.param]


def test_a_write_raises_the_version(write: Callable) -> None:
    given_factors = factors("strength", 4, 5, 2)
    x = features(4, 5)
    parameter = torch.nn.Parameter(features(4, 5))
    write(x, **given_factors)
    assert x._version == 1
    for guard in (torch.no_grad, torch.inference_mode):
        before = parameter._version
        with guard():
            write(parameter, **given_factors)
        assert parameter._version == before + 1


def test_a_write_to_what_backward_needs_is_found(write: Callable) -> None:
    x = features(4, 5).requires_grad_()
    squared = (x * 1).square()
    saved = squared.grad_fn._saved_self
    with torch.no_grad():
        write(saved, **factors("strength", 4, 5, 2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


@pytest.mark.parametrize("tracked", [0, "read", "write", "strength"])
def test_operands_that_autograd_tracks_are_refused(write: Callable, tracked: str | int) -> None:
    for leaf in (True, False):
        given_factors = factors("strength", 4, 5, 2)
        x = features(4, 5)
        target = x if tracked == 0 else given_factors[tracked]
        target.requires_grad_()
        if not leaf:
            target = target * 1
            x, given_factors = (
                (target, given_factors) if tracked == 0 else (x, given_factors | {tracked: target})
            )
        before = x.detach().clone()
        with pytest.raises(RuntimeError, match=r"must not require grad in grad mode, got"):
            write(x, **given_factors)
        assert torch.equal(x, before)
        with torch.no_grad():
            write(x, **given_factors)
        assert not torch.equal(x, before)


def test_inference_tensors(write: Callable) -> None:
    given_factors = factors("strength", 4, 5, 2)
    with torch.inference_mode():
        x = features(4, 5)
        want = ops.project(x, **given_factors)
        write(x, **given_factors)
        inside = {name: factor.clone() for name, factor in given_factors.items()}
        write(x.clone(), **inside)
    assert torch.equal(x, want)
    with pytest.raises(RuntimeError, match="must be a normal tensor outside inference mode"):
        write(x, **given_factors)
    assert torch.equal(ops.project(x, **inside), ops.project(want, **given_factors))
