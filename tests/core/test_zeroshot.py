"""ZeroShotHead: logits of projected features, whoever projects them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import assert_bits, factor_dtype
from editing import projector
from families import FAMILIES, WIDTH
from projectors import NAMES, D, affine, oblique, rows, symmetric

import clipproj
from clipproj import ProjectorBank, ZeroShotHead


@pytest.fixture
def classes():
    return F.normalize(torch.randn(11, D, dtype=torch.float64), dim=1).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [symmetric, oblique, affine])
@pytest.mark.parametrize("bias", [None, -3.0])
def test_logits_are_those_of_the_formula(classes, make, dtype, bias):
    p, x = make(), rows(2, 3, dtype=dtype)
    head = ZeroShotHead(classes, p, scale=30.0, bias=bias).to(dtype)
    z = F.normalize(p(x.double()), dim=-1)
    want = 30 * z @ head.classes.double().T + (bias or 0)
    wide = factor_dtype(dtype)
    tolerance = 30 * 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(head(x, dtype=wide).double(), want, rtol=0, atol=tolerance)
    assert head(x).dtype == dtype
    for name in ("scale", "bias"):
        held = getattr(head, name)
        assert held is None or held.dtype == torch.float32


def test_rows_of_a_bank_get_the_logits_of_their_own(classes, bank, projectors):
    head, x = ZeroShotHead(classes, bank, scale=100.0), rows(len(NAMES))
    logits = head(x, bank.index(NAMES))
    for i, name in enumerate(NAMES):
        single = ZeroShotHead(classes, projectors.get(name), scale=100.0)
        torch.testing.assert_close(logits[i], single(x[i]), rtol=1e-5, atol=1e-4)
    zero = head(x, bank.index(NAMES), strength=0.0)
    torch.testing.assert_close(zero, 100 * F.normalize(x, dim=1) @ classes.T, rtol=1e-4, atol=1e-4)


def test_a_call_may_bring_its_own_projector(classes):
    head, x, p = ZeroShotHead(classes), rows(4), oblique()
    assert_bits(head(x, projector=p), ZeroShotHead(classes, p)(x))
    assert_bits(head(x, projector=p, strength=0.5), head(x, projector=p.scaled(0.5)))
    torch.testing.assert_close(head(x), F.normalize(x, dim=1) @ classes.T)


@pytest.mark.parametrize("kind", ["symmetric", "oblique"])
def test_folded_model_and_projected_features_agree(kind):
    """The two ways to serve an edit: in the weights, or on the way."""
    family, p = FAMILIES["open_clip ViT"], projector(kind)
    model = family.build()
    head = ZeroShotHead(F.normalize(torch.randn(5, WIDTH), dim=1), scale=100.0)
    unedited = head(family.encode(model, "image"))
    on_the_fly = head(family.encode(model, "image"), projector=p)
    with clipproj.edit(model, p):
        folded = head(family.encode(model, "image"))
    torch.testing.assert_close(folded, on_the_fly, rtol=1e-4, atol=1e-3)
    assert (folded - unedited).abs().max() > 1


def test_a_row_almost_inside_the_erased_span_keeps_its_precision(classes):
    """99.99 % of the row's square is erased: what is left decides, and must not be lost."""
    p = symmetric(2)
    inside, outside = torch.randn(64, 2) @ p.read, p(rows(64))
    x = F.normalize(inside, dim=1) + 0.01 * F.normalize(outside, dim=1)
    want = 100 * F.normalize(p(x.double()), dim=1) @ classes.double().T
    got = ZeroShotHead(classes, p, scale=100.0)(x)
    assert (got - want).abs().max() < 1e-2


@pytest.mark.parametrize("bias", [None, -7.0])
def test_head_of_a_model_is_its_own_classifier(bias):
    family = FAMILIES["open_clip ViT"]
    model = family.build()
    if bias is not None:  # as SigLIP's
        model.logit_bias = torch.nn.Parameter(torch.tensor([bias]))
    words = {"cat": 3, "dog": 9}

    def tokenizer(prompts, context_length=8):
        return torch.tensor([[1, words[p.split()[1]], 63] + [0] * 5 for p in prompts])

    head = ZeroShotHead.from_model(model, tokenizer, ["cat", "dog"], ["a {} ."])
    x = family.encode(model, "image")
    with torch.no_grad():
        text = F.normalize(model.encode_text(tokenizer(["a cat .", "a dog ."])), dim=1)
        want = model.logit_scale.exp() * F.normalize(x, dim=1) @ text.T + (bias or 0)
    torch.testing.assert_close(head(x), want, rtol=1e-4, atol=1e-4)
    assert head.names == ("cat", "dog")
    assert (head.bias is None) == (bias is None)


def test_copies_and_state_keep_everything(classes):
    head, x = ZeroShotHead(classes, oblique(), scale=50.0, bias=1.0), rows(4)
    other = ZeroShotHead(torch.roll(classes, 1, 0), oblique(seed=3), scale=1.0, bias=0.0)
    other.load_state_dict(head.state_dict())
    for one in (copy.deepcopy(head), other):
        assert_bits(one(x), head(x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda c: ZeroShotHead(c.tolist()), TypeError, "classes must be a floating point tensor"),
        (lambda c: ZeroShotHead(c[0]), ValueError, r"classes must be \[C, d\], got \[24\]"),
        (lambda c: ZeroShotHead(2 * c), ValueError, "rows of length 1, got 2 in row 0"),
        (lambda c: ZeroShotHead(c * torch.nan), ValueError, "rows of length 1, got nan in row 0"),
        (lambda c: ZeroShotHead(c, c), TypeError, "must be a Projector or a ProjectorBank"),
        (lambda c: ZeroShotHead(c, ProjectorBank(D + 1)), ValueError, "of width 24 .* got 25"),
        (lambda c: ZeroShotHead(c, symmetric().T), ValueError, "for image features"),
        (lambda c: ZeroShotHead(c, scale=float("inf")), ValueError, "scale must be finite"),
        (lambda c: ZeroShotHead(c, scale=c[0]), ValueError, "scale must be 0-dim"),
        (lambda c: ZeroShotHead(c, bias=c[0]), ValueError, r"bias must be 0-dim or \[C\]"),
        (lambda c: ZeroShotHead(c, ProjectorBank(D))(c), ValueError, "given with a bank, got None"),
        (
            lambda c: ZeroShotHead(c)(c, torch.zeros(11, dtype=torch.int32)),
            ValueError,
            "None without a bank",
        ),
        (lambda c: ZeroShotHead(c)(c.bfloat16()), RuntimeError, "classes must be bfloat16"),
        (
            lambda c: ZeroShotHead.from_model(torch.nn.Linear(2, 2), None, ["a"]),
            ValueError,
            "must have a logit_scale",
        ),
    ],
)
def test_refusals(classes, make, error, message):
    with pytest.raises(error, match=message):
        make(classes)
