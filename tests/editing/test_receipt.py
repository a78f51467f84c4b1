"""Receipts tell edited, unedited and tampered heads apart: every method, dtype, layout and cast."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from clipproj import files, ops
from clipproj.algebra import compose, union
from clipproj.certificates import Certificate, certificate
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import Verdict, verify
from clipproj.editing.weights import Weights
from clipproj.methods import ccup, from_leace, nullspace
from clipproj.models.heads import Head
from clipproj.projector import Projector

N, D = 192, 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def texts(m: int, seed: int) -> Tensor:
    """Rows as CLIP's texts are: most of their length in one shared direction."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(D, generator=torch.Generator().manual_seed(7))
    return shared + 0.6 * torch.randn(m, D, generator=generator)


FORGET, KEEP, LONG = texts(3, 1), texts(6, 2), texts(40, 3)
LEACE = SimpleNamespace(proj_left=texts(2, 4).T / D, proj_right=texts(2, 5), bias=texts(1, 6)[0])
LINEAR = SimpleNamespace(proj_left=LEACE.proj_left, proj_right=LEACE.proj_right, bias=None)
METHODS = {
    "nullspace span": nullspace(FORGET, KEEP, contrast="span"),
    "nullspace mean": nullspace(FORGET, LONG, contrast="mean"),
    "nullspace none": nullspace(FORGET, contrast="none"),
    "ccup": ccup(FORGET, KEEP),
    "ccup, text side": ccup(FORGET, KEEP).T,
    "leace": from_leace(LINEAR),
    "leace, affine": from_leace(LEACE),
    "union": union(nullspace(FORGET, KEEP), nullspace(texts(2, 8), KEEP)),
    "compose": compose(ccup(FORGET, KEEP), nullspace(texts(2, 8), KEEP, strength=0.5)),
    "half the space": Projector(torch.eye(D)[::2]),
}
STRENGTHS = [(name, s) for name in METHODS for s in (0.5, 1.0)]
STRENGTHS += [(name, s) for name, p in METHODS.items() if p.symmetric for s in (1.5, 2.0)]


def head_of(dtype: torch.dtype = torch.float32, dim: int = 0, bias: bool = True) -> Weights:
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(N, D, generator=generator) * D**-0.5
    weight = (rows if dim == 1 else rows.T).contiguous().to(dtype)
    return weight, torch.randn(D, generator=generator).mul(0.05).to(dtype) if bias else None


def fold(projector: Projector, before: Weights, dim: int = 0) -> tuple[Receipt, Weights]:
    weight, bias = (None if t is None else t.clone() for t in before)
    factors = projector.factors(weight.dtype)
    ops.fold_(weight, **factors | {"offset": None}, dim=dim)
    if bias is not None:
        ops.fold_(bias, **factors, dim=0)
    names = ("head.weight", None if bias is None else "head.bias")
    head = Head("image", *names, dim, D, True, None)
    return Receipt.make(head, projector, projector, before, (weight, bias)), (weight, bias)


def cast(weights: Weights, *dtypes: torch.dtype) -> Weights:
    for dtype in dtypes:
        weights = tuple(None if t is None else t.to(dtype) for t in weights)
    return weights


def tampered(weights: Weights, how: str, dim: int = 0) -> Weights:
    weight, bias = (None if t is None else t.clone() for t in weights)
    rows = weight if dim == 1 else weight.T
    if how == "one row 1 % longer":
        rows[11] *= 1.01
    elif how == "one sign flipped":
        rows[5, rows[5].abs().argmax()] *= -1
    elif how == "noise of 1 %":
        rows += 0.01 * rows.std() * torch.randn(rows.shape).to(rows.dtype)
    elif how == "two rows swapped":
        rows[[3, 4]] = rows[[4, 3]]
    elif how == "two columns swapped":
        rows[:, [3, 4]] = rows[:, [4, 3]]
    elif how == "bias dropped":
        bias.zero_()
    elif how == "a NaN":
        rows[0, 0] = float("nan")
    elif how == "an inf":
        rows[0, 0] = float("inf")
    return weight, bias


TAMPERS = ("one row 1 % longer", "one sign flipped", "noise of 1 %", "two rows swapped")
TAMPERS += ("two columns swapped", "bias dropped", "a NaN", "an inf")


