"""The operators: `torch.ops.clipproj.*` made whole for `torch.compile`, and their public forms.

Schemas and kernels are C++ (csrc/operators.h). Here is a file for each operator, with its fake
kernel, its derivatives unless they are the update's own, and its public form; _register.py tells
torch of them.

Every operator is the same rank-k update of feature rows,

    x' = x - strength (x read^T - offset) write        read, write [k, d], offset [k]

which is the orthogonal projection of arXiv 2512.14137 with `read is write` = orthonormal forget
directions, its CCUP edit and LEACE (arXiv 2306.03819) with two different factors.
"""

from clipproj.ops import _library  # noqa: F401  opens the libraries that define the operators
from clipproj.ops.fold import fold_
from clipproj.ops.linear import linear
from clipproj.ops.logits import logits
from clipproj.ops.project import project, project_, project_out
from clipproj.ops.project_rows import project_rows
from clipproj.ops.projected_norm import projected_norm

__all__ = [
    "fold_",
    "linear",
    "logits",
    "project",
    "project_",
    "project_out",
    "project_rows",
    "projected_norm",
]
