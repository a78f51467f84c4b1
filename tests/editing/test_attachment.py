"""Receipts of projectors on the fly tell attached, bare and tampered models apart."""

from __future__ import annotations

import copy

import pytest
import torch
from embeddings import cone
from families import FAMILIES, WIDTH
from torch import nn

import clipproj
from clipproj import AttachReceipt, Projector, ProjectorBank
from clipproj.plugins.attach import attach

TEXTS = cone(30, d=WIDTH).float()
FORGET, KEEP = TEXTS[:2], TEXTS[2:]


def one_sided() -> Projector:
    return clipproj.nullspace(FORGET, KEEP, "hull", keep_weight=3.0, one_sided=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, tmp_path) -> None:
    model, p = FAMILIES[name].build(), one_sided()
    try:
        attached = attach(model, p)
    except ValueError as error:  # text encoders, and tiny ones of another width
        pytest.skip(str(error))
    receipt = attached.receipt()
    receipt.save(tmp_path / "r")
    for again in (receipt, AttachReceipt.load(tmp_path / "r")):
        found = clipproj.verify(model, again)
        assert (found.status, found.exact, bool(found)) == ("attached", True, True)
        assert clipproj.verify(copy.deepcopy(model), again).status == "attached"
        with torch.no_grad():
            cast = clipproj.verify(copy.deepcopy(model).bfloat16(), again)
        assert (cast.status, cast.exact) == ("attached", False)
    attached.detach()
    found = clipproj.verify(model, receipt)
    assert (found.status, found.exact, bool(found)) == ("unedited", True, False)
    with attach(model, p.scaled(0.5)):
        assert clipproj.verify(model, receipt).status == "tampered"


@pytest.fixture
def model() -> nn.Module:
    return FAMILIES["open_clip ViT"].build()


def test_other_heads_and_other_projectors_are_told(model: nn.Module) -> None:
    p = one_sided()
    attached = attach(model, p)
    receipt = attached.receipt()
    assert "visual.proj" in receipt.parameters
    with torch.no_grad():
        model.visual.proj[3, 5] *= -1
        found = clipproj.verify(model, receipt)
        assert (found.status, bool(found)) == ("tampered", False)
        assert "another head" in found.text
        model.visual.proj[3, 5] *= -1
        assert clipproj.verify(model, receipt).exact
        p.offset -= 1e-3  # under the model
    found = clipproj.verify(model, receipt)
    assert found.status == "tampered"
    assert f"not {receipt.projector_hash[:12]}" in found.text
    attached.detach()
    bank = ProjectorBank(WIDTH, capacity=4)
    with attach(model, bank) as other:
        assert "a bank attached" in clipproj.verify(model, receipt).text
        with pytest.raises(ValueError, match="receipt: projector must be a Projector, got a bank"):
            other.receipt()


def test_wrapped_models(model: nn.Module) -> None:
    receipt = attach(model, one_sided()).receipt()
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        assert clipproj.verify(wrapped, receipt).status == "attached"


def test_only_a_live_model_of_that_kind(model: nn.Module) -> None:
    receipt = attach(model, one_sided()).receipt()
    with pytest.raises(TypeError, match="verify: target must be a model for an attached"):
        clipproj.verify(model.state_dict(), receipt)
    with pytest.raises(ValueError, match=r"verify: target must hold one visual\.proj, got 0"):
        clipproj.verify(nn.Linear(2, 2), receipt)


def test_a_certificate_goes_with_it(model: nn.Module, tmp_path) -> None:
    p = one_sided()
    proven = clipproj.certificate(p, KEEP)
    assert proven.certified
    receipt = attach(model, p).receipt().with_certificate(proven)
    receipt.save(tmp_path / "r")
    again = AttachReceipt.load(tmp_path / "r")
    assert again.certificate == proven
    assert clipproj.verify(model, again).status == "attached"
    other = clipproj.certificate(p.scaled(0.5), KEEP)
    with pytest.raises(ValueError, match=r"AttachReceipt: certificate must be of projector \w+"):
        receipt.with_certificate(other)
    with torch.no_grad():
        again.projector.offset.mul_(2)  # what it speaks of is not what was proven
    with pytest.raises(ValueError, match=r"verify: certificate must be of projector"):
        clipproj.verify(model, again)


def test_files_of_the_other_kind_are_refused(model: nn.Module, tmp_path) -> None:
    attach(model, one_sided()).receipt().save(tmp_path / "r")
    with pytest.raises(ValueError, match="must hold kind 'receipt', got 'attachment'"):
        clipproj.Receipt.load(tmp_path / "r")
