"""Projector: the formula, its strength, its factors' precision, its file."""

import copy
import io
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from projectors import KINDS, D, affine, basis, by_hand, oblique, rows, symmetric
from safetensors.torch import load_file, save_file

import clipproj
from clipproj import Projector, files


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_call_is_the_formula_and_equals_dense_and_shift(make, shape):
    p, x = make(), rows(*shape)
    want = by_hand(p, x)
    tol = 5e-3 if p.one_sided and p.rank > 1 else 1e-5  # the solver stops before that
    torch.testing.assert_close(p(x).double(), want, rtol=tol, atol=tol)
    if not p.one_sided:
        whole = (x @ p.dense() + p.shift()).double()
        torch.testing.assert_close(whole, want, rtol=1e-5, atol=1e-5)
    unit = F.normalize(want, dim=-1)
    torch.testing.assert_close(p(x, normalize=True).double(), unit, rtol=tol, atol=tol)


@pytest.mark.parametrize("strength", [0, 0.25, 1, 2.0, torch.tensor(0.5)])
def test_call_strength_replaces_own(strength):
    p, x = symmetric(strength=1.5), rows(4)
    want = by_hand(p, x, float(strength))
    torch.testing.assert_close(p(x, strength).double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(p.scaled(strength)(x), p(x, strength))
    assert float(p.strength) == 1.5


def test_strength_per_row_in_the_shape_of_the_leading_dims():
    p, x = symmetric(), rows(2, 3)
    s = torch.linspace(0, 2, 6).reshape(2, 3)
    want = by_hand(p, x, s.double()[..., None])
    torch.testing.assert_close(p(x, s).double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(p(x, s), p(x, s.flatten()))


@pytest.mark.parametrize("value", [-0.1, 2.1, float("nan"), float("inf")])
def test_strength_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"strength must be in \[0, 2\]"):
        symmetric(strength=value)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 2\]"):
        symmetric()(rows(1), value)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
        oblique()(rows(1), value)


def test_strength_above_one_warns_only_where_rows_can_get_longer(recwarn):
    symmetric().scaled(2.0)
    assert not recwarn
    for make in (oblique, affine):
        with pytest.warns(UserWarning, match="above 1 can lengthen rows"):
            make().scaled(1.5)


def test_symmetric_edit_never_lengthens_up_to_strength_two():
    p, x = symmetric(), rows(64)
    norms = [p(x, s).norm(dim=-1) for s in (0, 0.5, 1, 1.5, 2)]
    assert all((n <= x.norm(dim=-1) * (1 + 1e-6)).all() for n in norms)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("move", ["half", "bfloat16", "double"])
def test_factors_keep_their_precision_and_their_sharing(make, move):
    p = make()
    before = p.content_hash()
    model = torch.nn.Sequential(torch.nn.Linear(D, D), p)
    getattr(model, move)()
    assert model[0].weight.dtype != torch.float32
    assert p.read.dtype == p.write.dtype == p.strength.dtype == torch.float32
    assert p.content_hash() == before


def test_symmetric_projector_stores_one_matrix_everywhere(tmp_path):
    p = symmetric()
    p.save(tmp_path / "p")
    pickled = io.BytesIO()
    torch.save(p, pickled)
    pickled.seek(0)
    for q in (
        p,
        p.to("cpu", torch.float16),
        copy.deepcopy(p),
        p.T,
        p.scaled(0.5),
        clipproj.load(tmp_path / "p"),
        torch.load(pickled, weights_only=False),
    ):
        assert q.symmetric
        assert q.write is q.read
    assert [name for name, t in p.state_dict().items() if t.shape == p.read.shape] == ["read"]
    assert (tmp_path / "p").stat().st_size < p.read.numel() * 4 + 2000


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_result_has_the_dtype_of_the_features(dtype):
    p, x = symmetric(), rows(3, dtype=dtype)
    assert p(x).dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(p(x), by_hand(p, x), rtol=1e-14, atol=1e-14)


