"""union and compose against the dense matrices they stand for."""

import pytest
import torch

from clipproj import Projector, compose, nullspace, union

D = 16


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(k, seed=0, **options):
    return Projector(torch.linalg.qr(random(D, k, seed=seed))[0].T, **options)


def oblique(k, seed=0, offset=False, **options):
    read, write = random(k, D, seed=seed), random(k, D, seed=seed + 50) / D
    return Projector(read, write, random(k, seed=seed + 99) if offset else None, **options)


@pytest.mark.parametrize("shared", [0, 1, 2, 3])
def test_union_erases_both_spans_and_is_a_projector(shared):
    p = symmetric(3)
    q_rows = torch.cat([p.read[:shared].double(), random(3 - shared, D, seed=1)])
    q = nullspace(q_rows @ torch.diag(torch.arange(1.0, D + 1).double()) if shared == 0 else q_rows,
                  contrast="none")  # fmt: skip
    u = union(p, q)
    assert u.symmetric
    assert u.rank == 6 - shared
    x = random(9, D, seed=3)
    assert p.residual(u(x)).max() < 1e-6
    assert q.residual(u(x)).max() < 1e-6
    torch.testing.assert_close(u(u(x)), u(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(union(q, p).dense(), u.dense(), atol=1e-5, rtol=0)


def test_union_with_a_nearly_equal_projector_does_not_invent_a_direction():
    p = symmetric(2)
    q = Projector(torch.linalg.qr((p.read.double() + 1e-7 * random(2, D, seed=4)).T)[0].T)
    assert union(p, q).rank == 2


def test_union_with_nothing_is_the_projector_itself():
    p, nothing = symmetric(2), Projector(torch.empty(0, D))
    torch.testing.assert_close(union(p, nothing).dense(), p.dense(), atol=1e-6, rtol=0)
    assert union(nothing, nothing).rank == 0


@pytest.mark.parametrize(
    ("p", "q", "rank"),
    [
        (symmetric(2), symmetric(3, seed=1), 5),
        (symmetric(2, strength=1.5), symmetric(2, strength=0.5), 2),  # the same span: merged
        (oblique(2), oblique(3, seed=1, strength=0.25), 5),
        (symmetric(9), symmetric(9, seed=1), D),  # more directions than there are
        (oblique(1), Projector(torch.empty(0, D)), 1),
        (Projector(torch.empty(0, D)), Projector(torch.empty(0, D)), 0),
        (oblique(2, offset=True), symmetric(3, seed=1), 5),
        (symmetric(3, seed=1, strength=0.5), oblique(2, offset=True), 5),
        (oblique(2, offset=True), oblique(3, seed=1, offset=True), 5),
    ],
)
def test_compose_is_first_p_then_q(p, q, rank):
    x = random(9, D, seed=3)
    r = compose(p, q)
    torch.testing.assert_close(r(x), q(p(x)), atol=2e-5, rtol=1e-5)
    assert r.rank == rank
    assert float(r.strength) == 1


def test_provenance_names_both():
    p, q = symmetric(1), symmetric(1, seed=1)
    p.provenance |= {"forget": {"names": ["cat"]}, "head_hash": "a", "model": "m"}
    q.provenance |= {"forget": {"names": ["dog", "cat"]}}
    for made in (union(p, q), compose(p, q)):
        assert made.provenance["forget"] == {"names": ["cat", "dog"]}
        assert made.provenance["head_hash"] == "a"
        assert made.provenance["parameters"]["of"] == [p.provenance, q.provenance]


def test_what_cannot_be_combined_is_refused():
    p = symmetric(2)
    with pytest.raises(ValueError, match=r"union: q must be symmetric, got an oblique one"):
        union(p, oblique(2))
    with pytest.raises(ValueError, match=r"union: p must be symmetric, got an affine one"):
        union(oblique(2, offset=True), p)
    with pytest.raises(ValueError, match=r"the strength of p, 1, got 0\.5"):
        union(p, symmetric(2, strength=0.5))
    with pytest.raises(ValueError, match=r"with an offset, got 18"):
        compose(oblique(9, offset=True), symmetric(9))
    foreign = symmetric(2)
    p.provenance["head_hash"], foreign.provenance["head_hash"] = "a", "b"
    for combine in (union, compose):
        with pytest.raises(ValueError, match="must be of side 'image' as p is, got 'text'"):
            combine(p, p.T)
        with pytest.raises(ValueError, match="must be of width 16 as p is, got 3"):
            combine(p, Projector(torch.eye(3)[:1]))
        with pytest.raises(ValueError, match="must come from the model that p comes from"):
            combine(p, foreign)


def test_compose_does_not_hang_on_the_scale_of_read():
    e = torch.eye(D)
    p, q = Projector(1e-6 * e[:1], 1e6 * e[:1]), Projector(e[1:2])
    x = random(4, D).float()
    torch.testing.assert_close(compose(p, q)(x), q(p(x)))
    assert compose(p, p).rank == 1


def test_compose_and_union_move_no_argument(monkeypatch):
    def moved(*_):
        raise AssertionError("Module.to moves in place: q may be serving somewhere")

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    for combine in (union, compose):
        assert combine(symmetric(2), symmetric(2, seed=1)).rank == 4


def test_what_is_no_projector_or_has_no_data_is_refused():
    p = symmetric(2)
    for combine in (union, compose):
        with pytest.raises(ValueError, match="q must have data, got one on the meta device"):
            combine(p, symmetric(2).to("meta"))
    with pytest.raises(TypeError, match="union: q must be a Projector, got NoneType"):
        union(p, None)
