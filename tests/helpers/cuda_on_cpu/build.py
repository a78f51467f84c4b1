"""Builds the kernels for the CPU with g++, plain or under a sanitizer, and calls them."""

from __future__ import annotations

import ctypes
import fcntl
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
RUNTIME = ["fibre.cpp", "block.cpp", "warp.cpp", "async_copy.cpp"]
# For this machine alone. No contraction: kernels say fmaf where they mean it. No strict aliasing:
# they read shared memory as several types, which nvcc allows.
FLAGS = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS += ["-fPIC", "-DCLIPPROJ_CUDA_ON_CPU", f"-I{HERE.parent}"]
PLAIN, TILES, HALF = range(3)  # KernelKind of csrc/cuda/project_plan.h
KINDS = {torch.float32: "f", torch.bfloat16: "b", torch.float16: "h"}


def skip_without_compiler() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("cuda_on_cpu switches between fibres on x86-64 only")
    if not shutil.which("g++"):
        pytest.skip("needs g++")


def links_with(sanitizer: str) -> bool:
    given = ["g++", f"-fsanitize={sanitizer}", "-x", "c++", "-", "-o", "/dev/null"]
    done = subprocess.run(given, input="int main() {}", text=True, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def compile_all(out: Path, sources: dict[str, list[str]], *link: str) -> Path:
    """Compiles each source with its own flags beside FLAGS, two at a time, and links them; of
    several processes that ask for this folder the first one does, the others wait for it."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / "linked"
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile_all(target, sources, *link)
    return target


def _compile_all(target: Path, sources: dict[str, list[str]], *link: str) -> None:
    out = target.parent
    waiting = list(sources.items())
    while waiting:
        now = [
            subprocess.Popen(["g++", *FLAGS, *flags, "-c", HERE / name, "-o", out / f"{name}.o"])
            for name, flags in waiting[:2]
        ]
        assert [one.wait() for one in now] == [0] * len(now)
        waiting = waiting[2:]
    objects = [out / f"{name}.o" for name in sources]
    made = target.with_suffix(".part")
    subprocess.run(["g++", *link, *objects, "-o", made], check=True)
    made.rename(target)


def build_library(out: Path) -> Library:
    skip_without_compiler()
    sources = {name: [] for name in ["library.cpp", *RUNTIME]}
    return Library(ctypes.CDLL(str(compile_all(out, sources, "-shared"))))


def build_sanitized(out: Path, sanitizer: str) -> Path:
    """A program (sanitized.cpp). ThreadSanitizer instruments kernels only: see sanitizers.h."""
    asan = sanitizer == "address"
    flags = ["-g", "-O1", "-DCUDA_ON_CPU_ASAN" if asan else "-DCUDA_ON_CPU_TSAN"]
    instrumented = [*flags, f"-fsanitize={sanitizer}"]
    sources = dict.fromkeys(["library.cpp", "sanitized.cpp"], instrumented)
    sources |= dict.fromkeys(RUNTIME, instrumented if asan else flags)
    return compile_all(out, sources, f"-fsanitize={sanitizer}")


class Params(ctypes.Structure):
    """ProjectParams<float> of csrc/params.h."""

    _fields_ = [
        *dict.fromkeys(["x", "out", "norm", "read", "write"], ctypes.c_void_p).items(),
        *dict.fromkeys(["offset", "gram", "strength", "scale"], ctypes.c_void_p).items(),
        *dict.fromkeys(["spans", "index", "flag"], ctypes.c_void_p).items(),
        *dict.fromkeys(["n", "d", "k", "m", "x_row", "x_col"], ctypes.c_int64).items(),
        *dict.fromkeys(["out_row", "out_col", "gram_row", "strength_row"], ctypes.c_int64).items(),
        *dict.fromkeys(["clamps", "normalize"], ctypes.c_bool).items(),
    ]


class DeviceProperties(ctypes.Structure):
    """DeviceProperties of csrc/cuda/project_plan.h."""

    _fields_ = [
        ("major", ctypes.c_int),
        ("multiprocessors", ctypes.c_int64),
        ("shared_of_block", ctypes.c_int64),
        ("shared_of_multiprocessor", ctypes.c_int64),
    ]


class Plan(ctypes.Structure):
    """Plan of csrc/cuda/project_plan.h."""

    _fields_ = [
        *dict.fromkeys(["kernel", "rows", "teams"], ctypes.c_int).items(),
        *[("blocks", ctypes.c_int64), ("shared", ctypes.c_size_t)],
    ]


def kind(tensor: Tensor) -> ctypes.c_char:
    return ctypes.c_char(KINDS[tensor.dtype].encode())


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Library:
    """The functions of library.cpp; what they refuse is a RuntimeError."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def _call(self, name: str, *given: Any) -> None:
        error = ctypes.create_string_buffer(400)
        if getattr(self._library, name)(*given, error, ctypes.c_size_t(len(error))):
            raise RuntimeError(error.value.decode())

    def project(
        self,
        x: Tensor,
        read: Tensor,
        write: Tensor,
        offset: Tensor | None = None,
        strength: Tensor | None = None,
        *,
        gram: Tensor | None = None,
        clamps: bool = False,
        spans: Tensor | None = None,
        index: Tensor | None = None,
        flag: Tensor | None = None,
        scale: Tensor | None = None,
        out: Tensor | None = None,
        norm: Tensor | None = None,
        normalize: bool = False,
        rows: int = 0,
        blocks: int = 2,
        seed: int = 0,
    ) -> None:
        """Projects x [n, d], any strides, into out, which may be x, by the kernel over tiles of
        so many rows (0: the plain one); without out it measures only. With spans [m, 2] and
        index [n] the factors are a bank. With `clamps` nobody looks at gram."""
        (n, d), k, m = x.shape, len(read), 0 if spans is None else len(spans)
        p = Params(
            *map(address, (x, out, norm, read, write, offset, gram, strength)),
            *map(address, (scale, spans, index, flag)),
            *(n, d, k, m, *x.stride(), *(x if out is None else out).stride()),
            0 if gram is None else gram.shape[1],
            int(strength is not None and strength.dim() == 1),
            *(clamps, normalize),
        )
        self._call("run_project", ctypes.byref(p), kind(x), rows, blocks, ctypes.c_uint64(seed))

    def plan(
        self,
        n: int,
        d: int,
        k: int,
        dtype: torch.dtype,
        normalize: bool,
        device: DeviceProperties,
        *,
        banked: bool = False,
        gram: int = 0,
        clamps: bool = False,
    ) -> Plan:
        """How a launch on such a device covers n rows; banked: of a bank of k directions; gram: so
        many columns of it."""
        index, element = ctypes.c_int32(), ctypes.c_float()
        p = Params(n=n, d=d, k=k, m=1, gram_row=gram, clamps=clamps, normalize=normalize)
        if gram or clamps:
            p.gram = ctypes.addressof(element)
        if banked:
            p.index = ctypes.addressof(index)
        plan = Plan()
        pointers = ctypes.byref(device), ctypes.byref(plan)
        kind = ctypes.c_char(KINDS[dtype].encode())
        self._library.plan_project(ctypes.byref(p), kind, *pointers)
        return plan

    def planted(self, name: str, given: Tensor, out: Tensor, seed: int) -> None:
        pointers = ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(out.data_ptr())
        self._call("run_planted", name.encode(), *pointers, ctypes.c_uint64(seed))

    def multiply(self, a: Tensor, b: Tensor, out: Tensor, seed: int) -> None:
        transposed = b.T.contiguous()
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, b, transposed, out)]
        self._call("run_multiply", *pointers, ctypes.c_uint64(seed))

    def remove_barrier(self, file: str = "", line: int = 0) -> None:
        self._library.remove_barrier(file.encode(), line)