def test_transpose_moves_the_edit_to_the_other_tower():
    p, x, t = oblique(), rows(4), rows(5).flip(1)
    assert p.T.side == "text"
    assert p.T.T.content_hash() == p.content_hash()
    torch.testing.assert_close(p(x) @ t.T, x @ p.T(t).T, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="T: projector must have no offset"):
        _ = affine().T


@pytest.mark.parametrize("make", [symmetric, oblique, affine])
def test_for_tower_is_the_form_that_edits_that_tower(make):
    p = make()
    assert p.for_tower("image") is p
    assert p.form == make.__name__
    if make is affine:
        with pytest.raises(ValueError, match="edit: projector must have no offset on the text tow"):
            p.for_tower("text", "edit")
    else:
        assert p.for_tower("text").content_hash() == p.T.content_hash()
        assert p.T.for_tower("image").content_hash() == p.content_hash()
    with pytest.raises(
        ValueError, match='for_tower: tower must be "image" or "text", got \'audio\''
    ):
        p.for_tower("audio")


def test_require_model_holds_only_what_is_known_against_a_projector():
    p = symmetric()
    p.require_model("edit", "a" * 64)
    p.provenance |= {"head_hash": "b" * 64, "model": "RN50"}
    p.require_model("edit")
    p.require_model("edit", None)
    p.require_model("edit", "a" * 64, "b" * 64)
    with pytest.raises(ValueError, match=r"^edit: projector must come from this model \(head "
                       r"aaaaaaaaaaaa\), got one of RN50 \(head bbbbbbbbbbbb\)$"):  # fmt: skip
        p.require_model("edit", None, "a" * 64)
    with pytest.raises(ValueError, match=r"add: q must come from theirs .*; force=True adds"):
        p.require_model("add", "a", argument="q", model="theirs", otherwise="; force=True adds")


def test_residual_is_the_share_along_the_erased_span():
    p = symmetric(2)
    inside, outside = p.read[0].double(), basis(3)[2]
    x = torch.stack([inside, outside, 0.6 * inside + 0.8 * outside, torch.zeros(D).double()])
    want = torch.tensor([1, 0, 0.6, 0]).double()
    torch.testing.assert_close(p.residual(x), want, atol=1e-6, rtol=0)
    assert p.residual(p(rows(9))).max() < 1e-6
    q = Projector(basis(3, seed=4) * torch.tensor([[1.0], [5], [0.1]]), basis(3))  # not unit rows
    projected = rows(6) @ (torch.eye(D) - torch.linalg.pinv(q.read) @ q.read)
    assert q.residual(projected).max() < 1e-5
    torch.testing.assert_close(q.residual(q.read), torch.ones(3).double())
    assert symmetric(0).residual(rows(2)).eq(0).all()


def test_residual_of_an_affine_projector_is_the_distance_to_where_rows_land():
    g = torch.Generator().manual_seed(3)
    read = torch.randn(2, D, generator=g).double()
    p = Projector(read, torch.linalg.pinv(read).T, torch.tensor([0.5, -2.0]))
    assert p.residual(p(rows(6))).max() < 1e-5
    assert p.residual(rows(6)).min() > 1e-2


def test_content_hash_changes_with_everything_that_changes_the_edit():
    p = oblique()
    others = [
        Projector(p.read, p.write, side="text"),
        Projector(p.write, p.read),
        Projector(p.read, p.write, torch.zeros(3)),
        p.scaled(0.5),
        Projector(p.read[:2], p.write[:2]),
        symmetric(),
        Projector(symmetric().read, symmetric().read),
    ]
    hashes = [q.content_hash() for q in [p, *others]]
    assert len(set(hashes)) == len(hashes)
    assert Projector(p.read, p.write, provenance={"method": "x"}).content_hash() == p.content_hash()


