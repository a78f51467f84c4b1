"""The tenants' store: what changed since when, what is on disk, what is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from clipproj import Projector, nullspace
from clipproj.serve import store as stores
from clipproj.serve.errors import ServiceError
from clipproj.serve.store import Store, from_bytes, to_bytes

D = 16


def projector(rank: int = 1, seed: int = 0) -> Projector:
    rows = torch.randn(rank, D, generator=torch.Generator().manual_seed(seed))
    return nullspace(rows, contrast="none")


def file(rank: int = 1, seed: int = 0) -> bytes:
    return to_bytes(projector(rank, seed))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "tenants", capacity=10)
    yield made
    made.close()


def refusal(work: object, *args: object, **options: object) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        work(*args, **options)
    return caught.value


def test_changes_since_a_version(store: Store) -> None:
    store.put("a", file())
    first = store.changes(0, 0)
    assert (first.full, set(first.tenants), first.version) == (True, {"a"}, 1)
    assert store.changes(first.epoch, 1).tenants == {}
    store.put("b", file(2))
    store.put("a", file(1, seed=1))
    store.remove("b")
    since = store.changes(first.epoch, 1)
    assert not since.full
    assert since.tenants == {"a": store.file("a"), "b": None}
    assert since.version == store.version == 4
    assert store.changes(first.epoch + 1, 4).full


def test_who_is_far_behind_gets_everything(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "TOMBSTONES", 3)
    store.put("stays", file())
    for i in range(5):
        store.put(f"t{i}", file())
        store.remove(f"t{i}")
    assert store.changes(store.epoch, 1).full  # what went first is forgotten
    late = store.changes(store.epoch, store.version - 2)
    assert (late.full, late.tenants) == (False, {"t4": None})


def test_a_new_store_on_the_folder_knows_the_tenants(tmp_path: Path) -> None:
    first = Store(tmp_path, 10)
    first.put("Acme", file(2))
    first.put("acme", file(1))
    first.put("gone", file())
    first.remove("gone")
    about, kept = first.about("Acme"), first.file("Acme")
    first.close()
    again = Store(tmp_path, 10)
    assert again.names() == ["Acme", "acme"]
    assert again.about("Acme") == about
    assert again.file("Acme") == kept
    assert again.epoch > first.epoch
    again.close()


def test_one_store_at_a_time(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LOCK_WAIT", 0.1)
    with pytest.raises(RuntimeError, match="another store holds"):
        Store(tmp_path / "tenants", 10)


def test_a_damaged_tenant_is_named_at_the_start(tmp_path: Path) -> None:
    first = Store(tmp_path, 10)
    first.put("a", file())
    first.close()
    (path,) = tmp_path.glob("a.*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=path.name):
        Store(tmp_path, 10)


def test_what_is_refused_changes_nothing(store: Store) -> None:
    store.put("a", file(4))
    before = store.version, store.file("a"), store.names()
    assert refusal(store.put, "a", file(), create=True).status == 409
    full = refusal(store.put, "b", file(7))
    assert (full.status, full.code) == (507, "bank_full")
    assert "4 of 10" in full.message
    assert refusal(store.put, "../b", file()).status == 400
    with pytest.raises(ValueError, match="must hold a projector"):
        store.put("b", file()[:-3])
    assert refusal(store.remove, "b").status == 404
    assert refusal(store.about, "b").status == 404
    assert refusal(store.file, "b").status == 404
    assert (store.version, store.file("a"), store.names()) == before
    store.put("a", file(10))  # in place of what it had


def test_a_full_disk_leaves_the_old_projector(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", file())
    before = store.version, store.file("a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Projector, "save", full)
    assert refusal(store.put, "a", before[1]).status == 507
    assert (store.version, store.file("a")) == before


def test_changes_made_at_once_are_all_counted(store: Store) -> None:
    data = [file(seed=i) for i in range(8)]

    def work(i: int) -> None:
        for _ in range(5):
            store.put(f"t{i}", data[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.version == 40
    kept = {
        n: from_bytes(d).content_hash() for n, d in store.changes(store.epoch, 0).tenants.items()
    }
    assert kept == {f"t{i}": from_bytes(d).content_hash() for i, d in enumerate(data)}


def test_a_store_whose_folder_was_lost_is_newer_than_the_one_before(tmp_path: Path) -> None:
    before = Store(tmp_path / "a")
    before.close()
    assert Store(tmp_path / "b").epoch > before.epoch
