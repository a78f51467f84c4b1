"""Derivatives of `linear` in x, weight and bias, and of `logits` in x."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import HALF, OPTIONS, factors, features
from derivatives import TRANSFORMS, dual_tangent, index_of, plain, spans_of
from torch import Tensor, func
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from clipproj import ops

RAW = torch.ops.clipproj
CHECKS = {
    "check_forward_ad": True,
    "check_batched_grad": True,
    "check_batched_forward_grad": True,
}
FUNCTIONS = ["linear", "normalize", "linear rows", "normalize rows", "logits", "logits rows"]


def rows(x: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The factors as a bank of three projectors, and each row's own."""
    spans = torch.tensor(spans_of(len(given["read"])), dtype=torch.int32, device=x.device)
    return given | {"spans": spans, "index": index_of(x)}


def logits(x: Tensor, classes: Tensor, *, scale: Tensor, **given: Any) -> Tensor:
    ordered = [given.pop(name, None) for name in ("read", "write", "offset", "strength")]
    return ops.logits(x, classes, *ordered, scale, **given)


def operands(d: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """A weight [d, d] and bias, so that functions map rows to rows, which serve as classes too."""
    weight = (features(d, d, torch.float64) / d**0.5).to(device, dtype)
    scale = torch.tensor(3.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return weight, features(1, d, dtype, device)[0], scale.to(device)


def differentiable(
    given: dict[str, Tensor], weight: Tensor, bias: Tensor, scale: Tensor
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each operator as a function of x."""

    def linear(x: Tensor, given: dict[str, Tensor], **options: bool) -> Tensor:
        return ops.linear(x, weight, bias, **given, **options)

    return {
        "linear": lambda x: linear(x, given),
        "normalize": lambda x: linear(x, given, normalize=True),
        "linear rows": lambda x: linear(x, rows(x, given)),
        "normalize rows": lambda x: linear(x, rows(x, given), normalize=True),
        "logits": lambda x: logits(x, weight, scale=scale, **given),
        "logits rows": lambda x: logits(x, weight, scale=scale, **rows(x, given)),
    }


def plain_functions(
    given: dict[str, Tensor], weight: Tensor, bias: Tensor, scale: Tensor
) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same out of torch's own operators, for factors without per-row strength."""
    update = plain(given)

    def head(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: update[name](functional.linear(x, weight, bias))

    return {
        "linear": head("project"),
        "normalize": head("normalize"),
        "linear rows": head("project_rows"),
        "normalize rows": head("normalize rows"),
        "logits": lambda x: scale * update["normalize"](x) @ weight.T,
        "logits rows": lambda x: scale * update["normalize rows"](x) @ weight.T,
    }


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("option", OPTIONS)
def test_gradcheck_in_x(option: str, name: str) -> None:
    x = features(4, 5, torch.float64).view(2, 2, 5).requires_grad_()
    given = factors(option, 4, 5, 3, torch.float64)
    function = differentiable(given, *operands(5, torch.float64))[name]
    assert torch.autograd.gradcheck(function, x, **CHECKS)
    assert torch.autograd.gradgradcheck(function, x, check_fwd_over_rev=True)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck_in_all_of_a_head(with_bias: bool, normalize: bool, per_row: bool) -> None:
    x = features(4, 3, torch.float64).view(2, 2, 3).requires_grad_()
    weight = features(5, 3, torch.float64).requires_grad_()
    inputs = [x, weight, *([features(1, 5, torch.float64)[0].requires_grad_()] * with_bias)]
    given = factors("per-row", 4, 5, 2, torch.float64)
    given = rows(x, given) if per_row else given

    def function(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.linear(x, weight, bias, **given, normalize=normalize)

    assert torch.autograd.gradcheck(function, inputs, **CHECKS)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("tracked", [(0,), (1,), (2,), (1, 2)])
def test_only_what_is_tracked_has_a_gradient(tracked: tuple[int, ...]) -> None:
    inputs = [features(6, 3), features(5, 3), features(1, 5)[0]]
    for i in tracked:
        inputs[i].requires_grad_()
    given = factors("offset", 6, 5, 2)
    ops.linear(*inputs, **given).sin().sum().backward()
    want = torch.autograd.grad(
        plain(given)["project"](functional.linear(*inputs)).sin().sum(),
        [inputs[i] for i in tracked],
    )
    torch.testing.assert_close([inputs[i].grad for i in tracked], list(want))
    assert all(inputs[i].grad is None for i in {0, 1, 2} - {*tracked})


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str, name: str) -> None:
    given, rest = factors("offset", 6, 5, 2, torch.float64), operands(5, torch.float64)
    x, v = features(6, 5, torch.float64), features(6, 5, torch.float64)
    derive = TRANSFORMS[transform]
    found = derive(differentiable(given, *rest)[name], x, v)
    torch.testing.assert_close(found, derive(plain_functions(given, *rest)[name], x, v))


WEIGHT_TRANSFORMS = ["dual numbers", "jvp", "linearize", "vjp", "grad", "per-sample gradients"]


@pytest.mark.parametrize("transform", WEIGHT_TRANSFORMS)
def test_transforms_in_the_weight(transform: str) -> None:
    given = factors("strength", 6, 7, 2, torch.float64)
    x, weight, v = (features(n, 5, torch.float64) for n in (6, 7, 7))
    update, derive = plain(given)["project"], TRANSFORMS[transform]

    def operator(weight: Tensor) -> Tensor:
        return ops.linear(x, weight.expand(7, 5), None, **given)

    found = derive(operator, weight, v)
    torch.testing.assert_close(
        found, derive(lambda weight: update(x @ weight.expand(7, 5).T), weight, v)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_autograd(name: str) -> None:
    function = differentiable(factors("strength", 6, 5, 2), *operands(5, torch.float32))[name]
    x = features(6, 5).requires_grad_()
    (want,) = torch.autograd.grad(function(x).sin().sum(), x)
    loss = function(x).sin().sum()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: loss.backward(), backend="aot_eager")()
    torch.testing.assert_close(x.grad, want)


@pytest.mark.parametrize("transform", ["jvp", "grad", "hessian"])
@pytest.mark.parametrize("name", ["normalize rows", "logits rows"])
def test_compiled_transforms(name: str, transform: str) -> None:
    function = differentiable(factors("strength", 6, 5, 2), *operands(5, torch.float32))[name]
    x, v = features(6, 5), features(6, 5)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def derive(x: Tensor, v: Tensor) -> Tensor:
        return TRANSFORMS[transform](function, x, v)

    torch.testing.assert_close(derive(x, v), TRANSFORMS[transform](function, x, v))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_derivatives_keep_dtypes(device: str, dtype: torch.dtype, name: str) -> None:
    given, rest = factors("oblique", 9, 64, 8, dtype, device), operands(64, dtype, device)
    x = features(9, 64, dtype, device).requires_grad_()
    v = features(9, 64, dtype, device)
    wide = {key: value.double() for key, value in given.items()}
    plain_rest = [t.double() for t in rest]
    function = differentiable(given, *rest)[name]
    want_function = plain_functions(wide, *plain_rest)[name]
    (found,) = torch.autograd.grad(function(x), x, v)
    wide_x = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(want_function(wide_x), wide_x, v.double())
    assert found.dtype == dtype
    # Two products of the dtype and one of the result, each rounded within.
    torch.testing.assert_close(
        found.double(), want, rtol=0, atol=float(8 * torch.finfo(dtype).eps * want.abs().max())
    )
    found = dual_tangent(function, x.detach(), v)
    want = dual_tangent(want_function, x.detach().double(), v.double())
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.double(), want, rtol=0, atol=float(8 * torch.finfo(dtype).eps * want.abs().max())
    )


def test_gradient_of_float32_logits_of_half_features() -> None:
    x = features(9, 64, torch.bfloat16).requires_grad_()
    classes, _, scale = operands(64, torch.bfloat16)
    given = factors("oblique", 9, 64, 8, torch.bfloat16)
    out = logits(x, classes, scale=scale, dtype=torch.float32, **given)
    assert out.dtype == torch.float32
    (found,) = torch.autograd.grad(out.sin().sum(), x)
    (want,) = torch.autograd.grad(
        logits(x.float(), classes.float(), scale=scale, **given).sin().sum(), x
    )
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, want, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_over_rows(name: str) -> None:
    x = features(24, 5, torch.float64).view(4, 6, 5)
    given = factors("per-row", 6, 5, 2, torch.float64)
    function = differentiable(given, *operands(5, torch.float64))[name]
    want = torch.stack([function(one) for one in x])
    torch.testing.assert_close(func.vmap(function)(x), want)
    torch.testing.assert_close(func.vmap(function, in_dims=1)(x.transpose(0, 1)), want)


def test_vmap_over_everything() -> None:
    x, weights = features(24, 5).view(4, 6, 5), features(28, 5).view(4, 7, 5)
    given = [rows(x[0], factors("per-row", 6, 7, 2)) for _ in x]
    for i, one in enumerate(given):
        one["index"] = one["index"].roll(i)
    stacked = {name: torch.stack([one[name] for one in given]) for name in given[0]}
    found = func.vmap(lambda x, w, given: ops.linear(x, w, None, **given))(x, weights, stacked)
    want = [ops.linear(x, w, None, **one) for x, w, one in zip(x, weights, given, strict=True)]
    assert torch.equal(found, torch.stack(want))


@pytest.mark.parametrize("operator", ["linear", "logits"])
def test_a_flag_changes_nothing_but_itself(operator: str) -> None:
    """Values, gradients and what autocast casts are as without it, and the write is counted."""
    weight, bias, scale = operands(5, torch.float32)
    given = rows(features(6, 5), factors("oblique", 6, 5, 2))
    flag = torch.zeros(1, dtype=torch.int32)

    def call(x: Tensor, **more: Tensor) -> Tensor:
        if operator == "linear":
            return ops.linear(x, weight, bias, **given, **more)
        return logits(x, weight, scale=scale, **given, **more)

    x = features(6, 5).requires_grad_()
    for cast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            before = flag._version
            found, want = call(x, flag=flag), call(x)
            assert flag._version == before + 1
            assert found.dtype == want.dtype
            assert torch.equal(found, want)
            gradients = [torch.autograd.grad(y.float().sin().sum(), x)[0] for y in (found, want)]
            assert torch.equal(*gradients)
    del given["spans"], given["index"]
    with pytest.raises(RuntimeError, match=f"{operator}: flag must come with spans and index"):
        call(x, flag=flag)


FACTORS = ["read", "write", "offset", "strength"]


def call(operator: str, changed: dict[str, Tensor]) -> Tensor:
    weight, bias, scale = operands(5, torch.float32)
    x = features(4, 5)
    if operator == "linear":
        return ops.linear(x, weight, bias, **factors("per-row", 4, 5, 2) | changed)
    given = {"classes": weight, "scale": scale, "bias": bias, **factors("per-row", 4, 5, 2)}
    return logits(x, **given | changed)


@pytest.mark.parametrize(
    ("operator", "name"),
    [("linear", name) for name in FACTORS]
    + [("logits", name) for name in (*FACTORS, "classes", "scale", "bias")],
)
def test_what_has_no_formula_is_refused(operator: str, name: str) -> None:
    weight, bias, scale = operands(5, torch.float32)
    given = {"classes": weight, "scale": scale, "bias": bias, **factors("per-row", 4, 5, 2)}
    tracked = given[name].clone().requires_grad_()
    text = f"{operator}: {name} must not require grad in grad mode, got requires_grad=True; train"
    with pytest.raises(RuntimeError, match=text):
        call(operator, {name: tracked})
    with torch.no_grad():
        call(operator, {name: tracked})
    text = f"{operator}: {name} must have no forward-mode tangent, got one; differentiate"
    with pytest.raises(RuntimeError, match=text):
        dual_tangent(lambda t: call(operator, {name: t}), given[name], given[name])


def test_tracing_adds_no_nodes() -> None:
    given, (weight, bias, scale) = factors("strength", 6, 5, 2), operands(5, torch.float32)

    def function(x: Tensor) -> None:
        ops.linear(x, weight, bias, **given)
        logits(x, weight, scale=scale, **given)

    graph = make_fx(function)(features(6, 5)).graph
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    assert calls == [RAW.linear.default, RAW.logits.default]