@pytest.mark.parametrize(("method", "strength"), STRENGTHS)
def test_every_method_and_strength(method: str, strength: float) -> None:
    before = head_of()
    receipt, after = fold(METHODS[method].scaled(strength), before)
    for weights, status in ((after, "edited"), (before, "unedited")):
        found = verify(weights, receipt)
        assert (found.status, found.exact, bool(found)) == (status, True, status == "edited")
        assert (found.error <= found.bound) is (status == "edited")
        for dtypes in ((torch.bfloat16,), (torch.float16,), (torch.bfloat16, torch.float32)):
            found = verify(cast(weights, *dtypes), receipt)
            assert (found.status, found.exact) == (status, False), (dtypes, found)
        for how in TAMPERS:
            found = verify(tampered(weights, how), receipt)
            assert (found.status, found.exact) == ("tampered", False), (how, found)
            assert not found.error <= found.bound


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout(dtype: torch.dtype, dim: int, bias: bool) -> None:
    before = head_of(dtype, dim, bias)
    receipt, after = fold(METHODS["ccup"], before, dim)
    for weights, status in ((after, "edited"), (before, "unedited")):
        if not bias:
            assert verify(weights[0], receipt).status == status
        found = verify(weights, receipt) if bias else verify(weights[0], receipt)
        assert (found.status, found.exact) == (status, True)
        for to in DTYPES:
            found = (
                verify(cast(weights, to), receipt) if bias else verify(weights[0].to(to), receipt)
            )
            assert found.status == status, (to, found)
            assert found.exact is (to == dtype)
    rows = after[0].clone() if dim == 1 else after[0].clone().T
    rows[7] *= 1.1
    wrong = rows if dim == 1 else rows.T
    assert verify((wrong, after[1]) if bias else wrong, receipt).status == "tampered"


def test_the_fold_itself_is_within_the_bound_with_room() -> None:
    for method, p in METHODS.items():
        receipt, after = fold(p, head_of())
        found = verify(after, receipt)
        assert found.error < 0.2 * found.bound, method


