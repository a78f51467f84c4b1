"""Every operator at shapes that reach each kernel, small enough for compute-sanitizer.

tools/sanitizer.sh runs it, with `canary` once per run: a call that reads memory which nobody wrote,
which a working initcheck must report.
"""

from __future__ import annotations

import sys

import torch
from every_op import OPERATORS, inputs

from clipproj import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows short of a tile and beyond several; lengths of whole vectors and odd ones; ranks around 16.
SHAPES = ((1, 512, 8), (33, 512, 20), (300, 768, 64), (5, 17, 3), (2, 1152, 16), (40, 640, 0))


def main(which: list[str]) -> None:
    if which == ["canary"]:
        read = inputs(1, 512, 8).read
        ops.project(torch.empty(33, 512, device="cuda"), read, read)
        torch.cuda.synchronize()
        return
    for dtype in DTYPES:
        for shape in SHAPES:
            given = inputs(*shape, dtype)
            for name, call in OPERATORS.items():
                assert call(given).isfinite().all(), (name, shape, dtype)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1:])
