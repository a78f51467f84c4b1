"""The null space in the metric of what is kept, and one side of it alone."""

import pytest
import torch
from embeddings import cone, texts

from clipproj import nullspace


def test_without_a_keep_weight_nothing_changes():
    f, k = cone(3), cone(20, seed=5)
    for contrast in ("span", "hull", "mean", "none", "neighbours"):
        p, q = nullspace(f, k, contrast), nullspace(f, k, contrast, keep_weight=0)
        assert p.symmetric
        assert p.content_hash() == q.content_hash()


@pytest.mark.parametrize("contrast", ["hull", "mean", "neighbours"])
def test_a_keep_weight_reads_the_same_and_moves_what_is_kept_less(contrast):
    f, k = cone(3), cone(20, seed=5)
    p, q = nullspace(f, k, contrast), nullspace(f, k, contrast, keep_weight=10)
    assert q.form == "oblique"
    torch.testing.assert_close(p.read, q.read)
    x = torch.randn(50, f.shape[1], generator=torch.Generator().manual_seed(0))
    assert (q(x) @ p.read.T).abs().max() < 1e-5  # of contrasts nothing is left
    centred = (k - k.mean(0)).float()
    change = [float(((x - edit(x)) @ centred.T).square().sum()) for edit in (p, q)]
    assert change[1] < 0.5 * change[0]
    assert q.provenance["parameters"]["keep_weight"] == 10
    # the same similarities from the other tower
    text = nullspace(f, k, contrast, keep_weight=10, side="text")
    torch.testing.assert_close(text.dense(), q.dense().T)


def test_an_equality_against_a_hull_is_never_answered_by_the_class():
    t = cone(24, d=48)
    f, k = t[:3], t[3:]
    p = nullspace(f, k, "hull", keep_weight=10)
    x = torch.randn(4000, 48, generator=torch.Generator().manual_seed(1)).double()
    scores = p(torch.cat([x, x + 9 * f[:1]])) @ t.T
    assert (scores[:, :3].amax(1) <= scores[:, 3:].amax(1) + 1e-5).all()


def test_the_witnesses_of_a_hull_are_told():
    forget, keep = texts(2), texts(12, offset=2)
    p = nullspace(forget, keep, "hull")
    told = p.provenance["parameters"]["witnesses"]
    assert len(told) == 2
    assert all(set(names) < set(keep.names) for names in told)
    part = keep.select(told[0])  # they alone carry the mixture
    alone = nullspace(forget.select(forget.names[:1]), part, "hull")
    whole = nullspace(forget.select(forget.names[:1]), keep, "hull")
    torch.testing.assert_close(alone.read, whole.read)
    rows = nullspace(forget.tensor, keep.tensor, "hull").provenance["parameters"]["witnesses"]
    assert [[keep.names[i] for i in of] for of in rows] == told
    assert "witnesses" not in nullspace(forget, keep, "mean").provenance["parameters"]


def test_a_keep_weight_out_of_range_is_refused():
    for value in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="nullspace: keep_weight must be finite and at least"):
            nullspace(cone(1), cone(20, seed=5), keep_weight=value)
    with pytest.raises(ValueError, match="nullspace: keep_weight must be 0 without keep, got 3"):
        nullspace(cone(1), contrast="none", keep_weight=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 0.1}, "threshold must be None unless one_sided, got 0.1"),
        ({"dtype": torch.bfloat16}, "dtype must be float32 unless one_sided"),
        ({"one_sided": True, "rank": 1}, "rank must be None one-sided"),
        ({"one_sided": True, "dtype": torch.int8}, "dtype must be one of torch.float64"),
        ({"one_sided": True, "contrast": "none"}, "threshold must be given with contrast none"),
        ({"one_sided": True, "side": "text"}, "threshold must be given on the text side"),
        ({"one_sided": True, "threshold": "some"}, "threshold must be a number in"),
    ],
)
def test_options_of_the_other_form_are_refused(options, says):
    with pytest.raises(ValueError, match=f"nullspace: {says}"):
        nullspace(cone(2), cone(20, seed=5), **options)