def test_the_smallest_change_that_is_caught() -> None:
    # the figures in verify's docstring, at the width of ViT-B/32
    read = torch.linalg.qr(torch.randn(512, 3))[0].T
    for dtype, share in ((torch.float32, 5e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        before = (torch.randn(64, 512).to(dtype) / 20, None)
        weight = before[0].clone()
        ops.fold_(weight, *(read.contiguous(),) * 2, dim=1)
        head = Head("image", "proj", None, 1, 512, True, None)
        p = Projector(read)
        receipt = Receipt.make(head, p, p, before, (weight, None))
        for row in range(64):
            wrong = weight.double()
            change = torch.randn(512).double()
            change -= change @ read.T.double() @ read.double()  # nothing that the reads could see
            wrong[row] += share * wrong[row].norm() * change / change.norm()
            assert verify(wrong.to(dtype), receipt).status == "tampered", (dtype, row)


def test_an_edit_that_reads_cannot_see_is_seen_by_the_sketch() -> None:
    p = METHODS["nullspace span"]
    receipt, (weight, bias) = fold(p, head_of())
    outside = p(torch.randn(N, D)) * 1e-3
    moved = weight + outside.T
    assert (moved.T @ p.read.T - weight.T @ p.read.T).abs().max() < 1e-6
    assert verify((moved, bias), receipt).status == "tampered"


@pytest.mark.parametrize("strength", [1e-6, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weak_edits_are_never_told_wrongly(dtype: torch.dtype, strength: float) -> None:
    before = head_of()
    receipt, after = fold(METHODS["nullspace span"].scaled(strength), before)
    wide = torch.float64 if dtype == torch.float32 else dtype
    for weights, status in ((after, "edited"), (before, "unedited")):
        assert verify(weights, receipt).status == status  # by hash, always
        found = verify(cast(weights, wide), receipt)
        assert found.status in (status, "undecided"), found
        assert not found.exact


def test_undecided_says_so() -> None:
    receipt, after = fold(METHODS["nullspace span"].scaled(1e-3), head_of())
    found = verify(cast(after, torch.bfloat16), receipt)
    assert (found.status, bool(found)) == ("undecided", False)
    assert "too weak to tell" in found.text


def test_the_read_directions_tell_weaker_edits_than_the_sketch_could() -> None:
    receipt, after = fold(METHODS["nullspace span"].scaled(0.03), head_of())
    assert verify(cast(after, torch.bfloat16), receipt).status == "edited"


def test_a_large_offset_brings_its_own_rounding() -> None:
    # b - (b R^T - c) W with c far larger than b R^T, as LEACE has it for features far from zero
    rows = torch.linalg.qr(texts(2, 5).T)[0].T
    p = Projector(rows, rows * 1e-3, torch.full((2,), 1e7))
    receipt, after = fold(p, head_of())
    assert after[1].norm() > 1e3
    assert verify(cast(after, torch.float64), receipt).status == "edited"


@pytest.mark.parametrize("nothing", ["rank 0", "strength 0"])
def test_an_edit_that_changes_nothing_counts_as_made(nothing: str) -> None:
    p = Projector(torch.zeros(0, D)) if nothing == "rank 0" else METHODS["ccup"].scaled(0.0)
    before = head_of()
    receipt, _ = fold(p, before)
    assert receipt.head_before == receipt.head_after
    assert verify(before, receipt) == verify(before, receipt)
    assert verify(before, receipt).exact
    assert "leaves this head as it was" in verify(before, receipt).text
    assert verify(cast(before, torch.float16), receipt).status == "edited"
    assert verify(tampered(before, "one sign flipped"), receipt).status == "tampered"


def test_zero_rows_and_zero_heads() -> None:
    weight, _ = head_of()
    weight[:, 3] = 0
    receipt, after = fold(METHODS["leace, affine"], (weight, torch.zeros(D)))
    assert verify(after, receipt)
    assert verify(cast(after, torch.float16), receipt)
    for index in ((0, 3), (5, 3)):
        wrong = after[0].clone()
        wrong[index] = 1e-4
        assert verify((wrong, after[1]), receipt).status == "tampered"
    receipt, after = fold(METHODS["ccup"], (torch.zeros(D, N), None))
    assert verify(after[0], receipt)
    assert verify(after[0] + 1e-6, receipt).status == "tampered"


def test_a_zero_row_in_the_factors() -> None:
    read = torch.eye(D)[:2] * torch.tensor([[1.0], [0.0]])
    before = head_of()
    receipt, after = fold(Projector(read, torch.eye(D)[:2]), before)
    assert verify(cast(after, torch.float16), receipt).status == "edited"
    assert verify(cast(before, torch.float16), receipt).status == "unedited"


def test_tiny_weights_survive_float16_subnormals() -> None:
    before = (head_of()[0] * 1e-4, None)
    receipt, after = fold(METHODS["nullspace span"], before)
    assert verify(after[0].half(), receipt).status == "edited"
    assert verify(after[0].half().float(), receipt).status == "edited"


def test_stacked_edits() -> None:
    before = head_of()
    first, once = fold(METHODS["ccup"], before)
    second, twice = fold(METHODS["nullspace mean"], once)
    assert first.head_after == second.head_before
    assert verify(twice, second)
    assert verify(once, second).status == "unedited"
    assert verify(twice, first).status == "tampered"
    assert verify(before, second).status == "tampered"


def test_file_round_trip(tmp_path) -> None:
    for name, p in METHODS.items():
        receipt, after = fold(p, head_of())
        path = tmp_path / "receipt.safetensors"
        receipt.save(path)
        again = Receipt.load(path)
        assert verify(after, again) == verify(after, receipt), name
        assert again.projector.content_hash() == p.content_hash() == again.projector_hash
        assert again.projector.symmetric is p.symmetric
        assert repr(again) == repr(receipt)
    with open(path, "rb+") as file:
        file.seek(-3, 2)
        file.write(b"\x55")
    with pytest.raises(ValueError, match="wrong digest"):
        Receipt.load(path)
    METHODS["ccup"].save(path)
    with pytest.raises(ValueError, match="must hold kind 'receipt', got 'projector'"):
        Receipt.load(path)


def test_a_receipt_of_a_strong_oblique_edit_loads_without_a_warning(tmp_path, recwarn) -> None:
    with pytest.warns(UserWarning, match="above 1"):
        p = METHODS["ccup"].scaled(1.5)
    receipt, after = fold(p, head_of())
    receipt.save(tmp_path / "r")
    recwarn.clear()
    assert verify(after, Receipt.load(tmp_path / "r"))
    assert not recwarn.list


def test_targets() -> None:
    receipt, (weight, bias) = fold(METHODS["ccup"], head_of())
    model = nn.Module()
    model.head = nn.Linear(N, D)
    model.head.weight.data, model.head.bias.data = weight, bias
    state = model.state_dict()
    for target in (
        model,
        nn.DataParallel(model),
        torch.compile(model, backend="eager"),
        state,
        nn.DataParallel(model).state_dict(),
        {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        (weight, bias),
        (weight.T.contiguous().T, bias[None].expand(2, -1)[0]),
    ):
        assert verify(target, receipt).exact


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ({"other": torch.zeros(2)}, "target must hold one head.weight, got 0 among 1"),
        ({"head.weight": torch.zeros(D, N)}, "target must hold one head.bias, got 0 among 1"),
        (nn.Linear(N, D), "target must hold one head.weight, got 0 among 2"),
        (torch.zeros(D, N), "target must be (weight, bias), as the edit's head is, got 1"),
        ((torch.zeros(N, D), torch.zeros(D)), "target must have a weight [128, 192], got [192"),
        ((torch.zeros(D, N), torch.zeros(D, 1)), "target must have a bias [128], got [128, 1]"),
        (
            (torch.zeros(D, N, dtype=torch.int8), torch.zeros(D)),
            "target must be one of bfloat16, float16, float32, float64, got int8",
        ),
    ],
)
def test_targets_that_are_refused(target: object, text: str) -> None:
    receipt, _ = fold(METHODS["ccup"], head_of())
    with pytest.raises(ValueError, match=re.escape(f"verify: {text}")):
        verify(target, receipt)


def test_a_path_is_no_target() -> None:
    receipt, _ = fold(METHODS["ccup"], head_of())
    with pytest.raises(TypeError, match=r"target must be a model, .* got str"):
        verify("model.pt", receipt)


def test_what_is_no_receipt_is_refused() -> None:
    _, after = fold(METHODS["ccup"], head_of())
    for wrong in ("receipt.safetensors", None, METHODS["ccup"]):
        with pytest.raises(TypeError, match=r"^verify: receipt must be a Receipt \(edit\.receipt"):
            verify(after, wrong)


def test_label_and_verdict() -> None:
    names = {"names": ["cat", "dog", "fox", "owl", "pig"]}
    p = Projector(METHODS["ccup"].read, METHODS["ccup"].write, provenance={"forget": names})
    receipt, after = fold(p, head_of())
    assert receipt.label == "cat, dog, fox and 2 more"
    assert receipt.strength == 1
    assert receipt.dtype == "float32"
    assert (receipt.head_before, receipt.head_after) == (
        files.sha256(*head_of()),
        files.sha256(*after),
    )
    assert fold(METHODS["ccup"], head_of())[0].label.startswith("ccup ")
    text = "image head edited, bit for bit (cat, dog, fox and 2 more, strength 1)"
    assert verify(after, receipt).text == text
    for status in ("edited", "unedited", "undecided", "tampered"):
        assert bool(Verdict(status, True, 0.0, 0.0, "")) is (status == "edited")


def certified() -> tuple[Receipt, Weights, Certificate]:
    p = nullspace(FORGET, LONG, contrast="hull", keep_weight=10.0)
    receipt, after = fold(p, head_of())
    return receipt, after, certificate(receipt.projector, LONG)


def test_a_certificate_is_kept_and_told(tmp_path) -> None:
    receipt, after, proven = certified()
    assert receipt.certificate is None
    receipt.save(tmp_path / "bare")
    with_it = receipt.with_certificate(proven)
    with_it.save(tmp_path / "proven")
    assert Receipt.load(tmp_path / "bare").certificate is None
    again = Receipt.load(tmp_path / "proven")
    assert again.certificate == proven
    assert verify(after, again) == verify(after, receipt)
    assert verify(after, again).exact


def test_without_a_certificate_files_are_as_they_were(tmp_path) -> None:
    receipt, _, proven = certified()
    receipt.save(tmp_path / "r")
    assert "certificate" not in files.read(tmp_path / "r").meta
    assert b"clipproj-1" in (tmp_path / "r").read_bytes()
    receipt.with_certificate(proven).save(tmp_path / "r")
    assert b"clipproj-2" in (tmp_path / "r").read_bytes()  # an older reader says so


def test_a_certificate_of_another_projector_is_refused(tmp_path) -> None:
    receipt, after, _ = certified()
    other = certificate(receipt.projector.scaled(0.5), LONG)
    want, got = receipt.projector.content_hash()[:12], other.projector[:12]
    text = f"certificate must be of projector {want}, got one of {got}"
    with pytest.raises(ValueError, match=f"Receipt: {text}"):
        receipt.with_certificate(other)
    object.__setattr__(receipt, "certificate", other)
    with pytest.raises(ValueError, match=f"verify: {text}"):
        verify(after, receipt)
    receipt.save(tmp_path / "r")
    with pytest.raises(ValueError, match=f"Receipt: {text}"):
        Receipt.load(tmp_path / "r")


def test_a_certificate_that_was_changed_is_refused(tmp_path) -> None:
    receipt, _, proven = certified()
    receipt.with_certificate(proven).save(tmp_path / "r")
    artefact = files.read(tmp_path / "r")
    artefact.meta["certificate"]["certified"] = not proven.certified
    files.write(tmp_path / "r", "receipt", artefact.tensors, artefact.meta, version=2)
    with pytest.raises(ValueError, match="data must be a certificate, got one that was changed"):
        Receipt.load(tmp_path / "r")
