"""Derivatives in x, backward, forward and in torch.func, and the rules for writes in place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import HALF, OPTIONS, factors, features
from derivatives import (
    FUNCTIONS,
    TRANSFORMS,
    differentiable,
    dual_tangent,
    index_of,
    plain,
    project_rows,
    spans_of,
)
from torch import Tensor, func
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from clipproj import ops

RAW = torch.ops.clipproj


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("k", [0, 3])
def test_gradcheck(option: str, k: int) -> None:
    x = features(6, 5, torch.float64).view(2, 3, 5).requires_grad_()
    given_factors = factors(option, 6, 5, k, torch.float64)
    for function in differentiable(given_factors).values():
        assert torch.autograd.gradcheck(
            function,
            x,
            check_forward_ad=True,
            check_batched_grad=True,
            check_batched_forward_grad=True,
        )
        assert torch.autograd.gradgradcheck(function, x, check_fwd_over_rev=True)


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


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("option", ["symmetric", "offset", "strength"])
def test_transforms(option: str, transform: str, name: str) -> None:
    given_factors = factors(option, 6, 5, 2, torch.float64)
    x, v = features(6, 5, torch.float64), features(6, 5, torch.float64)
    derive = TRANSFORMS[transform]
    found = derive(differentiable(given_factors)[name], x, v)
    torch.testing.assert_close(found, derive(plain(given_factors)[name], x, v))


@pytest.mark.parametrize("transform", ["dual numbers", "jvp", "grad", "hessian"])
def test_compiled_transforms(transform: str) -> None:
    given_factors = factors("strength", 6, 5, 2)
    function = differentiable(given_factors)["normalize"]
    x, v = features(6, 5), features(6, 5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def derive(x: Tensor, v: Tensor) -> Tensor:
        return TRANSFORMS[transform](function, x, v)

    torch.testing.assert_close(derive(x, v), TRANSFORMS[transform](function, x, v))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_autograd(name: str) -> None:
    function = differentiable(factors("strength", 6, 5, 2))[name]
    x = features(6, 5).requires_grad_()
    (want,) = torch.autograd.grad(function(x).sin().sum(), x)
    loss = function(x).sin().sum()

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: loss.backward(), backend="aot_eager")()
    torch.testing.assert_close(x.grad, want)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_tangent_is_rounded_once(device: str, dtype: torch.dtype) -> None:
    given_factors = factors("oblique", 9, 64, 8, dtype, device)
    x, v = features(9, 64, dtype, device), features(9, 64, dtype, device)
    wide = {name: factor.double() for name, factor in given_factors.items()}
    for name, function in differentiable(given_factors).items():
        found = dual_tangent(function, x, v)
        want = dual_tangent(plain(wide)[name], x.double(), v.double())
        assert found.dtype == function(x).dtype
        eps = max(torch.finfo(found.dtype).eps / 2, 32 * torch.finfo(torch.float32).eps)
        assert ((found.double() - want).abs() <= 1.05 * eps * want.abs() + 1e-5).all()


def test_vmap_keeps_the_bits() -> None:
    x = features(24, 5).view(4, 6, 5)
    given_factors = factors("per-row", 6, 5, 2)
    for name, function in differentiable(given_factors).items():
        want = torch.stack([function(one) for one in x])
        assert torch.equal(func.vmap(function)(x), want), name
        assert torch.equal(func.vmap(function, in_dims=1)(x.transpose(0, 1)), want), name
    many = [factors("per-row", 6, 5, 2) for _ in x]
    stacked = {name: torch.stack([one[name] for one in many]) for name in given_factors}
    found = func.vmap(lambda x, given: ops.project(x, **given))(x, stacked)
    want = torch.stack([ops.project(x, **given) for x, given in zip(x, many, strict=True)])
    assert torch.equal(found, want)


@pytest.mark.parametrize("name", ["read", "write", "offset", "strength"])
@pytest.mark.parametrize("operator", [ops.project, ops.projected_norm, project_rows])
def test_factors_that_require_grad_are_refused(operator: Callable, name: str) -> None:
    given_factors = factors("per-row", 4, 5, 2)
    given_factors[name].requires_grad_()
    text = rf"{operator.__name__}: {name} must not require grad in grad mode, got .*; train"
    for x in (features(4, 5), features(4, 5).requires_grad_()):
        with pytest.raises(RuntimeError, match=text):
            operator(x, **given_factors)
        with torch.no_grad():
            operator(x, **given_factors)


def test_tracing_adds_no_nodes() -> None:
    given_factors = factors("strength", 6, 5, 2)

    def function(x: Tensor) -> None:
        ops.project(x, **given_factors)
        ops.projected_norm(x, **given_factors)
        ops.project_(x, **given_factors)
        ops.fold_(x, **given_factors, dim=1)
        ops.project_out(x, **given_factors, out=x)

    graph = make_fx(function)(features(6, 5)).graph
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    assert calls == [
        RAW.project.default,
        RAW.projected_norm.default,
        RAW.project_.default,
        RAW.fold_.default,
        RAW.project_out.default,
    ]


@pytest.mark.parametrize("name", ["read", "write", "offset", "strength"])
@pytest.mark.parametrize("operator", [ops.project, ops.projected_norm, project_rows])
def test_factors_with_a_tangent_are_refused(operator: Callable, name: str) -> None:
    x, given_factors = features(4, 5), factors("per-row", 4, 5, 2)
    factor = given_factors.pop(name)

    def function(factor: Tensor) -> Tensor:
        return operator(x, **given_factors, **{name: factor})

    text = f"{operator.__name__}: {name} must have no forward-mode tangent, got one; differentiate"
    for derive in (dual_tangent, TRANSFORMS["jvp"]):
        with pytest.raises(RuntimeError, match=text):
            derive(function, factor, torch.ones_like(factor))
    with pytest.raises(RuntimeError, match=f"{name} must not require grad in grad mode"):
        TRANSFORMS["grad"](function, factor, factor)


def test_a_subclass_that_takes_over_keeps_its_gradients() -> None:
    class Scaled(Tensor):
        """Plain to look at, times a parameter when it is used."""

        scale: Tensor

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            with torch._C.DisableTorchFunctionSubclass():
                args = [a * a.scale if isinstance(a, Scaled) else a for a in args]
                return function(*args, **kwargs or {})

    x = features(4, 5).as_subclass(Scaled)
    x.scale = torch.tensor(2.0, requires_grad=True)
    for function in differentiable(factors("oblique", 4, 5, 2)).values():
        assert function(x).requires_grad


def in_place_calls() -> dict[str, Callable]:
    return {
        "project_": ops.project_,
        "raw project_": lambda *args, **kwargs: RAW.project_(*args, **kwargs),
        "fold_": lambda *args, **kwargs: ops.fold_(*args, **kwargs, dim=1),
        "raw fold_": lambda *args, **kwargs: RAW.fold_.default(*args, **kwargs, dim=1),
        "project_out": lambda x, **kwargs: ops.project_out(x, **kwargs, out=x),
        "raw project_out": lambda x, **kwargs: RAW.project_out(x, **kwargs, out=x),
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


@pytest.mark.parametrize("tracked", [0, "read", "write", "strength"])
def test_operands_with_a_tangent_are_refused(write: Callable, tracked: str | int) -> None:
    x, given_factors = features(4, 5), factors("strength", 4, 5, 2)
    target = x if tracked == 0 else given_factors[tracked]

    def function(operand: Tensor) -> Tensor:
        operand = operand.clone()
        if tracked == 0:
            write(operand, **given_factors)
            return operand
        out = x.clone()
        write(out, **given_factors | {tracked: operand})
        return out

    text = "must have no forward-mode tangent, got one; differentiate project"
    for derive in (dual_tangent, TRANSFORMS["jvp"], TRANSFORMS["jvp under no_grad"]):
        with pytest.raises(RuntimeError, match=text):
            derive(function, target, torch.ones_like(target))
    compiled = torch.compile(dual_tangent, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=text):
        compiled(function, target, torch.ones_like(target))
    with pytest.raises(RuntimeError, match=r"must not require grad in grad mode, got"):
        TRANSFORMS["grad"](function, target, target)


def test_writes_beside_a_transform(write: Callable) -> None:
    given_factors = factors("strength", 4, 5, 2)
    x = features(4, 5)
    want = ops.project(x, **given_factors)

    def function(other: Tensor) -> Tensor:
        write(x, **given_factors)
        return other * 2

    tangent = TRANSFORMS["jvp"](function, features(4, 5), torch.ones(4, 5))
    assert torch.equal(x, want)
    assert (tangent == 2).all()


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


def test_a_refused_write_is_not_counted(write: Callable) -> None:
    x, given_factors = features(4, 5), factors("strength", 4, 5, 2)
    given_factors["read"] = given_factors["read"][:, :3]
    before = x._version
    with pytest.raises(RuntimeError, match="read must be"):
        write(x, **given_factors)
    assert x._version == before


def flagged(x: Tensor, flag: Tensor) -> Tensor:
    return project_rows(x, **factors("offset", 4, 5, 2), flag=flag)


def raw_flagged(x: Tensor, flag: Tensor) -> Tensor:
    given = factors("offset", 4, 5, 2)
    spans = torch.tensor(spans_of(2), dtype=torch.int32)
    factors_of = (given["read"], given["write"], given["offset"])
    return RAW.project_rows.flag(x, *factors_of, spans, index_of(x), flag=flag)


@pytest.mark.parametrize("call", [flagged, raw_flagged])
def test_a_write_to_a_flag_is_counted(call: Callable) -> None:
    flag = torch.zeros(1, dtype=torch.int32)
    for guard in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for x in (features(4, 5), features(4, 5).requires_grad_()):
            before = flag._version
            with guard():
                call(x, flag)
            assert flag._version == before + 1
    before = flag._version
    with pytest.raises(RuntimeError, match="read must be"):
        call(features(4, 6), flag)
    assert flag._version == before
    with torch.inference_mode():
        inside = flag.clone()
        call(features(4, 5), inside)
    with pytest.raises(RuntimeError, match="project_rows: flag must be a normal tensor outside"):
        call(features(4, 5), inside)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_beside_a_flag(transform: str) -> None:
    given_factors = factors("strength", 6, 5, 2, torch.float64)
    x, v = features(6, 5, torch.float64), features(6, 5, torch.float64)
    flag = torch.zeros(1, dtype=torch.int32)
    derive = TRANSFORMS[transform]
    found = derive(lambda x: project_rows(x, **given_factors, normalize=True, flag=flag), x, v)
    want = derive(lambda x: project_rows(x, **given_factors, normalize=True), x, v)
    assert torch.equal(found, want)
    assert flag._version > 0


def test_a_batch_of_flags_is_refused() -> None:
    flags = torch.zeros(3, 1, dtype=torch.int32)
    text = "project_rows: flag must be the same for all of a torch.vmap, got a batch"
    with pytest.raises(RuntimeError, match=text):
        func.vmap(flagged, randomness="same")(features(12, 5).view(3, 4, 5), flags)


def test_vmap_over_banks_and_indices() -> None:
    x, given_factors = features(12, 5).view(3, 4, 5), factors("offset", 4, 5, 2)
    spans = torch.tensor(spans_of(2), dtype=torch.int32)
    index = torch.randint(-1, 3, (3, 4), dtype=torch.int32)
    read, write, offset = given_factors.values()

    def function(x: Tensor, spans: Tensor, index: Tensor) -> Tensor:
        return ops.project_rows(x, read, write, offset, spans, index)

    want = torch.stack([function(x[i], spans, index[i]) for i in range(3)])
    assert torch.equal(func.vmap(function, in_dims=(0, None, 0))(x, spans, index), want)
    turned = torch.stack([spans, spans.flip(0)])
    found = func.vmap(function, in_dims=(None, 0, None))(x[0], turned, index[0])
    assert torch.equal(found, torch.stack([function(x[0], one, index[0]) for one in turned]))
