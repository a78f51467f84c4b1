"""Projecting each row by a projector of its own, out of a bank of many."""

from typing import Any

from torch import Tensor

from clipproj.ops import _calls, _checks
from clipproj.ops._derivatives import ProjectedRows
from clipproj.ops._register import register


def _fake(
    op: str,
    x: Tensor,
    spans: Tensor,
    index: Tensor,
    normalize: bool,
    flag: Tensor | None = None,
    **factors: Any,
) -> Tensor:
    _checks.features(op, x, **factors, banked=True)
    _checks.bank(op, x, spans, index, flag)
    return x.new_empty(x.shape)


_project_rows, _project_rows_flag = register("project_rows", _fake, derivative=ProjectedRows)


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
    gram: Tensor | None = None,
    flag: Tensor | None = None,
) -> Tensor:
    """Projects each feature row by a projector of its own, out of a bank of many, in one pass.

    A batch of many tenants' rows costs one call, as with the adapters of Punica (arXiv 2310.18547)
    and S-LoRA (arXiv 2311.03285), but the shares of a bank are of any rank, without padding. A
    row's bits are those that `project` gives it with its own slice of the bank: they depend neither
    on the rest of the bank nor on the order or neighbours of the rows. Rows of one projector side
    by side are faster, in any order right. Differentiable in x as `project` is.

    Args:
        x: `[..., d]`, as in `project`; n rows with its leading dims flattened.
        read, write: `[k, d]`, as in `project`: the directions of all projectors.
        offset: `[k]`, as in `project`; None means zero.
        spans: `[m, 2]` int32, on the device of x: first direction and rank of each projector.
            Ranks may be 0, spans may overlap. A rank of -k is that of a one-sided projector of k
            directions.
        index: `[n]` int32, on the device of x: the projector of each row, -1 for none. Such a row
            keeps its bits unless it is normalised.
        strength: as in `project`.
        gram: `[k, g]`, like `read`, or None without one-sided projectors: row start + i holds the
            row i of that projector's own gram, as `project` takes it, in its first columns.
        normalize: as in `project`; of rows without a projector too.
        flag: int32, one element, on the device of x. Set to 1 on the GPU when a row has become NaN
            because of its index or span, else left as it is; the CPU raises instead.

    An index outside `[-1, m - 1]`, or one whose span lies outside the bank, never takes another
    projector's directions. On the CPU it raises before anything is written. A GPU has no way to
    raise without waiting for it: the row becomes NaN.

    Returns:
        A contiguous tensor like x that shares no memory with it.

    Raises:
        RuntimeError: as `project`; also when `spans`, `index` or `flag` has the wrong shape, dtype
            or device, and on the CPU for an index or span as above.
        TypeError: `strength` is a Python number.

    Example:
        >>> x, bank = torch.tensor([[3.0, 4.0]]).repeat(3, 1), torch.eye(2)
        >>> spans = torch.tensor([[0, 1], [1, 1]], dtype=torch.int32)  # two projectors of rank 1
        >>> index = torch.tensor([0, -1, 1], dtype=torch.int32)
        >>> project_rows(x, bank, bank, None, spans, index)
        tensor([[0., 4.],
                [3., 4.],
                [3., 0.]])
    """
    _checks.strength("project_rows", strength)
    bank = x, read, write, offset, spans, index, strength
    options = {"normalize": normalize, "gram": gram}
    if flag is None:
        return _calls.call(_project_rows, *bank, **options)
    return _calls.write(_project_rows_flag, "flag", *bank, **options, flag=flag)
