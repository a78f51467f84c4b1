"""Every refusal, eager and under FakeTensorMode, with the same words."""

from __future__ import annotations

import inspect
import itertools
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipproj import ops
from clipproj.ops import _checks

MODES = {"eager": nullcontext, "fake": FakeTensorMode}


def t(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


R = (2, 8)


def label(value: object) -> str:
    return value if isinstance(value, str) else ""


FEATURES = "must be float32, bfloat16 or float16 (float64 on the CPU), got"

# What to change in a good call (x [3, 8], rank 2), and the text after "op: ". Values are functions,
# so that each mode makes its own tensors.
FACTORS: list[tuple[dict[str, Any], str]] = [
    ({"read": lambda: t(2, 7)}, "read must be [k, d] with d=8, got [2, 7]"),
    ({"read": lambda: t(8)}, "read must be [k, d] with d=8, got [8]"),
    ({"read": lambda: t(1, 2, 8)}, "read must be [k, d] with d=8, got [1, 2, 8]"),
    ({"write": lambda: t(3, 8)}, "write must be [k, d] with k=2 and d=8, got [3, 8]"),
    ({"write": lambda: t(2, 1)}, "write must be [k, d] with k=2 and d=8, got [2, 1]"),
    ({"write": lambda: t(8)}, "write must be [k, d] with k=2 and d=8, got [8]"),
    (
        {"read": lambda: t(*R, dtype=torch.bfloat16)},
        "read must be float32 for float32 features, got bfloat16",
    ),
    (
        {"write": lambda: t(*R, dtype=torch.float64)},
        "write must be float32 for float32 features, got float64",
    ),
    (
        {"x": lambda: t(3, 8, dtype=torch.float64)},
        "read must be float64 for float64 features, got float32",
    ),
    ({"offset": lambda: t(3)}, "offset must be [k] with k=2, got [3]"),
    ({"offset": lambda: t(1, 2)}, "offset must be [k] with k=2, got [1, 2]"),
    (
        {"offset": lambda: t(2, dtype=torch.float16)},
        "offset must be float32 for float32 features, got float16",
    ),
    (
        {"strength": lambda: t(dtype=torch.float64)},
        "strength must be float32 for float32 features, got float64",
    ),
]
ROWS: list[tuple[dict[str, Any], str]] = [
    ({"x": lambda: t()}, "x must be [..., d] with d >= 1, got []"),
    ({"x": lambda: t(3, 0)}, "x must be [..., d] with d >= 1, got [3, 0]"),
    ({"x": lambda: t(3, 8, dtype=torch.int32)}, f"x {FEATURES} int32"),
    ({"x": lambda: t(3, 8, dtype=torch.bool)}, f"x {FEATURES} bool"),
    ({"strength": lambda: t(2)}, "strength must be 0-dim or [n] with n=3, got [2]"),
    ({"strength": lambda: t(3, 1)}, "strength must be 0-dim or [n] with n=3, got [3, 1]"),
    (
        {"x": lambda: t(3, 2, 8), "strength": lambda: t(3)},
        "strength must be 0-dim or [n] with n=6, got [3]",
    ),
]
GRAM: list[tuple[dict[str, Any], str]] = [
    ({"gram": lambda: t(3, 3)}, "gram must be [k, k] with k=2, got [3, 3]"),
    ({"gram": lambda: t(2, 3)}, "gram must be [k, k] with k=2, got [2, 3]"),
    ({"gram": lambda: t(2)}, "gram must be [k, k] with k=2, got [2]"),
    (
        {"gram": lambda: t(2, 2, dtype=torch.float64)},
        "gram must be float32 for float32 features, got float64",
    ),
    (
        {"read": lambda: t(257, 8), "write": lambda: t(257, 8), "gram": lambda: t(257, 257)},
        "gram must have at most 256 columns, got 257",
    ),
]
BANK_GRAM: list[tuple[dict[str, Any], str]] = [
    ({"gram": lambda: t(3, 2)}, "gram must be [k, g] with k=2, got [3, 2]"),
    ({"gram": lambda: t(2)}, "gram must be [k, g] with k=2, got [2]"),
    ({"gram": lambda: t(2, 257)}, "gram must have at most 256 columns, got 257"),
    *GRAM[3:4],
]
INT = torch.int32
BANK: list[tuple[dict[str, Any], str]] = [
    ({"spans": lambda: t(4, dtype=INT)}, "spans must be [m, 2], got [4]"),
    ({"spans": lambda: t(2, 3, dtype=INT)}, "spans must be [m, 2], got [2, 3]"),
    ({"spans": lambda: t(2, 2, dtype=torch.int64)}, "spans must be int32, got int64"),
    ({"spans": lambda: t(2, 2)}, "spans must be int32, got float32"),
    ({"index": lambda: t(2, dtype=INT)}, "index must be [n] with n=3, got [2]"),
    ({"index": lambda: t(3, 1, dtype=INT)}, "index must be [n] with n=3, got [3, 1]"),
    ({"index": lambda: t(dtype=INT)}, "index must be [n] with n=3, got []"),
    ({"x": lambda: t(3, 2, 8)}, "index must be [n] with n=6, got [3]"),
    ({"index": lambda: t(3, dtype=torch.int64)}, "index must be int32, got int64"),
    ({"index": lambda: t(3, dtype=torch.uint8)}, "index must be int32, got uint8"),
    ({"index": lambda: t(3, dtype=torch.bool)}, "index must be int32, got bool"),
    ({"flag": lambda: t(2, dtype=INT)}, "flag must have one element, got [2]"),
    ({"flag": lambda: t(0, dtype=INT)}, "flag must have one element, got [0]"),
    ({"flag": lambda: t(1, dtype=torch.bool)}, "flag must be int32, got bool"),
]
OVERLAP = "must not overlap itself to be written, got strides that repeat elements"
FLAT = (
    "must have leading dims that flatten to one stride, got strides of a permuted view; "
    "use project()"
)
IN_PLACE: list[tuple[dict[str, Any], str]] = [
    ({"x": lambda: t(1, 8).expand(3, 8)}, f"x {OVERLAP}"),
    ({"x": lambda: t(3, 1).expand(3, 8)}, f"x {OVERLAP}"),
    ({"x": lambda: t(20).as_strided((3, 8), (4, 1))}, f"x {OVERLAP}"),
    ({"x": lambda: t(3, 2, 8).transpose(0, 1)}, f"x {FLAT}"),
]
OUT: list[tuple[dict[str, Any], str]] = [
    ({"out": lambda: t(3, 7)}, "out must be [3, 8] as x is, got [3, 7]"),
    ({"out": lambda: t(3, 1, 8)}, "out must be [3, 8] as x is, got [3, 1, 8]"),
    ({"out": lambda: t(3, 8, dtype=torch.float16)}, "out must be float32 as x is, got float16"),
    ({"out": lambda: t(1, 8).expand(3, 8)}, f"out {OVERLAP}"),
    ({"out": lambda: t(20).as_strided((3, 8), (4, 1))}, f"out {OVERLAP}"),
    (
        {"x": lambda: t(2, 3, 8), "out": lambda: t(3, 2, 8).transpose(0, 1)},
        f"out {FLAT}",
    ),
]
WEIGHT: list[tuple[dict[str, Any], str]] = [
    ({"x": lambda: t()}, "weight must be [in, d], [d, in] or a bias [d], got []"),
    ({"x": lambda: t(1, 3, 8)}, "weight must be [in, d], [d, in] or a bias [d], got [1, 3, 8]"),
    ({"dim": lambda: 2}, "dim must be in [-2, 1], got 2"),
    ({"dim": lambda: -3}, "dim must be in [-2, 1], got -3"),
    ({"x": lambda: t(8), "dim": lambda: 1}, "dim must be in [-1, 0], got 1"),
    ({"x": lambda: t(3, 0)}, "weight must have d >= 1 at dim 1, got [3, 0]"),
    ({"x": lambda: t(0, 3), "dim": lambda: -2}, "weight must have d >= 1 at dim 0, got [0, 3]"),
    ({"x": lambda: t(3, 8, dtype=torch.int32)}, f"weight {FEATURES} int32"),
    ({"dim": lambda: 0}, "read must be [k, d] with d=3, got [2, 8]"),
    (
        {"offset": lambda: t(2)},
        "offset must come with a bias [d] to hold it, got a weight [3, 8]",
    ),
    ({"strength": lambda: t(3)}, "strength must be 0-dim, got [3]"),
    ({"x": lambda: t(1, 8).expand(3, 8)}, f"weight {OVERLAP}"),
    ({"x": lambda: t(3, 1).expand(3, 8)}, f"weight {OVERLAP}"),
]
# fold_ takes an offset with a bias only, so its offset refusals are asked about a bias.
BIAS = [({"x": lambda: t(8), "dim": lambda: 0} | change, text) for change, text in FACTORS[9:12]]
WEIGHT_FACTORS = [*FACTORS[:9], FACTORS[12], *BIAS]
HEAD: list[tuple[dict[str, Any], str]] = [
    ({"x": lambda: t()}, "x must be [..., in], got []"),
    ({"weight": lambda: t(8)}, "weight must be [d, in] with d >= 1 and in=8, got [8]"),
    ({"weight": lambda: t(8, 7)}, "weight must be [d, in] with d >= 1 and in=8, got [8, 7]"),
    ({"weight": lambda: t(0, 8)}, "weight must be [d, in] with d >= 1 and in=8, got [0, 8]"),
    ({"weight": lambda: t(5, 8)}, "read must be [k, d] with d=5, got [2, 8]"),
    (
        {"weight": lambda: t(8, 8, dtype=torch.bfloat16)},
        "weight must be float32 for float32 features, got bfloat16",
    ),
    (
        {"x": lambda: t(3, 8, dtype=torch.int32), "weight": lambda: t(8, 8, dtype=torch.int32)},
        f"x {FEATURES} int32",
    ),
    ({"bias": lambda: t(7)}, "bias must be [d] with d=8, got [7]"),
    ({"bias": lambda: t()}, "bias must be [d] with d=8, got []"),
    (
        {"bias": lambda: t(8, dtype=torch.float16)},
        "bias must be float32 for float32 features, got float16",
    ),
]
# A head's weight is checked against x before the factors are.
HEAD_FACTORS = FACTORS[:8] + FACTORS[9:] + ROWS[4:]
CLASSES: list[tuple[dict[str, Any], str]] = [
    ({"classes": lambda: t(8)}, "classes must be [C, d] with d=8, got [8]"),
    ({"classes": lambda: t(4, 7)}, "classes must be [C, d] with d=8, got [4, 7]"),
    (
        {"classes": lambda: t(4, 8, dtype=torch.bfloat16)},
        "classes must be float32 for float32 features, got bfloat16",
    ),
    ({"scale": lambda: t(1)}, "scale must be 0-dim, got [1]"),
    (
        {"scale": lambda: t(dtype=torch.float16)},
        "scale must be float32 for float32 features, got float16",
    ),
    ({"bias": lambda: t(3)}, "bias must be 0-dim or [C] with C=4, got [3]"),
    ({"bias": lambda: t(4, 1)}, "bias must be 0-dim or [C] with C=4, got [4, 1]"),
    (
        {"bias": lambda: t(dtype=torch.float64)},
        "bias must be float32 for float32 features, got float64",
    ),
    (
        {
            "x": lambda: t(3, 8, dtype=torch.bfloat16),
            "classes": lambda: t(4, 8, dtype=torch.bfloat16),
            "dtype": lambda: torch.float16,
        },
        "dtype must be None, bfloat16 or float32 for bfloat16 features, got float16",
    ),
]
ALONE: list[tuple[dict[str, Any], str]] = [
    ({"spans": lambda: None}, "spans and index must come together, got index alone"),
    ({"index": lambda: None}, "spans and index must come together, got spans alone"),
]
OPTIONAL_BANK = [row for row in BANK if row[0].keys() & {"spans", "index"}] + ALONE


def parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(ops, name)).parameters)


