"""ProjectorBank: what rows get, how entries come and go, what is refused."""

import copy
import io
import os
import pickle
import signal
import threading

import pytest
import torch
from cases import DTYPES, assert_bits, factor_dtype
from projectors import NAMES, D, affine, oblique, one_sided, rows, symmetric

import clipproj
from clipproj import _C, Projector, ProjectorBank
from clipproj.bank import BankFull


def each(projectors, names, x, strength=None, normalize=False):
    """What every row's own projector makes of it."""
    out = []
    for i, name in enumerate(names):
        p = Projector(torch.zeros(0, D)) if name is None else projectors[name]
        s = None if strength is None else strength[i]
        out.append(p(x[i], s, normalize))
    return torch.stack(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_each_row_gets_its_own_projector_to_the_bit(bank, projectors, dtype, normalize):
    x, index = rows(len(NAMES), dtype=dtype), bank.index(NAMES)
    assert index.dtype == torch.int32
    out = bank(x, index, normalize=normalize)
    assert_bits(out, each(projectors, NAMES, x, normalize=normalize))
    strength = torch.linspace(0, 1, len(NAMES), dtype=factor_dtype(dtype))
    assert_bits(bank(x, index, strength), each(projectors, NAMES, x, strength))
    assert_bits(bank(x, index, 0.5), each(projectors, NAMES, x, [0.5] * len(NAMES)))
    assert_bits(bank(x.reshape(2, 4, D), index), bank(x, index).reshape(2, 4, D))


def test_a_bank_of_symmetric_projectors_stores_one_matrix(projectors):
    bank = ProjectorBank(D, 16, symmetric=True)
    projectors = projectors | {"d": symmetric(2, strength=1.5)}
    for name in ("a", "d"):
        bank.add(name, projectors[name])
    factors = bank.factors()
    assert factors["write"] is factors["read"]
    assert factors["offset"] is None
    x = rows(3)
    assert_bits(bank(x, bank.index(["d", None, "a"])), each(projectors, ["d", None, "a"], x))
    for make, kind in ((oblique, "oblique"), (affine, "affine"), (one_sided, "one-sided")):
        with pytest.raises(ValueError, match=f"must be symmetric as the bank is, got an {kind}"):
            bank.add("x", make())


def test_entries_say_what_they_are(bank, projectors):
    for name, p in projectors.items():
        entry = bank.entry(name)
        assert entry.hash == p.content_hash() == bank.projector(name).content_hash()
        assert (entry.rank, entry.strength) == (p.rank, float(p.strength))
        assert bank.index([name]).item() == entry.index
    assert bank.names() == list(projectors)
    assert len(bank) == 5
    assert "a" in bank
    assert "z" not in bank
    assert bank.free == 32 - 3 - 3 - 3 - 2


def test_replace_switches_what_an_index_means(bank, projectors):
    x, index = rows(len(NAMES)), bank.index(NAMES)
    old = projectors["a"]
    projectors["a"] = oblique(5, seed=9)
    assert bank.replace("a", projectors["a"]) == index[0]
    assert_bits(bank(x, index), each(projectors, NAMES, x))
    assert bank.entry("a").hash == projectors["a"].content_hash() != old.content_hash()


def test_replace_with_another_strength_gets_a_new_index(bank, projectors):
    x, index = rows(len(NAMES)), bank.index(NAMES)
    projectors["a"] = symmetric(strength=0.5)
    assert bank.replace("a", projectors["a"]) != index[0]
    with pytest.raises(RuntimeError, match="in span 0"):
        bank(x, index)
    assert_bits(bank(x, bank.index(NAMES)), each(projectors, NAMES, x))


def test_a_removed_index_is_refused_until_recycled(bank):
    x, old = rows(1), bank.index(["b"])
    bank.remove("b")
    with pytest.raises(ValueError, match="index: names must be in the bank, got 'b'"):
        bank.index(["a", "b"])
    for _ in range(50):  # more than there are rows: rows are used again, the index is not
        assert bank.add("e", oblique(4, seed=2)) != old
        with pytest.raises(RuntimeError, match=r"spans must lie within .* in span 1"):
            bank(x, old)
        bank.remove("e")
    bank.recycle()
    made = {bank.add(f"new {i}", symmetric(0)) for i in range(60)}
    assert old.item() in made


def test_indices_run_out_and_can_be_recycled():
    bank = ProjectorBank(D, 8, entries=2)
    for _ in range(2):
        bank.add("a", symmetric(1))
        bank.remove("a")
    with pytest.raises(ValueError, match=r"add: bank must have an index left, got all 2"):
        bank.add("a", symmetric(1))
    bank.recycle()
    assert bank.add("a", symmetric(1)) in (0, 1)


def test_a_full_bank_refuses_and_is_as_it_was(bank, projectors):
    x, index = rows(len(NAMES)), bank.index(NAMES)
    before = bank(x, index)
    for change in (
        lambda: bank.add("big", symmetric(22)),
        lambda: bank.replace("a", symmetric(22)),
    ):
        with pytest.raises(ValueError, match="bank must have 22 free rows side by side, got 21 of"):
            change()
    assert_bits(bank(x, index), before)
    assert "big" not in bank
    assert bank.projector("a").content_hash() == projectors["a"].content_hash()
    bank.add("fits", symmetric(21))
    assert bank.free == 0


def test_scattered_rows_are_moved_together():
    bank = ProjectorBank(D, 20)
    made = {f"t{i}": oblique(2, seed=i) for i in range(10)}
    for name, p in made.items():
        bank.add(name, p)
    index = bank.index(sorted(made))
    for i in range(0, 10, 2):
        bank.remove(f"t{i}")
    bank.add("long", oblique(10, seed=99))
    assert bank.free == 0
    x = rows(5)
    odd = [f"t{i}" for i in range(1, 10, 2)]
    assert_bits(bank(x, index[1::2]), each(made, odd, x))


def test_several_projectors_become_one_entry(bank):
    x = rows(3)
    for parts in (["a", "b"], ["b", "a"], ["c", "a"]):
        p, q = (bank.projector(name) for name in parts)
        want = clipproj.compose(p, q)(x)
        assert_bits(bank(x, bank.index([parts] * 3)), want)
    p, q = symmetric(2), Projector(torch.linalg.qr(torch.randn(D, 2))[0].T)
    bank.add("p", p)
    bank.add("q", q)
    index = bank.index([("p", "q"), ["q", "p"], ("q", "p", "q")])
    assert len(index.unique()) == 1  # a union, whatever the order
    torch.testing.assert_close(bank(x, index), clipproj.union(p, q)(x))
    assert bank.index([("p", "p")]) == bank.index(["p"])
    assert bank.index([("p", "q")]) == index[0]
    free = bank.free
    bank.remove("q")
    assert bank.free == free + 2  # combinations are counted as free
    with pytest.raises(RuntimeError, match="spans must lie within"):
        bank(x, index)


def test_one_sided_projectors_join_their_half_spaces_and_no_others(bank):
    whole = one_sided(3)
    for name, part in (("p", slice(2)), ("q", slice(1, 3))):
        factors = whole.read[part], whole.write[part], whole.offset[part]
        bank.add(name, Projector(*factors, gram=whole.gram[part, part], forget=whole.read[part]))
    index = bank.index([("p", "q"), ["q", "p"]])
    assert len(index.unique()) == 1
    x = rows(2)
    torch.testing.assert_close(bank(x, index), whole(x), rtol=1e-3, atol=1e-3)
    assert torch.equal(bank.projector("p").forget, whole.read[:2])
    for other, why in (("a", "must be one-sided as|must be symmetric as"), ("d", "strength of p")):
        with pytest.raises(ValueError, match=why):
            bank.index([("p", other)])
    bank.add("r", one_sided(2, seed=9))  # half-spaces in the same metric, of other texts
    assert len(bank.index([("p", "r")])) == 1
    plain = Projector(whole.read[:1] / whole.read[0].norm(), gram=torch.eye(1))
    bank.add("s", plain)
    with pytest.raises(ValueError, match="must be measured by the kept texts that p is"):
        bank.index([("p", "s")])


def test_a_bank_takes_one_sided_projectors_of_so_many_directions():
    bank = ProjectorBank(D, 16, one_sided=2)
    bank.add("two", one_sided(2))
    with pytest.raises(ValueError, match="must have at most 2 directions one-sided, got 3"):
        bank.add("three", one_sided(3))
    with pytest.raises(ValueError, match="at most 0 directions one-sided, got 1"):
        ProjectorBank(D, 16, one_sided=0).add("one", one_sided(1))
    for wrong in (-1, 257):
        with pytest.raises(ValueError, match=r"one_sided must be in \[0, 256\]"):
            ProjectorBank(D, 16, one_sided=wrong)
    with pytest.raises(ValueError, match=r"one_sided must be in \[0, 0\]"):
        ProjectorBank(D, 16, symmetric=True, one_sided=1)


def test_combinations_yield_to_entries_but_not_to_their_own_call():
    bank = ProjectorBank(D, 12)
    for i in range(4):
        bank.add(str(i), oblique(2, seed=i))
    first = bank.index([("0", "1")])
    with pytest.raises(ValueError, match="index: bank must have 4 free rows"):
        bank.index([("0", "1"), ("2", "3")])
    bank.index([("2", "3")])
    with pytest.raises(RuntimeError, match="spans must lie within"):
        bank(rows(1), first)
    bank.add("4", oblique(4, seed=4))
    assert bank.free == 0


def test_file_and_state_keep_every_bit(bank, projectors, tmp_path):
    bank.remove("b")
    x, names = rows(3), ["c", "d", None]
    want = bank(x, bank.index(names))
    bank.index([("a", "c")])  # is not kept
    bank.save(tmp_path / "bank.safetensors")
    loaded = ProjectorBank.load(tmp_path / "bank.safetensors", capacity=11)
    assert loaded.names() == bank.names()
    assert loaded.content_hash() == bank.content_hash()
    assert loaded.free == 11 - 8
    assert_bits(loaded(x, loaded.index(names)), want)
    with pytest.raises(ValueError, match="bank must have"):
        ProjectorBank.load(tmp_path / "bank.safetensors", capacity=7)

    other = ProjectorBank(D, 32)
    other.add("gone", symmetric())
    buffer = io.BytesIO()
    torch.save(bank.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for copied in (other, copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert copied.names() == bank.names()
        assert_bits(copied(x, bank.index(names)), want)
        copied.add("b", projectors["b"])
        assert_bits(copied(x, copied.index(["b"] * 3)), projectors["b"](x))
    assert "b" not in bank
    assert other.free == bank.free - 3


def test_state_of_other_rows_is_refused(bank):
    state = bank.state_dict()
    state["read"] = state["read"].bfloat16()
    other = ProjectorBank(D, 32)
    with pytest.raises(ValueError, match=r"orthonormal rows|parts must be of"):
        other.load_state_dict(state)
    assert other.names() == []
    with pytest.raises(RuntimeError, match="spans must lie within"):
        other(rows(1), torch.tensor([0], dtype=torch.int32))


def test_damaged_and_foreign_files_are_refused(bank, tmp_path):
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="undamaged"):
        ProjectorBank.load(path)
    symmetric().save(path)
    with pytest.raises(ValueError, match="must hold kind 'bank', got 'projector'"):
        ProjectorBank.load(path)


def test_factors_keep_their_precision(bank):
    state = {name: b.clone() for name, b in bank.named_buffers()}
    bank.half().to(torch.bfloat16)
    for name, buffer in bank.named_buffers():
        assert torch.equal(buffer, state[name])
        assert buffer.dtype == state[name].dtype


def test_projectors_of_several_models_need_force(bank):
    def of(head):
        return Projector(symmetric().read, provenance={"head_hash": head, "model": head})

    bank.add("first", of("h" * 64))
    bank.add("unknown", symmetric())
    with pytest.raises(ValueError, match="must come from the model of the others"):
        bank.add("second", of("i" * 64))
    bank.add("second", of("i" * 64), force=True)
    bank.remove("second")
    bank.replace("first", of("i" * 64))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.add("a", symmetric()), ValueError, "name must be new to the bank, got 'a'"),
        (lambda b: b.add("", symmetric()), ValueError, "name must not be empty"),
        (lambda b: b.add(3, symmetric()), TypeError, "name must be a text, got int"),
        (lambda b: b.add("x", symmetric().read), TypeError, "must be a Projector, got Tensor"),
        (lambda b: b.add("x", Projector(torch.eye(2))), ValueError, "of width 24 .* got 2"),
        (lambda b: b.add("x", symmetric().T), ValueError, "for image features .* projector.T"),
        (lambda b: b.replace("x", symmetric()), ValueError, "name must be in the bank, got 'x'"),
        (lambda b: b.remove("x"), ValueError, "remove: name must be in the bank, got 'x'"),
        (lambda b: b.entry(None), ValueError, "entry: name must be in the bank, got None"),
        (lambda b: b.index("a"), TypeError, "names must be a list of names, got the text 'a'"),
        (lambda b: b.index([3]), TypeError, "names must be texts, None or lists"),
        (lambda b: b.index([()]), TypeError, "names must be texts, None or lists"),
        (lambda b: b.index([("a", "x")]), ValueError, "names must be in the bank, got 'x'"),
        (lambda b: b(rows(1), ["a"]), TypeError, "index must be a tensor from bank.index"),
        (lambda b: b(rows(1), b.index(["a"]), 2.5), ValueError, r"strength must be in \[0, 2\]"),
        (lambda b: b(rows(1), b.index(["a"]), "1"), TypeError, "strength must be a number"),
        (
            lambda b: b(rows(2), b.index(["a"])),
            ValueError,
            r"index must be \[2\], one for each row",
        ),
        (lambda b: b(3, b.index(["a"])), TypeError, "x must be a tensor, got int"),
        (lambda b: b(rows(1).to("meta"), b.index(["a"])), RuntimeError, "read must be on meta"),
        (lambda b: b(rows(1), b.index(["a"]).to("meta")), RuntimeError, "index must be on cpu"),
        (lambda b: b(rows(1), b.index(["a"]).long()), RuntimeError, "index must be int32"),
        (lambda b: b(rows(1), b.index(["a"]) + 9), RuntimeError, "in span 9"),
        (lambda b: b(rows(1), b.index(["a"]) - 9), RuntimeError, r"index must be in \[-1"),
        (lambda b: ProjectorBank(0), ValueError, r"dim must be in \[1, 2\^31\), got 0"),
        (lambda b: ProjectorBank(8, 1.5), TypeError, "capacity must be a whole number"),
        (lambda b: ProjectorBank(8, side="both"), ValueError, "side must be"),
    ],
)
def test_refusals(bank, call, error, message):
    free, names = bank.free, bank.names()
    with pytest.raises(error, match=message):
        call(bank)
    assert (bank.free, bank.names()) == (free, names)


