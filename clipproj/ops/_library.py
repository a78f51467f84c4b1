"""Loads the compiled libraries: `_C` always, the CUDA kernels when this torch can use them.

`_C_cu<major>` is named after the CUDA major it was built for. A CPU torch leaves it alone, so one
folder serves both; a torch of another CUDA major gets a warning, never a crash at the first call.
"""

import re
import warnings
from pathlib import Path

import torch  # first: it brings the shared libraries that ours link to

from clipproj import _C


def load_cuda() -> Path | None:
    """Opens the CUDA kernels for this torch; returns their library, None where there are none.

    Raises OSError when the library of the right CUDA major is there but cannot be opened.
    """
    libraries = {
        match[1]: path
        for path in sorted(Path(_C.__file__).parent.glob("_C_cu*.so"))
        if (match := re.match(r"_C_cu(\d+)\.", path.name))
    }
    if torch.version.cuda is None or not libraries:
        return None
    major = torch.version.cuda.split(".")[0]
    if major not in libraries:
        warnings.warn(
            f"clipproj was built for CUDA {', '.join(libraries)}, but this torch has CUDA "
            f"{torch.version.cuda}: only CPU tensors will work",
            stacklevel=2,
        )
        return None
    torch.ops.load_library(libraries[major])
    return libraries[major]


CUDA_LIBRARY = load_cuda()