def refusals(name: str) -> list[tuple[dict[str, Any], str]]:
    """All that an operator of such arguments refuses."""
    given = parameters(name)
    if "dim" in given:
        return WEIGHT_FACTORS + WEIGHT
    rows = HEAD_FACTORS + HEAD if "weight" in given else FACTORS + ROWS
    rows = rows + OUT * ("out" in given) + CLASSES * ("classes" in given)
    if "spans" in given:
        required = given["spans"].default is inspect.Parameter.empty
        return rows + (BANK + BANK_GRAM if required else OPTIONAL_BANK + GRAM)
    return rows + GRAM + IN_PLACE * name.endswith("_")


TABLE = [(name, change, text) for name in ops.__all__ for change, text in refusals(name)]

GOOD: dict[str, Any] = {
    "x": lambda: t(3, 8),
    "weight": lambda: t(8, 8),
    "bias": lambda: None,
    "classes": lambda: t(4, 8),
    "read": lambda: t(*R),
    "write": lambda: t(*R),
    "offset": lambda: None,
    "strength": lambda: None,
    "scale": lambda: t(),
    "spans": lambda: t(2, 2, dtype=INT),
    "index": lambda: t(3, dtype=INT),
    "dim": lambda: 1,
    "gram": lambda: None,
}


def call(name: str, change: dict[str, Any]) -> None:
    """A good call but for the change, in which `x` is what is projected."""
    given = parameters(name)
    bank = given.get("spans")
    if bank and bank.default is None and not change.keys() & {"spans", "index"}:
        given.pop("spans"), given.pop("index")
    arguments = {key: make for key, make in GOOD.items() if key in given}
    if "x" not in given:
        arguments["x"] = GOOD["x"]
        del arguments["weight"]
    made = {key: make() for key, make in (arguments | change).items()}
    if "out" in given:
        made.setdefault("out", t(*made["x"].shape, dtype=made["x"].dtype))
    getattr(ops, name)(made.pop("x"), **made)