def test_a_nan_stays_in_its_row(bank, projectors):
    x = rows(len(NAMES))
    want = bank(x, bank.index(NAMES))
    x[3, 5] = torch.nan
    out = bank(x, bank.index(NAMES))
    assert out[3].isnan().any()
    keep = torch.arange(len(NAMES)) != 3
    assert_bits(out[keep], want[keep])


def test_gradients_reach_x(bank):
    x = rows(len(NAMES), dtype=torch.float64).requires_grad_()
    index = bank.index(NAMES)
    assert torch.autograd.gradcheck(lambda x: bank(x, index, normalize=True), x)


def test_combinations_that_come_and_go_keep_their_indices():
    """Two that do not fit at once take turns as long as they like, and yield one at a time."""
    bank = ProjectorBank(D, 13, entries=8)
    for i in range(4):
        bank.add(str(i), oblique(2, seed=i))
    pairs = [("0", "1"), ("2", "3")]
    x = rows(1)
    wants = [clipproj.compose(*(bank.projector(name) for name in pair))(x) for pair in pairs]
    found = [[bank.index([pair]).item() for pair in pairs] for _ in range(20)]
    assert len({tuple(indices) for indices in found}) == 1
    assert bank.indices_left == 2
    for pair, want in zip(pairs, wants, strict=True):
        assert_bits(bank(x, bank.index([pair])), want)
    bank.recycle()
    assert bank.indices_left == 3


