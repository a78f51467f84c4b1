"""Two libraries: `_C` (schemas, CPU kernels, pybind11) and `_C_cu<major>` (CUDA kernels).

CLIPPROJ_CUDA=auto|1|0 decides about the second one: `auto` builds it when this torch is a CUDA
build and a toolkit of the same major version is found, `1` fails when not, `0` leaves it out.
Whether a GPU is present is never asked: the build machine need not be the one that serves.
TORCH_CUDA_ARCH_LIST, MAX_JOBS, NVCC_THREADS and DEBUG=1 work as in torch's own builds.
"""

import os
import re
import shutil
import subprocess
from glob import glob
from pathlib import Path

from setuptools import setup

try:
    import pybind11
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as missing:  # only without build isolation: pyproject.toml asks for both
    raise SystemExit(
        f"clipproj: building needs {missing.name} in this environment: "
        "pip install 'torch>=2.10' 'pybind11>=3' ninja, then install clipproj again"
    ) from None

VERSION = re.search(r'__version__ = "(.+?)"', Path("clipproj/_version.py").read_text())[1]
TORCH_TARGET = "2.10"  # the stable ABI promises every torch from here on
DEBUG = os.environ.get("DEBUG") == "1"


def toolkit() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, the folder of the nvcc on the PATH, or the usual place.

    An nvcc on the PATH may be a wrapper script, whose folder holds no headers: only a folder with
    both the compiler and cuda_runtime.h counts.
    """
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places += [Path(nvcc).resolve().parents[1]] if nvcc else []
    places += ["/usr/local/cuda", *sorted(glob("/usr/local/cuda-*"), reverse=True)]
    for place in filter(None, places):
        if Path(place, "include/cuda_runtime.h").exists() and Path(place, "bin/nvcc").exists():
            return Path(place)
    return None


def cuda_refusal(home: Path | None) -> str | None:
    """Why the CUDA kernels cannot be built here, or None if they can."""
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if home is None:
        return "no CUDA toolkit was found (set CUDA_HOME)"
    text = subprocess.check_output([home / "bin/nvcc", "--version"], text=True)
    major = re.search(r"release (\d+)", text)[1]
    if major != torch.version.cuda.split(".")[0]:
        return f"the toolkit at {home} is CUDA {major}, torch was built with {torch.version.cuda}"
    return None


def default_arch_list() -> str:
    """torch's own architectures, from Turing on, as numbers; needs no GPU."""
    sms = [int(sm) for sm in re.findall(r"\bsm_(\d+)", torch._C._cuda_getArchFlags())]
    return ";".join(f"{sm // 10}.{sm % 10}" for sm in sms if sm >= 75) + "+PTX"


def wants_cuda(home: Path | None) -> bool:
    choice = os.environ.get("CLIPPROJ_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"CLIPPROJ_CUDA must be auto, 1 or 0, got {choice!r}")
    if choice == "0":
        return False
    refusal = cuda_refusal(home)
    if refusal and choice == "1":
        raise SystemExit(f"CLIPPROJ_CUDA=1, but {refusal}")
    print(f"clipproj: CUDA kernels: {f'left out, {refusal}' if refusal else f'built with {home}'}")
    return refusal is None


def extensions() -> list:
    home = toolkit()
    cuda = wants_cuda(home)
    major, minor = TORCH_TARGET.split(".")
    target = f"-DTORCH_TARGET_VERSION=0x{int(major):02x}{int(minor):02x}000000000000"
    optimise = ["-O0", "-g"] if DEBUG else ["-O3"]
    # No -march, no fast-math: instruction sets are chosen at run time (csrc/cpu/isa.cpp), and one
    # source must mean one result, hence no contraction of a * b + c behind our back either.
    cxx = [*optimise, target, "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
    anonymous = f"-ffile-prefix-map={Path.cwd()}/="  # error texts name csrc/..., not this machine
    cxx += ["-Wno-unused-parameter", anonymous]
    cxx += [] if DEBUG else ["-g0"]
    define = {
        "CLIPPROJ_VERSION": VERSION,
        "CLIPPROJ_TORCH_BUILT": torch.__version__,
        "CLIPPROJ_TORCH_TARGET": TORCH_TARGET,
        "CLIPPROJ_CUDA_BUILT": torch.version.cuda if cuda else "",
    }
    found = [
        cpp_extension.CppExtension(
            "clipproj._C",
            sorted(["csrc/python.cpp", *glob("csrc/cpu/*.cpp")]),
            include_dirs=[pybind11.get_include()],
            define_macros=[(name, f'"{value}"') for name, value in define.items()],
            extra_compile_args={"cxx": cxx},
            depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/cpu/*.inl"),
        )
    ]
    if cuda:
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_arch_list())
        nvcc = [*optimise, target, "-DUSE_CUDA", "-lineinfo"]
        nvcc += [f"-Xcompiler=-fvisibility=hidden,{anonymous}"]
        found.append(
            cpp_extension.CUDAExtension(
                f"clipproj._C_cu{torch.version.cuda.split('.')[0]}",
                sorted(glob("csrc/cuda/*.cu")),
                extra_compile_args={"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc},
                depends=glob("csrc/**/*.h", recursive=True) + glob("csrc/cuda/*.cuh"),
                py_limited_api=True,
            )
        )
    return found


setup(
    version=VERSION,
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(use_ninja=True)},
)