def refusal(name: str, change: dict[str, Any], mode: str) -> str | None:
    """What a call says; None for one that is fine."""
    with MODES[mode]():
        try:
            return call(name, change)
        except RuntimeError as error:
            return str(error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "change", "text"), TABLE, ids=label)
def test_refused(name: str, change: dict[str, Any], text: str, mode: str) -> None:
    assert refusal(name, change, mode) == f"{name}: {text}"


@pytest.mark.parametrize("name", ops.__all__)
def test_of_two_mistakes_both_modes_name_the_same(name: str) -> None:
    """The order of checks, csrc/check.h beside _checks.py."""
    changes = [change for other, change, _ in TABLE if other == name]
    for first, second in itertools.combinations(changes, 2):
        if not first.keys() & second.keys():
            both = first | second
            assert refusal(name, both, "fake") == refusal(name, both, "eager"), both


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ops.__all__)
def test_the_call_that_the_table_changes_is_fine(name: str, mode: str) -> None:
    with MODES[mode]():
        call(name, {})


@pytest.mark.parametrize("name", ops.__all__)
@pytest.mark.parametrize("strength", [1.0, 1, [1.0]])
def test_strength_is_no_number(name: str, strength: object) -> None:
    text = f"{name}: strength must be a tensor or None, got {type(strength).__name__}"
    with pytest.raises(TypeError, match=re.escape(text)):
        call(name, {"strength": lambda: strength})