def test_a_failure_while_rows_are_written_loses_none(bank, monkeypatch):
    def failing(*_):
        raise MemoryError

    free = bank.free
    monkeypatch.setattr(type(bank), "_write_to", staticmethod(failing))
    with pytest.raises(MemoryError):
        bank.add("x", symmetric(4))
    monkeypatch.undo()
    assert (bank.free, "x" in bank) == (free, False)
    broken = symmetric(2)
    broken.read[0, 0] = torch.nan
    with pytest.raises(ValueError, match="add: projector must be finite"):
        bank.add("x", broken)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    wide, stop = ProjectorBank(512, 512), threading.Event()
    wide.add("a", Projector(torch.randn(256, 512), torch.randn(256, 512)))
    x, index = torch.randn(4096, 512), torch.zeros(4096, dtype=torch.int32)

    def call():
        while not stop.is_set():
            wide(x, index)

    reader = threading.Thread(target=call)
    reader.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(5)  # ends a child that hangs, with a status that is not 0
                _C.wait_for_bank_readers()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        reader.join()


def test_nobody_yields_for_what_cannot_fit(bank):
    x, pair = rows(1), bank.index([("a", "b")])
    want = bank(x, pair)
    with pytest.raises(BankFull, match="must have 24 free rows"):
        bank.add("big", oblique(24, seed=3))
    assert_bits(bank(x, pair), want)