@pytest.mark.parametrize("make", KINDS)
def test_file_round_trip(make, tmp_path):
    p = make()
    p.provenance["forget"] = {"names": ["cat"], "templates": ["a photo of a {}."]}
    p.save(tmp_path / "p.safetensors")
    q = clipproj.load(tmp_path / "p.safetensors")
    assert q.content_hash() == p.content_hash()
    assert q.provenance == p.provenance
    assert torch.equal(p(rows(3)), q(rows(3)))
    assert "forget=['cat']" in repr(q)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.randn(3),), ValueError, r"read must be \[k, d\] .* got \[3\]"),
        ((torch.randn(5, 3),), ValueError, r"read must be \[k, d\] with 0 <= k <= d"),
        ((torch.randn(2, 3),), ValueError, "read must have orthonormal rows"),
        ((torch.full((1, 3), torch.nan),), ValueError, "read must be finite in float32, got NaN"),
        ((torch.ones(1, 3, dtype=torch.int64),), TypeError, "tensor, got torch.int64"),
        (([[1.0, 0]],), TypeError, "floating point tensor, got list"),
        ((torch.ones(1, 3), torch.ones(2, 3)), ValueError, r"write must be \[1, 3\]"),
        ((torch.ones(1, 3), torch.ones(1, 3), torch.ones(2)), ValueError, r"offset must be \[1\]"),
        ((torch.eye(2), None, None, torch.ones(2)), ValueError, "must be a number or 0-dim"),
    ],
)
def test_wrong_factors_are_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        Projector(*arguments)


def test_wrong_side_and_wrong_width_are_refused():
    with pytest.raises(ValueError, match='side must be "image" or "text"'):
        Projector(basis(1), side="both")
    with pytest.raises(ValueError, match=r"Projector: x must be \[..., 24\], got \[2, 5\]"):
        symmetric()(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"residual: x must be \[..., 24\]"):
        symmetric().residual(torch.randn(2, 5))


def test_factors_are_copies_of_what_was_given():
    read = basis(2).float()
    p = Projector(read)
    read.zero_()
    assert p.read.norm() > 1