@pytest.mark.parametrize("scale", [100.0, None])
def test_scale_is_no_number(scale: object) -> None:
    text = f"logits: scale must be a tensor, got {type(scale).__name__}"
    with pytest.raises(TypeError, match=re.escape(text)):
        call("logits", {"scale": lambda: scale})


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in ops.__all__
        for argument, parameter in list(parameters(name).items())[1:]
        if parameter.annotation in (Tensor, Tensor | None)
    ],
)
def test_devices_must_agree(name: str, argument: str) -> None:
    optional = {
        "offset": t(2),
        "strength": t(),
        "gram": t(2, 2),
        "flag": t(1, dtype=INT),
        "out": t(3, 8),
    }
    optional["bias"] = t() if name == "logits" else t(8)
    good = optional[argument] if argument in optional else GOOD[argument]()
    change: dict[str, Any] = {argument: lambda: torch.empty_like(good, device="meta")}
    if argument == "flag":
        change |= {"spans": GOOD["spans"], "index": GOOD["index"]}
    if (name, argument) == ("fold_", "offset"):  # which goes with a bias
        change |= {"x": lambda: t(8), "dim": lambda: 0}
    assert refusal(name, change, "eager") == f"{name}: {argument} must be on cpu, got meta"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("spans",), "spans and index must come together, got spans alone"),
        (("index",), "spans and index must come together, got index alone"),
        (("flag",), "flag must come with spans and index, got it alone"),
    ],
)
def test_parts_of_a_bank_come_together(given: tuple[str, ...], text: str) -> None:
    """For operators whose bank is optional."""
    parts = {"spans": t(2, 2, dtype=INT), "index": t(3, dtype=INT), "flag": t(1, dtype=INT)}
    arguments = [parts[name] if name in given else None for name in parts]
    with pytest.raises(RuntimeError) as caught:
        _checks.bank("linear", t(3, 8), *arguments)
    assert str(caught.value) == f"linear: {text}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ops.__all__)