def test_what_is_forgotten_stays_with_its_entry(tmp_path):
    """By name, not by hash: one edit may be of several texts, and of a combination nobody asks."""
    bank, p = ProjectorBank(D, 16), one_sided(2)
    same = Projector(p.read, p.write, p.offset, gram=p.gram, forget=p.read[:1])
    bank.add("two", p)
    bank.add("one", same)
    bank.add("none", Projector(p.read, p.write, p.offset, gram=p.gram))
    bank.index([("two", "one")])
    bank.save(tmp_path / "bank.safetensors")
    state = ProjectorBank(D, 16)
    state.load_state_dict(bank.state_dict())
    loaded = ProjectorBank.load(tmp_path / "bank.safetensors")
    for one in (bank, copy.deepcopy(bank), state, loaded):
        assert_bits(one.projector("two").forget, p.forget)
        assert_bits(one.projector("one").forget, p.read[:1])
        assert one.projector("none").forget is None
        assert_bits(one.projector("two").gram, p.gram)
        assert one.projector("two").content_hash() == p.content_hash()
    bank.replace("two", Projector(p.read, p.write, p.offset, gram=p.gram))
    assert bank.projector("two").forget is None
    assert bank.projector("one").forget is not None


def test_a_state_from_before_there_were_one_sided_ones_is_loaded():
    old = ProjectorBank(D, 16, one_sided=0)
    old.add("a", symmetric())
    bank = ProjectorBank(D, 16)
    bank.load_state_dict(old.state_dict())
    bank.add("b", one_sided(2))
    x = rows(2)
    want = torch.stack([symmetric()(x[0]), one_sided(2)(x[1])])
    assert_bits(bank(x, bank.index(["a", "b"])), want)


