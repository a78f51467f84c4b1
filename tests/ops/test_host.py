"""What pybind11 carries (`clipproj._C`), the environment variable, and the ABI that we promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import clipproj
from clipproj import _C
from clipproj.ops import _library


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_build_info() -> None:
    info = _C.build_info()
    assert set(info) == {
        "version",
        "compiler",
        "torch_built",
        "torch_target",
        "cuda_built",
        "cpu_isas",
    }
    assert info["version"] == clipproj.__version__
    assert info["torch_target"] == "2.10"
    assert info["cpu_isas"][0] == "scalar"
    assert info["cpu_isas"] == sorted(info["cpu_isas"], key=["scalar", "avx2", "avx512"].index)


def test_set_cpu_isa(cpu_isa: str) -> None:
    assert _C.cpu_isa() == cpu_isa


@pytest.mark.parametrize("name", ["sse9", "", "AVX2"])
def test_unknown_isa_is_a_value_error(name: str) -> None:
    before = _C.cpu_isa()
    text = rf"set_cpu_isa: name must be one of scalar.* on this machine, got '{name}'"
    with pytest.raises(ValueError, match=text):
        _C.set_cpu_isa(name)
    assert _C.cpu_isa() == before


def test_environment_sets_the_isa() -> None:
    code = "from clipproj import _C; print(_C.cpu_isa())"
    assert python(code, CLIPPROJ_CPU_ISA="scalar").stdout.strip() == "scalar"
    bad = python(code, CLIPPROJ_CPU_ISA="sse9")
    assert "CLIPPROJ_CPU_ISA must be one of scalar" in bad.stderr
    assert bad.returncode == 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with CUDA libraries 12 and 13, that cannot really be opened."""
    for major in (12, 13):
        (tmp_path / f"_C_cu{major}.abi3.so").write_bytes(b"no library")
    monkeypatch.setattr(_library, "_C", SimpleNamespace(__file__=str(tmp_path / "_C.so")))
    return tmp_path


def test_cuda_library_of_the_right_major_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(torch.ops, "load_library", opened.append)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    assert _library.load_cuda() == folder / "_C_cu12.abi3.so"
    assert opened == [folder / "_C_cu12.abi3.so"]


def test_cuda_library_that_does_not_open_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(OSError, match="_C_cu13"):
        _library.load_cuda()


def test_cuda_library_of_another_major_warns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    with pytest.warns(UserWarning, match=r"built for CUDA 12, 13, but this torch has CUDA 11\.8"):
        assert _library.load_cuda() is None


def test_cpu_torch_leaves_cuda_libraries_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library.load_cuda() is None


@pytest.mark.parametrize(
    "library", sorted(Path(_C.__file__).parent.glob("_C*.so")), ids=lambda path: path.name
)
def test_libraries_need_the_stable_abi_only(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm of binutils")
    text = subprocess.check_output(["nm", "-DC", "--undefined-only", library], text=True)
    # Torch's C++ symbols change from release to release; its C shims (aoti_*, torch_*) do not.
    assert re.findall(r" U (?:\w+ )*(?:at|c10|torch)::.*", text) == []
