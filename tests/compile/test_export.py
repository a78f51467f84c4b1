"""torch.export and AOTInductor of a service with a bank, saved, and loaded in another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import recipes
import torch
from editing import projector
from torch import Tensor, nn

from clipproj import Projector, ProjectorBank

TITLES = "torch.export", "AOTInductor"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the page's names are after both sections; its files are in the folder `here`."""
    here = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.chdir(here)
        return recipes.run(*TITLES) | {"here": here}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def wanted(page: dict, images: Tensor, held: list[Projector | None], strength: Tensor) -> list:
    """Rows and logits of eager torch, by each row's projector."""
    features = page["service"].visual(images)
    head = page["service"].head
    rows = [
        nn.functional.normalize(f[None]) if p is None else p(f[None], s, True)
        for p, f, s in zip(held, features, strength, strict=True)
    ]
    rows = torch.cat(rows)
    return [rows, head.scale * rows @ head.classes.T]


def check(call: Callable, page: dict, bank: ProjectorBank, sizes: tuple[int, ...]) -> None:
    names = [*bank.names(), None]
    for n in sizes:
        chosen = (names * n)[:n]
        images, strength = recipes.images(n), torch.rand(n)
        held = [None if name is None else bank.projector(name) for name in chosen]
        got = call(images, bank.index(chosen), strength)
        for value, want in zip(got, wanted(page, images, held, strength), strict=True):
            torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["program", "served"])
def test_tenants_change_in_what_was_loaded(page: dict, name: str) -> None:
    """Both read the live bank `tenants`, one as an exported program, one as a package."""
    call, bank = page[name], page["tenants"]
    check(call, page, bank, (2, 16, 33, 1))
    bank.add(name, projector("affine", seed=5, dim=recipes.WIDTH))
    check(call, page, bank, (3, 20))
    bank.replace(name, projector("oblique", seed=6, dim=recipes.WIDTH))
    check(call, page, bank, (7,))
    stale = bank.index([name] * 4)
    bank.remove(name)
    with pytest.raises(RuntimeError, match="span"):
        call(recipes.images(4), stale, torch.ones(4))
    check(call, page, bank, (4,))


def test_a_loaded_program_keeps_its_own_copies(page: dict) -> None:
    program = torch.export.load(page["here"] / "service.pt2").module()
    images, strength = recipes.images(4), torch.ones(4)
    index = page["bank"].index(["acme"] * 4)
    before = program(images, index, strength)
    page["bank"].replace("acme", projector(dim=recipes.WIDTH))
    try:
        assert torch.equal(program(images, index, strength)[0], before[0])
        assert not torch.allclose(page["service"](images, index, strength)[0], before[0])
    finally:
        page["bank"].replace("acme", page["cat"])


SERVER = """
import sys
import torch, clipproj

package, cases = sys.argv[1:]
loaded = torch._inductor.aoti_load_package(package)
held = set(loaded.get_constant_fqns())
given = torch.load(cases)
bank = clipproj.ProjectorBank(given["width"])
shared = {"head.projector." + name: buffer for name, buffer in bank.named_buffers()}
shared = {name: buffer for name, buffer in shared.items() if name in held}
loaded.load_constants(shared, check_full_update=False, user_managed=True)
for name, read in given["tenants"].items():
    bank.add(name, clipproj.Projector(read))
    for images, names, strength, want in given["cases"][name]:
        for got, expected in zip(loaded(images, bank.index(names), strength), want):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
assert not {"open_clip", "transformers", "onnx"} & set(sys.modules)
"""


def test_another_process_serves_tenants_of_its_own(page: dict, tmp_path: Path) -> None:
    """It imports torch and this package alone, and has never seen the model's code."""
    tenants = {name: projector(seed=seed, dim=recipes.WIDTH) for seed, name in enumerate("xy")}
    cases: dict[str, list] = {name: [] for name in tenants}
    for names in (["x", None], ["y", "x", None] * 7):
        images, strength = recipes.images(len(names)), torch.rand(len(names))
        want = wanted(page, images, [tenants.get(name) for name in names], strength)
        cases["y" if "y" in names else "x"].append((images, names, strength, want))
    file = tmp_path / "cases.pt"
    reads = {name: p.read for name, p in tenants.items()}
    torch.save({"width": recipes.WIDTH, "tenants": reads, "cases": cases}, file)
    package = str(page["here"] / "service-aoti.pt2")
    subprocess.run([sys.executable, "-c", SERVER, package, str(file)], check=True, timeout=300)


def test_without_this_package_loading_says_so(page: dict) -> None:
    code = "import sys, torch; torch._inductor.aoti_load_package(sys.argv[1])"
    package = str(page["here"] / "service-aoti.pt2")
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Could not find schema for clipproj::" in done.stderr


def test_strengths_of_projectors_are_baked_in(page: dict) -> None:
    """As the page says of 0-dim buffers: where they cannot be set, setting them has to fail."""
    assert "head.scale" not in page["served"].get_constant_fqns()
    with pytest.raises(RuntimeError, match=r"Constant not found: head\.scale"):
        page["served"].load_constants({"head.scale": torch.ones(())}, check_full_update=False)


def test_factors_as_arguments(page: dict) -> None:
    visual, edited = page["model"].visual, page["edited"]
    for n, k in ((2, 1), (33, 5), (1, 128), (16, 0)):
        read = torch.linalg.qr(torch.randn(recipes.WIDTH, k))[0].T.contiguous()
        p, images = Projector(read, strength=0.5), recipes.images(n)
        want = p(visual(images), normalize=True)
        got = edited(images, p.read, p.write, p.strength)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