def test_an_index_never_changes_between_linear_and_one_sided():
    """So that what is measured on unit rows is known before the operator runs."""
    bank = ProjectorBank(D, 16)
    index = bank.add("a", symmetric())
    assert bank.replace("a", one_sided(2)) != index
    z = 7 * rows(3)
    names = ["a", None, "a"]
    edited = bank.edit_features(z, bank.index(names))
    assert_bits(edited[::2], one_sided(2).edit_features(z[::2]))
    assert_bits(edited[1], z[1])
    unit = bank.edit_features(z, bank.index(names), None, True)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(edited), rtol=1e-5, atol=1e-6)


def test_a_head_measures_rows_of_any_length():
    bank, p = ProjectorBank(D, 16), one_sided(2)
    bank.add("half", p)
    bank.add("flat", affine())
    classes = torch.nn.functional.normalize(rows(5), dim=1)
    head = clipproj.ZeroShotHead(classes, bank)
    z = 9 * rows(3)
    got = head(z, bank.index(["half", None, "flat"]))
    edited = torch.stack([p.edit_features(z[0]), z[1], affine()(z[2])])
    want = torch.nn.functional.normalize(edited, dim=1) @ classes.T
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    alone = head(z[:1], projector=p)
    torch.testing.assert_close(alone, want[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda g: g.fill_(torch.nan), "finite"),
        (lambda g: g[0].mul_(1.01), "must be read @ write.T"),
    ],
)
def test_a_gram_matrix_that_was_spoilt_is_refused(change, why):
    bank, p = ProjectorBank(D, 16), one_sided(2)
    with pytest.raises(ValueError, match=rf"gram must be {why}|gram {why}"):
        Projector(
            p.read, p.write, gram=change(p.gram.clone()) if why == "finite" else 1.01 * p.gram
        )
    change(p.gram)
    with pytest.raises(ValueError, match="gram must"):
        bank.add("p", p)
    assert bank.names() == []
    assert bank.free == 16


def test_a_gram_matrix_of_no_one_metric_is_refused():
    read, write = torch.eye(2, D), torch.eye(2, D)
    write[0, 1] = 0.3  # of read @ write.T alone one corner
    with pytest.raises(ValueError, match="gram must be symmetric"):
        Projector(read, write, gram=read @ write.T)
    with pytest.raises(ValueError, match="gram must be positive definite"):
        Projector(read[[0, 0]], write=read[[0, 0]], gram=torch.ones(2, 2))
    many = torch.eye(257, 300)
    with pytest.raises(ValueError, match="at most 256 directions, got 257"):
        Projector(many, gram=torch.eye(257))


def test_forms_that_do_not_mix_are_refused_and_nothing_is_lost(bank):
    x, free, left = rows(2), bank.free, bank.indices_left
    want = bank(x, bank.index(["a", "d"]))
    for pair in (("a", "d"), ("d", "b")):
        with pytest.raises(ValueError, match="one-sided"):
            bank.index([pair])
    with pytest.raises(ValueError, match="compose: projector must be linear"):
        clipproj.compose(bank.projector("d"), bank.projector("a"))
    assert (bank.free, bank.indices_left) == (free, left)
    assert_bits(bank(x, bank.index(["a", "d"])), want)