def test_devices_must_agree_on_a_gpu(name: str) -> None:
    for argument in ("read", "write"):
        with pytest.raises(RuntimeError, match=f"{name}: {argument} must be on cpu, got cuda:0"):
            call(name, {argument: lambda: t(*R).cuda()})
    wide = {"x": lambda: t(3, 8, dtype=torch.float64).cuda()}
    if name == "linear":
        wide["weight"] = lambda: t(8, 8, dtype=torch.float64).cuda()
    with pytest.raises(RuntimeError, match=f"{name}: .* float64 on the CPU"):
        call(name, wide)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in ("project_", "project_out", "fold_")
        for argument in ("read", "write", "offset", "strength", "gram")
        if argument in parameters(name)
    ],
)
def test_memory_shared_with_a_factor_is_refused(name: str, argument: str) -> None:
    buffer = torch.ones(64)
    bias = name == "fold_" and argument == "offset"
    x = buffer[:8] if bias else buffer[:24].view(3, 8)
    other = {
        "read": buffer[7:23].view(2, 8),
        "write": buffer[7:23].view(2, 8),
        "offset": buffer[7:9],
        "strength": buffer[7],
        "gram": buffer[7:11].view(2, 2),
    }[argument]
    change = {"x": lambda: x, argument: lambda: other} | ({"dim": lambda: 0} if bias else {})
    if name == "project_out":
        change |= {"x": lambda: x.clone(), "out": lambda: x}
    subject = {"project_": "x", "project_out": "out", "fold_": "weight"}[name]
    text = f"{name}: {argument} must not share memory with {subject}, got overlapping storage"
    with pytest.raises(RuntimeError, match=re.escape(text)):
        call(name, change)
    assert (buffer == 1).all()
    call(name, change | {"out" if name == "project_out" else "x": lambda: x.clone()})


def test_neighbours_in_one_buffer_are_no_overlap() -> None:
    buffer = torch.ones(64)
    x, read = buffer[:24].view(3, 8), buffer[24:40].view(2, 8)
    call("project_", {"x": lambda: x, "read": lambda: read})


@pytest.mark.parametrize("name", ops.__all__)
def test_tensors_that_are_not_strided_are_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match="Sparse"):
        call(name, {"x": lambda: t(3, 8).to_sparse()})
    with pytest.raises(NotImplementedError, match="Sparse"):
        call(name, {"read": lambda: t(*R).to_sparse()})
    with pytest.raises(RuntimeError, match=r"got complex64|must be complex64"):
        call(name, {"x": lambda: t(3, 8, dtype=torch.complex64).conj()})
