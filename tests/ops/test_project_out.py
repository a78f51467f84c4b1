"""`project_out`: the bits of `project` wherever it may write, and where it may not."""

from __future__ import annotations

import pytest
import torch
from cases import OPTIONS, SHAPES, assert_bits, factors, features
from torch import Tensor

from clipproj import Projector, ops


@pytest.mark.pairwise
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_bits_are_those_of_project(
    device: str, dtype: torch.dtype, n: int, d: int, k: int, option: str
) -> None:
    x = features(n, d, dtype, device)
    before = x.clone()
    given_factors = factors(option, n, d, k, dtype, device)
    for normalize in (False, True):
        out = torch.full_like(x, float("nan"))
        found = ops.project_out(x, **given_factors, normalize=normalize, out=out)
        assert found is out
        assert_bits(out, ops.project(x, **given_factors, normalize=normalize))
    assert_bits(x, before)


def views(device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """[4, 6, 17], by how it lies in memory."""
    return {
        "dense": features(24, 17, dtype, device).view(4, 6, 17),
        "columns": features(24, 40, dtype, device).view(4, 6, 40)[..., 3:20],
        "every other column": features(24, 40, dtype, device).view(4, 6, 40)[..., 1:35:2],
        "transposed": features(17, 24, dtype, device).T.unflatten(0, (4, 6)),
        "permuted": features(24, 17, dtype, device).view(6, 4, 17).transpose(0, 1),
        "expanded": features(6, 17, dtype, device).expand(4, 6, 17),
    }


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("k", [0, 5])
def test_layouts(device: str, dtype: torch.dtype, k: int, normalize: bool) -> None:
    given_factors = factors("per-row", 24, 17, k, dtype, device)
    for x in views(device, dtype).values():
        want = ops.project(x, **given_factors, normalize=normalize)
        for target, out in views(device, dtype).items():
            if target not in ("permuted", "expanded"):
                ops.project_out(x, **given_factors, normalize=normalize, out=out)
                assert_bits(out, want)


@pytest.mark.parametrize("d", [1, 17])
@pytest.mark.parametrize("leading", [(), (1,), (0, 3), (2, 0), (1, 3, 1)])
def test_leading_dims(device: str, dtype: torch.dtype, leading: tuple[int, ...], d: int) -> None:
    x = torch.randn(*leading, d).to(device, dtype)
    given_factors = factors("oblique", 1, d, 1, dtype, device)
    out = ops.project_out(x, **given_factors, out=torch.empty_like(x))
    assert_bits(out, ops.project(x, **given_factors))


def test_the_rest_of_a_buffer_is_left_alone(device: str, dtype: torch.dtype) -> None:
    block = features(9, 40, dtype, device)
    before = block.clone()
    x = features(5, 17, dtype, device)
    ops.project_out(x, **factors("oblique", 5, 17, 4, dtype, device), out=block[2:7, 3:20])
    inside = torch.zeros_like(block, dtype=torch.bool)
    inside[2:7, 3:20] = True
    assert_bits(block[~inside], before[~inside])


@pytest.mark.parametrize("layout", ["dense", "columns", "transposed"])
def test_in_place(device: str, dtype: torch.dtype, layout: str) -> None:
    x = views(device, dtype)[layout]
    given_factors = factors("per-row", 24, 17, 5, dtype, device)
    want = ops.project(x, **given_factors, normalize=True)
    other_name = x.view(x.shape)
    ops.project_out(x, **given_factors, normalize=True, out=other_name)
    assert_bits(x, want)
    none = factors("symmetric", 24, 17, 0, dtype, device)
    assert_bits(ops.project_out(x, **none, out=x), want)


def shared(buffer: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Features [8, 8] and an out that share memory, by how, in a buffer [16, 32]."""
    square, flat = buffer[:8, :8], buffer.flatten()
    return {
        "one row on": (square, buffer[1:9, :8]),
        "one column on": (square, buffer[:8, 1:9]),
        "the last column": (square, buffer[:8, 7:15]),
        "the last element": (flat[:64].view(8, 8), flat[63:127].view(8, 8)),
        "transposed": (square, square.T),
        "another row length": (square, flat[:64].view(8, 8)),
        "another column step": (square, buffer[:8, :16:2]),
        "around the end of a row": (buffer[:8, 20:28], flat[27:].unfold(0, 8, 32)[:8]),
        "permuted": (flat[:64].view(2, 4, 8).transpose(0, 1), flat[:64].view(4, 2, 8)),
        "the first row, expanded": (buffer[:1, :8].expand(8, 8), square),
    }


@pytest.mark.parametrize("how", shared(torch.empty(16, 32)))
def test_memory_shared_with_x_is_refused(device: str, how: str) -> None:
    buffer = features(16, 32, device=device)
    before = buffer.clone()
    x, out = shared(buffer)[how]
    read = factors("symmetric", 8, 8, 2, device=device)["read"]
    for a, b in ((x, out), (out, x)):
        with pytest.raises(RuntimeError, match="project_out: out must"):
            ops.project_out(a, read, read, out=b)
    assert_bits(buffer, before)


def test_side_by_side_in_one_buffer_is_no_overlap(device: str, dtype: torch.dtype) -> None:
    buffer = features(16, 34, dtype, device)
    given_factors = factors("oblique", 16, 17, 4, dtype, device)
    left, right = buffer[:, :17], buffer[:, 17:]
    for x, out in ((left, right), (right, left), (left.T.T, right), (left[:7], right[9:])):
        want = ops.project(x, **given_factors)
        source = x.clone()
        ops.project_out(x, **given_factors, out=out)
        assert_bits(out, want)
        assert_bits(x, source)
    columns = features(17, 32, dtype, device).T  # the rows lie across the buffer
    x, out = columns[:16], columns[16:]
    want = ops.project(x, **given_factors)
    ops.project_out(x, **given_factors, out=out)
    assert_bits(out, want)


def test_out_on_another_device_is_refused() -> None:
    read = factors("symmetric", 4, 5, 2)["read"]
    with pytest.raises(RuntimeError, match="project_out: out must be on cpu, got meta"):
        ops.project_out(features(4, 5), read, read, out=torch.empty(4, 5, device="meta"))


@pytest.mark.parametrize("tracked", ["x", "read", "strength", "out"])
@pytest.mark.parametrize("call", [ops.project_out, torch.ops.clipproj.project_out])
def test_operands_that_autograd_tracks_are_refused(call, tracked: str) -> None:
    operands = {"x": features(4, 5), "out": torch.zeros(4, 5)} | factors("strength", 4, 5, 2)
    operands[tracked].requires_grad_()
    text = f"project_out: {tracked} must not require grad in grad mode, got"
    with pytest.raises(RuntimeError, match=text):
        call(**operands)
    assert (operands["out"] == 0).all()
    with torch.no_grad():
        call(**operands)
    assert (operands["out"] != 0).all()


@pytest.mark.parametrize("call", [ops.project_out, torch.ops.clipproj.project_out])
def test_the_version_of_out_alone_is_raised(call) -> None:
    x, out, given_factors = features(4, 5), torch.empty(4, 5), factors("strength", 4, 5, 2)
    call(x, **given_factors, out=out)
    assert (x._version, out._version) == (0, 1)
    with torch.inference_mode():
        call(x, **given_factors, out=out)
    assert (x._version, out._version) == (0, 2)


def test_projector_writes_where_it_is_told() -> None:
    read = factors("symmetric", 6, 17, 3)["read"]
    projector = Projector(read, strength=0.5)
    x = features(6, 17)
    want = projector(x, normalize=True)
    buffer = torch.empty(6, 20)
    out = buffer[:, 2:19]
    assert projector(x, normalize=True, out=out) is out
    assert_bits(out, want)
    assert projector(x, normalize=True, out=x) is x
    assert_bits(x, want)
