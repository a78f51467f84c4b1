"""What nvcc makes of the kernels: registers, spills, shared memory, time to compile.

    python tools/ptxas.py [--arch 80 90] [--out benchmarks/results/ptxas.md]

Needs nvcc (on the PATH, or CUDA_HOME) and g++, no GPU and no torch. Fails where a kernel over tiles
spills registers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]

KERNELS = """
#include "cuda/project_kernels.cuh"
namespace clipproj {
Kernel all(int type, const Plan& plan, const ProjectParams<float>& p) {
  return type == 0   ? project_kernel_of<float>(plan, p)
         : type == 1 ? project_kernel_of<__nv_bfloat16>(plan, p)
                     : project_kernel_of<__half>(plan, p);
}
}
"""
# Compute capability, multiprocessors, KiB of shared memory of a block and of a multiprocessor.
DEVICES = {"A100": (8, 108, 163, 164), "L40S": (8, 142, 99, 100), "H100": (9, 132, 227, 228)}
PLANS = """
#include <cstdio>
#include "cuda/project_plan.h"
int main() {
  struct { const char* name; clipproj::DeviceProperties device; } devices[] = {DEVICES};
  for (auto& [name, device] : devices)
    for (auto type : {clipproj::Type::kBFloat16, clipproj::Type::kFloat})
      for (long d : {512, 768, 1024})
        for (long k : {16, 64}) {
          clipproj::ProjectParams<float> p{};
          p.out = &p, p.n = 65536, p.d = d, p.k = k, p.normalize = true;
          const auto plan = clipproj::plan_project(type, p, device);
          std::printf("| %s | %s | %ld | %ld | %d | %.1f | %ld |\\n", name,
                      type == clipproj::Type::kFloat ? "float32" : "bfloat16", d, k, plan.rows,
                      plan.shared / 1024.0,
                      device.shared_of_multiprocessor / long(plan.shared + 1024));
        }
}
"""


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    found = f"{home}/bin/nvcc" if home else shutil.which("nvcc")
    if not found:
        raise SystemExit("ptxas.py: needs nvcc, on the PATH or in $CUDA_HOME/bin")
    return found


def compiled(arch: str, folder: Path) -> tuple[dict[str, tuple[int, int]], float]:
    """Registers and bytes of spills of each kernel, and the seconds that nvcc took."""
    source = folder / "kernels.cu"
    source.write_text(KERNELS)
    start = time.perf_counter()
    command = [nvcc(), "-std=c++17", "-O3", f"-I{CSRC}", "-c", source, "-o", folder / "kernels.o"]
    command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}", "-Xptxas", "-v"]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    kernels = {}
    report = re.compile(
        r"Compiling entry function '\w*?\d+(project(?:_\w+?)?_kernel)I(\w*?)E+v\w*' .*?"
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    for name, types, stores, loads, registers in report.findall(done.stderr):
        kernels[readable(name, types)] = (int(registers), int(stores) + int(loads))
    assert kernels, done.stderr
    return kernels, seconds


def readable(name: str, types: str) -> str:
    """project_half_kernel, 13__nv_bfloat16Li32ELb1 -> project_half_kernel<bfloat16, 32, banked>"""
    flags = ["solved"] if name == "project_wide_kernel" else ["banked", "solved"]
    given = [t for t in ("bfloat16", "half") if t in types]
    given += ["float"] if types.startswith("f") else []
    given += re.findall(r"Li(\d+)", types)
    on = re.findall(r"Lb(\d)", types)
    given += [flag for flag, value in zip(flags, on, strict=False) if value == "1"]
    return f"{name}<{', '.join(given)}>"


def plans(folder: Path) -> str:
    """The table of PLANS."""
    devices = ", ".join(
        f'{{"{name}", {{{major}, {sms}, {block} * 1024, {all_} * 1024}}}}'
        for name, (major, sms, block, all_) in DEVICES.items()
    )
    source = folder / "plans.cpp"
    source.write_text(PLANS.replace("DEVICES", devices))
    command = ["g++", "-std=c++17", f"-I{CSRC}", source, "-o", folder / "plans"]
    subprocess.run(command, check=True)
    return subprocess.run([folder / "plans"], check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES, metavar="80")
    parser.add_argument("--out", type=Path, help="a Markdown file (default: print)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = {arch: compiled(arch, Path(name)) for arch in options.arch}
        table_of_plans = plans(Path(name))

    version = subprocess.run([nvcc(), "--version"], check=True, capture_output=True, text=True)
    release = re.search(r"release ([\d.]+)", version.stdout)
    lines = ["# What nvcc makes of the kernels", ""]
    lines += [f"Written by `python tools/ptxas.py`, CUDA {release[1]}, `-O3 -Xptxas -v`."]
    lines += ["Registers of a thread (255 is the most, 128 leaves room for two blocks of 256),"]
    lines += ["then bytes of spills where there are any. On sm_75, which lacks the instructions,"]
    lines += ["kernels over tiles trap and are never launched.", ""]
    lines += ["| kernel | " + " | ".join(f"sm_{arch}" for arch in found) + " |"]
    lines += ["|---" * (len(found) + 1) + "|"]
    for kernel in sorted(set().union(*[kernels for kernels, _ in found.values()])):
        cells = [kernels.get(kernel) for kernels, _ in found.values()]
        texts = ["-" if c is None else f"{c[0]}" + (f", {c[1]} B" if c[1] else "") for c in cells]
        lines += [f"| `{kernel}` | " + " | ".join(texts) + " |"]
    lines += ["| seconds to compile | " + " | ".join(f"{s:.1f}" for _, s in found.values()) + " |"]
    lines += ["", "Shared memory is asked for at the launch (`csrc/cuda/project_plan.h`):"]
    lines += ["normalised rows, n = 65536. Rows of a tile, KiB of a block, and how many blocks a"]
    lines += ["multiprocessor has shared memory for (registers: two).", ""]
    lines += ["| device | x | d | k | rows | KiB | blocks |", "|---" * 7 + "|"]
    text = "\n".join(lines) + "\n" + table_of_plans
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")

    spills = [
        f"{kernel} on sm_{arch}: {bytes_} bytes"
        for arch, (kernels, _) in found.items()
        for kernel, (_, bytes_) in kernels.items()
        if bytes_
    ]
    if spills:
        raise SystemExit("ptxas.py: registers are spilled by " + ", ".join(spills))


if __name__ == "__main__":
    main()
