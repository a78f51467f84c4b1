"""CUDA: what is refused before a launch, and what a launch does that can refuse nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import assert_bits
from every_op import OPERATORS, Inputs, inputs
from torch import Tensor

from clipproj import ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
INT_MAX, INT_MIN = 2**31 - 1, -(2**31)
N, K = 64, 20  # rows, directions of the bank
PER_ROW: dict[str, Callable[[Inputs, Tensor | None], Tensor]] = {
    "project_rows": lambda g, flag: ops.project_rows(
        g.x, g.read, g.write, g.offset, g.spans, g.index, g.strength, normalize=True, flag=flag
    ),
    "linear": lambda g, flag: ops.linear(
        g.wide,
        g.weight,
        g.bias,
        g.read,
        g.write,
        g.offset,
        g.strength,
        spans=g.spans,
        index=g.index,
        flag=flag,
    ),
    "logits": lambda g, flag: ops.logits(
        g.x,
        g.classes,
        g.read,
        g.write,
        g.offset,
        g.strength,
        g.scale,
        spans=g.spans,
        index=g.index,
        flag=flag,
    ),
}
each_per_row = pytest.mark.parametrize("name", PER_ROW)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("field", ["read", "write", "offset", "strength", "spans", "index", "gram"])
def test_arguments_of_another_device(name: str, field: str) -> None:
    given = inputs(N, 512, K)
    used = OPERATORS[name].__code__.co_names
    if field not in used:
        pytest.skip(f"this call has no {field}")
    setattr(given, field, getattr(given, field).cpu())
    with pytest.raises(RuntimeError, match=f"{field} must be on cuda:0, got cpu"):
        OPERATORS[name](given)


@pytest.mark.parametrize("name", OPERATORS)
def test_float64_is_for_the_cpu(name: str) -> None:
    given = inputs(N, 512, K, torch.float64)
    for field in ("read", "write", "offset", "strength", "one_strength"):
        setattr(given, field, getattr(given, field).double())
    with pytest.raises(RuntimeError, match=r"must be float32, bfloat16 or float16"):
        OPERATORS[name](given)


@each_per_row
@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("bad", [5, 6, -2, INT_MAX, INT_MIN])
def test_a_bad_index_spoils_its_row_alone(name: str, bad: int, flagged: bool) -> None:
    given = inputs(N, 512, K)
    flag = torch.zeros(1, dtype=torch.int32, device="cuda") if flagged else None
    want = PER_ROW[name](given, flag)
    assert not want.isnan().any()
    assert flag is None or flag.item() == 0
    spoilt = torch.zeros(N, dtype=torch.bool, device="cuda")
    spoilt[[0, 13, N - 1]] = True
    given.index[spoilt] = bad
    out = PER_ROW[name](given, flag)
    assert out[spoilt].isnan().all()
    assert_bits(out[~spoilt], want[~spoilt])
    assert flag is None or flag.item() == 1


@each_per_row
@pytest.mark.parametrize(
    "bad", [[K, 1], [0, K + 1], [-1, 2], [3, -1], [INT_MAX, INT_MAX], [1, INT_MAX], [INT_MIN, 1]]
)
def test_a_span_outside_the_bank_spoils_its_rows_alone(name: str, bad: list[int]) -> None:
    given = inputs(N, 512, K)
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    want = PER_ROW[name](given, flag)
    given.spans[2] = torch.tensor(bad, dtype=torch.int32)
    spoilt = given.index == 2
    assert spoilt.any()
    out = PER_ROW[name](given, flag)
    assert out[spoilt].isnan().all()
    assert_bits(out[~spoilt], want[~spoilt])
    assert flag.item() == 1


@each_per_row
def test_a_flag_is_raised_never_lowered(name: str) -> None:
    given = inputs(N, 512, K)
    flag = torch.ones(1, dtype=torch.int32, device="cuda")
    PER_ROW[name](given, flag)
    assert flag.item() == 1


@pytest.mark.parametrize("bad", [[0, -K - 1], [K, -1], [-1, -1], [0, INT_MIN]])
@pytest.mark.parametrize("with_gram", [True, False])
def test_a_one_sided_span_that_there_is_not_spoils_its_rows_alone(
    with_gram: bool, bad: list[int]
) -> None:
    """Beyond the bank, or of more directions than gram has columns; without gram any."""
    given = inputs(N, 512, K, torch.float32)
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    spans = given.sided if with_gram else given.spans

    def out() -> Tensor:
        bank = (given.read, given.write, given.offset, spans, given.index, given.strength)
        gram = given.gram if with_gram else None
        return ops.project_rows(given.x, *bank, gram=gram, flag=flag)

    want = out()
    assert flag.item() == 0
    spans[2] = torch.tensor(bad if with_gram else [0, -1], dtype=torch.int32)
    spoilt = given.index == 2
    assert spoilt.any()
    got = out()
    assert got[spoilt].isnan().all()
    assert_bits(got[~spoilt], want[~spoilt])
    assert flag.item() == 1
