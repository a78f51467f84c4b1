"""`project_rows`."""

import torch
from torch import Tensor

from clipproj import _autograd, _check

_project_rows = torch.ops.clipproj.project_rows.default
_project_rows_flag = torch.ops.clipproj.project_rows.flag


def project_rows(
    x: Tensor,
    read: Tensor,
    write: Tensor,
    offset: Tensor | None,
    spans: Tensor,
    index: Tensor,
    strength: Tensor | None = None,
    *,
    normalize: bool = False,
    flag: Tensor | None = None,
) -> Tensor:
    """Projects each feature row by the projector of its own, from a bank of many."""
    _check.strength("project_rows", strength)
    bank = x, read, write, offset, spans, index, strength
    if flag is None:
        return _autograd.call(_project_rows, *bank, normalize=normalize)
    return _autograd.call(_project_rows_flag, *bank, normalize=normalize, flag=flag)
