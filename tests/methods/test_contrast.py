"""What a name is told apart from: its neighbours in a lexicon."""

import pytest
import torch
import torch.nn.functional as F
from embeddings import cone, texts

from clipproj import Embeddings, nullspace
from clipproj.methods.contrast import NEIGHBOURS, less_keep
from clipproj.methods.inputs import NEAR, forget_and_keep


def direction(forget, keep):
    return nullspace(forget, keep, "neighbours").read.double()


def test_neighbours_are_the_nearest_of_the_lexicon():
    f, k = cone(3), cone(400, seed=2)
    rows = less_keep(f, k, "neighbours")
    for row, text in zip(rows, f, strict=True):
        order = (k @ text).argsort(descending=True)[:NEIGHBOURS]
        torch.testing.assert_close(row, text - k[order].mean(0))
    few = k[:NEIGHBOURS]  # all of them: as the mean
    torch.testing.assert_close(less_keep(f, few, "neighbours"), less_keep(f, few, "mean"))


def test_far_names_do_not_matter():
    f, k = cone(1), cone(400, seed=2)
    order = (k @ f[0]).argsort(descending=True)
    near, far = k[order[:NEIGHBOURS]], k[order[NEIGHBOURS:]]
    want = direction(f, torch.cat([near, far]))
    turned = far[torch.randperm(len(far), generator=torch.Generator().manual_seed(0))]
    for keep in (torch.cat([turned, near]), torch.cat([near, far, far])):
        torch.testing.assert_close(direction(f, keep).abs(), want.abs())


def test_a_lexicon_may_hold_what_is_forgotten_and_other_spellings_of_it():
    f, k = cone(1, seed=4), cone(300, seed=2)
    k = k[(k @ f.T).flatten() < NEAR]
    other = F.normalize(f + 0.05 * cone(1, seed=9))
    assert (other @ f.T).item() > NEAR
    p = nullspace(f, torch.cat([k, f, other]), "neighbours")
    assert torch.equal(p.read, nullspace(f, k, "neighbours").read)
    assert p.provenance["parameters"]["left_out_of_keep"] == 2
    assert "left_out_of_keep" not in nullspace(f, k, "neighbours").provenance["parameters"]
    with pytest.raises(ValueError, match="must differ from keep, got row 0 equal to keep row"):
        nullspace(f, torch.cat([k, f]), "mean")


def test_a_forgotten_name_is_left_out_of_a_lexicon_in_whatever_prompts():
    forget = Embeddings(cone(1, seed=4).float(), ("Class_7",), ("a {}",), "model")
    lexicon = texts(150)
    _, k = forget_and_keep("op", forget, lexicon, lexicon=True)
    assert len(k) == 149
    with pytest.raises(ValueError, match=r"must not name what forget names, got \['Class_7'\]"):
        forget_and_keep("op", forget, lexicon)


def test_a_lexicon_of_spellings_alone_is_refused():
    f = cone(1)
    near = F.normalize(f + 0.02 * cone(3, seed=8))
    with pytest.raises(ValueError, match=r"keep must hold other names, with a cosine below 0.95"):
        nullspace(f, near, "neighbours")
    with pytest.raises(ValueError, match="must be \"none\" without keep, got 'neighbours'"):
        nullspace(f, None, "neighbours")


def test_a_name_that_is_the_mean_of_its_neighbours_is_refused():
    k = cone(60, seed=2, spread=1.5)
    with pytest.raises(ValueError, match="equal to the mean of its neighbours in keep, got row 0"):
        nullspace(F.normalize(k.mean(0, keepdim=True)), k, "neighbours", tol=0.5)