def test_compiles_whole_with_tensor_strengths_and_any_batch_without_recompiling():
    torch._dynamo.reset()
    p = symmetric()
    call = torch.compile(p, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n, s in pairwise([5, 7, 11, 13]):
            strength = torch.tensor(s / 10)
            assert torch.equal(call(rows(n), strength), p(rows(n), strength))


def test_strength_of_another_shape_than_the_rows_is_refused():
    with pytest.raises(
        ValueError, match=r"strength must be 0-dim, \[n\] or \[3, 2\].*got \[2, 3\]"
    ):
        symmetric()(rows(3, 2), torch.ones(2, 3))
    for wrong in ("0.5", [0.0, 1.0], None):
        with pytest.raises(TypeError, match="strength must be a number or a tensor"):
            symmetric(strength=wrong)
    with pytest.raises(ValueError, match=r"must be a number or 0-dim, got torch\.complex64"):
        symmetric(strength=torch.tensor(1j))
    with pytest.raises(TypeError, match="Projector: x must be a tensor, got list"):
        symmetric()([[1.0] * D])


def test_state_dict_carries_the_whole_projector_and_nothing_else_loads(tmp_path):
    p = oblique().T
    p.provenance["method"] = "ccup"
    model, other = (torch.nn.Sequential(torch.nn.Linear(D, D), q) for q in (p, oblique(seed=9)))
    path = tmp_path / "m.safetensors"
    save_file({k: t.contiguous() for k, t in model.state_dict().items()}, path)
    other.load_state_dict(load_file(path))
    q = other[1]
    assert (q.content_hash(), q.side, q.provenance) == (p.content_hash(), "text", p.provenance)
    rounded = {k: t.bfloat16() if t.is_floating_point() else t for k, t in p.state_dict().items()}
    for assign in (False, True):
        with pytest.raises(ValueError, match="factors as they were saved, got others"):
            oblique().load_state_dict(rounded, assign=assign)
    with pytest.raises(ValueError, match="factors as they were saved, got others"):
        symmetric().load_state_dict(p.state_dict(), strict=False)


def test_a_strength_set_out_of_range_is_not_saved(tmp_path):
    p = symmetric()
    p.strength.fill_(5)
    with pytest.raises(ValueError, match=r"strength must be in \[0, 2\], got 5"):
        p.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_made_in_inference_mode_it_serves_autograd_afterwards():
    with torch.inference_mode():
        p = Projector(basis(2) * 1, strength=torch.tensor(0.5) * 1)
        q = p.scaled(1.0)
    for one in (p, q):
        x = rows(3).requires_grad_()
        one(x).sum().backward()
        assert x.grad.isfinite().all()


def test_provenance_is_plain_json():
    for wrong in ({"a": torch.ones(1)}, {"forget": ["cat"]}, {"head_hash": 123}):
        with pytest.raises(TypeError, match="Projector: provenance"):
            Projector(basis(1), provenance=wrong)
    assert Projector(basis(1), provenance={"forget": None, "names": ("a",)}).provenance == {
        "names": ["a"]
    }


@pytest.mark.parametrize(
    "wrong",
    [{"forget": ["cat"]}, {"keep": {"names": 5}}, {"forget": {"names": ["cat", 1]}}, ["cat"],
     {"parameters": [1]}, {"method": 1}, {"forget": {"names": "cat"}}],
)  # fmt: skip
def test_an_odd_provenance_is_refused_wherever_it_comes_from(wrong, tmp_path):
    with pytest.raises(TypeError, match=r"^Projector: provenance"):
        Projector(basis(1), provenance=wrong)
    p = symmetric()
    tensors, meta = p.parts()
    files.write(tmp_path / "p", "projector", tensors, meta | {"provenance": wrong})
    with pytest.raises(ValueError, match=r"^load: path must hold a projector's provenance"):
        clipproj.load(tmp_path / "p")
    odd = symmetric()
    odd.provenance = wrong
    with pytest.raises(ValueError, match="a projector's provenance"):
        p.load_state_dict(odd.state_dict())


def test_factors_of_a_file_that_make_no_projector_are_a_value_error(tmp_path):
    tensors, meta = symmetric().parts()
    for wrong in ({}, tensors | {"read": tensors["read"].int()}):
        files.write(tmp_path / "p", "projector", wrong, meta)
        with pytest.raises(ValueError, match=r"^load: path must hold a projector: "):
            clipproj.load(tmp_path / "p")


def test_names_that_are_none_are_left_out():
    history = {"forget": {"names": None, "rows": 1}, "method": None}
    assert Projector(basis(1), provenance=history).provenance == {"forget": {"rows": 1}}


def test_repr_without_data():
    assert "rank=3" in repr(copy.deepcopy(symmetric()).to("meta"))


def test_factors_beyond_float32_are_refused():
    with pytest.raises(ValueError, match="must be finite in float32"):
        Projector(torch.full((1, 3), 1e300, dtype=torch.float64), torch.ones(1, 3))


def test_number_strengths_above_one_compile():
    torch._dynamo.reset()
    p = oblique()
    compiled = torch.compile(lambda x: p(x, 1.5), fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match="above 1"):
        want = p(rows(2), 1.5)
    assert torch.equal(compiled(rows(2)), want)


def test_exports_inside_a_model(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(D, D), oblique())
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (rows(4),), dynamic_shapes=[{0: batch}])
    torch.export.save(program, tmp_path / "m.pt2")
    again = torch.export.load(tmp_path / "m.pt2").module()
    assert torch.equal(again(rows(7)), model(rows(7)))


def test_meta_models_are_filled_by_loading():
    want = oblique()
    for fill in ({"assign": True}, {}):
        q = oblique(seed=5).to("meta")
        q.state_dict()
        if not fill:
            q.to_empty(device="cpu")
        q.load_state_dict(want.state_dict(), **fill)
        assert q.content_hash() == want.content_hash()
