"""Banks that are copied, sent to other processes or loaded into: no two write to the same rows."""

import copy
import pickle
import threading

import pytest
import torch
import torch.multiprocessing
from projectors import D, rows

from clipproj import Projector, ProjectorBank, ops


def symmetric(k, seed):
    directions = torch.randn(D, k, generator=torch.Generator().manual_seed(seed))
    return Projector(torch.linalg.qr(directions).Q.T.contiguous())


@pytest.fixture
def bank():
    made = ProjectorBank(D, 64)
    made.add("a", symmetric(k=4, seed=1))
    return made


def takes(bank, index, projector):
    x = rows(len(index))
    return torch.allclose(bank(x, index), projector(x), atol=1e-5)


def test_float64_factors_are_of_one_moment():
    bank = ProjectorBank(D, 8)
    old, new, other = (symmetric(k=4, seed=seed) for seed in (1, 2, 3))
    bank.add("acme", old)
    bank.add("other", other)
    x = rows(3, dtype=torch.float64)
    operands = bank.operands(x, bank.index(["acme"] * 3))
    bank.remove("other")
    bank.replace("acme", new)  # in the rows that were the other's
    assert torch.allclose(ops.project_rows(x, **operands), old(x))


def test_float64_rows_while_others_change_the_bank():
    bank = ProjectorBank(D, 16)
    versions = [symmetric(k=4, seed=seed) for seed in range(4)]
    bank.add("acme", versions[0])
    bank.add("other", symmetric(k=4, seed=9))
    done = threading.Event()

    def change():
        for i in range(10**9):
            if done.is_set():
                return
            bank.replace("acme", versions[i % 4])
            bank.replace("other", symmetric(k=4, seed=9))

    thread = threading.Thread(target=change)
    thread.start()
    x = rows(2, dtype=torch.float64)
    index, wants = bank.index(["acme"] * 2), [version(x) for version in versions]
    try:
        for _ in range(2000):
            y = bank(x, index)
            assert any(torch.allclose(y, want) for want in wants)
    finally:
        done.set()
        thread.join()


def test_loading_a_state_hands_no_index_out_again(bank):
    state = {key: value.clone() for key, value in bank.state_dict().items()}
    bank.add("former", symmetric(k=4, seed=2))
    index = bank.index(["former"])
    bank.load_state_dict(state)
    bank.add("next", symmetric(k=4, seed=3))
    with pytest.raises(RuntimeError, match="span"):
        bank(rows(1), index)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_bank_of_its_own(bank, duplicate):
    other, mine, theirs = duplicate(bank), symmetric(k=4, seed=2), symmetric(k=4, seed=3)
    bank.add("b", mine)
    other.add("c", theirs)
    assert bank.names() == ["a", "b"]
    assert other.names() == ["a", "c"]
    assert takes(bank, bank.index(["b"]), mine)
    assert takes(other, other.index(["c"]), theirs)


def test_a_copy_made_in_inference_mode_can_be_changed(bank):
    with torch.inference_mode():
        made = copy.copy(bank)
    made.add("b", symmetric(k=4, seed=2))


def test_copies_are_whole_while_others_change_the_bank(bank):
    versions = [symmetric(k=4, seed=seed) for seed in range(4)]
    done = threading.Event()

    def change():
        for i in range(10**9):
            if done.is_set():
                return
            bank.replace("a", versions[i % 4])

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(500):
            made = pickle.loads(pickle.dumps(copy.deepcopy(bank)))
            entry = made.entry("a")
            assert made.projector("a").content_hash() == entry.hash
            assert made.spans[entry.index].tolist() == [entry.start, entry.rank]
    finally:
        done.set()
        thread.join()


def _add(bank, results):
    bank.add("child's", symmetric(k=4, seed=5))
    right = takes(bank, bank.index(["a"]), symmetric(k=4, seed=1))
    results.put((bank.index(["child's"]).tolist(), right))


def test_a_process_has_a_bank_of_its_own(bank):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_add, args=(bank, results))
    process.start()
    index, right = results.get(timeout=120)
    process.join()
    assert right
    assert not bank.read.is_shared()
    with pytest.raises(RuntimeError, match="span"):
        bank(rows(1), torch.tensor(index, dtype=torch.int32))


def test_a_state_of_another_form_is_refused_and_edits_nothing():
    narrow, bank = ProjectorBank(D, 64, symmetric=True), ProjectorBank(D, 64)
    narrow.add("a", symmetric(k=4, seed=1))
    with pytest.raises((RuntimeError, ValueError), match="write"):
        bank.load_state_dict(narrow.state_dict())
    assert bank.names() == []


def test_a_strength_that_was_set_out_of_range_is_refused(bank):
    projector = symmetric(k=4, seed=2)
    projector.strength.fill_(5)
    with pytest.raises(ValueError, match="strength must be in"):
        bank.add("b", projector)
    assert bank.free == 60


def test_two_names_of_one_projector_have_an_index_of_their_own(bank):
    bank.add("b", symmetric(k=4, seed=1))
    index = bank.index([("a", "b")])
    bank.replace("b", symmetric(k=4, seed=2))
    assert takes(bank, index, symmetric(k=4, seed=1))


def test_a_change_that_fails_leaves_the_bank_as_it_was(bank, monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(Projector, "content_hash", fail)
    with pytest.raises(MemoryError):
        bank.replace("a", symmetric(k=4, seed=2))
    assert bank.free == 60
    assert takes(bank, bank.index(["a"]), symmetric(k=4, seed=1))
