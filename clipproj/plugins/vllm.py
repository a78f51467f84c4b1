"""vLLM's pooling head, with a tenant and a strength for each request of a batch.

vLLM's `EmbeddingPoolerHead` (vllm/model_executor/layers/pooler/seqwise/heads.py) casts what was
pooled, applies `projector(pooled)`, cuts to the `dimensions` a request asked for and normalises.
This head does the same in the same order and projects before the cut, in one launch for the batch,
with the normalisation in it where no request is cut. It comes after the encoder cache, so no cached
image is ever one tenant's.

    pooler.head = PoolingHead.like(pooler.head, bank)      # pooler: the model's SequencePooler
    PoolingParams(task="embed", extra_kwargs={"clipproj": {"tenant": "acme", "strength": 1.5}})

One projector for everybody needs no more than vLLM's own slot: `head.projector = p`, where texts
and images are edited alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipproj.bank import ProjectorBank
from clipproj.plugins._rows import Asked, blank, check_projector, has, serve
from clipproj.projector import Projector
from clipproj.refusal import Refusal

KEY = "clipproj"  # in PoolingParams.extra_kwargs


class PoolingHead(nn.Module):
    """Pooled states to embeddings: cast, project the head, edit each row, cut, normalise.

    A request says `extra_kwargs["clipproj"]`: `tenant`, the name of a bank's entry, a list of names
    for several erasures at once, or None for a row that stays as it is (a text, where the bank is
    for images); and `strength`, a number in [0, 2] in place of the entry's own. With a bank,
    `tenant` must be said.

    Args:
        projector: a ProjectorBank, or one Projector for every row, with strengths at most.
        head: vLLM's `projector`: [n, in] -> [n, d], or None when the model projects by itself, as
            its CLIP does.
        head_dtype: what pooled states are cast to, a torch.dtype or its name, or None.
        activation: what normalises, or None. PoolerNormalize becomes part of the projection.
        on_error: "nan": a request without a tenant, with an unknown one or a bad strength gets a
            row of NaN, never an unedited one, and the others get theirs; "raise" raises. An
            exception in a pooling head ends vLLM's engine and every request in flight, and vLLM
            warms up with requests that say nothing. `check` refuses a request when it comes in.

    Raises TypeError, ValueError for arguments of another kind.
    """

    def __init__(
        self,
        projector: Projector | ProjectorBank,
        head: Callable[[Tensor], Tensor] | None = None,
        head_dtype: torch.dtype | str | None = None,
        activation: Callable[[Any], Any] | None = None,
        *,
        on_error: str = "nan",
    ) -> None:
        super().__init__()
        check_projector("PoolingHead", projector)
        if on_error not in ("raise", "nan"):
            raise Refusal("PoolingHead", "on_error", f'must be "raise" or "nan", got {on_error!r}')
        if isinstance(head_dtype, str):
            head_dtype = getattr(torch, head_dtype.removeprefix("torch."), None)
            if not isinstance(head_dtype, torch.dtype):
                raise Refusal("PoolingHead", "head_dtype", "must name a dtype of torch")
        self.projector = projector
        self.head = head
        self.head_dtype = head_dtype
        self.activation = activation
        self.on_error = on_error

    @classmethod
    def like(
        cls, head: Any, projector: Projector | ProjectorBank, *, on_error: str = "nan"
    ) -> PoolingHead:
        """In place of an `EmbeddingPoolerHead`, with its projector, dtype and activation.

        TypeError for anything without these three, such as a classifier's head.
        """
        names = ("projector", "head_dtype", "activation")
        if isinstance(head, PoolingHead) or not all(hasattr(head, name) for name in names):
            got = type(head).__name__
            raise TypeError(f"PoolingHead: head must be vLLM's EmbeddingPoolerHead, got {got}")
        for kind in type(head).__mro__:
            if kind.__name__ == "SequencePoolerHead":
                kind.register(cls)  # an ABC: its pooler asks isinstance
        return cls(projector, *(getattr(head, name) for name in names), on_error=on_error)

    def get_supported_tasks(self) -> set[str]:
        """As vLLM's head: "embed"."""
        return {"embed"}

    def check(self, params: Any) -> None:
        """What to call when a request comes in, before it joins a batch.

        Raises ValueError, TypeError for a tenant that is missing or unknown, a strength or
        dimensions out of range, or a key that means nothing here.
        """
        self._read(params)

    def forward(self, pooled_data: Tensor | Sequence[Tensor], pooling_metadata: Any) -> Any:
        """Embeddings [n, d]; a list of n rows when requests ask for different dimensions.

        Args:
            pooled_data: [n, in], or a list of n rows.
            pooling_metadata: its `pooling_params` [n], in the order of the rows.

        Raises:
            ValueError: another number of rows than requests; with on_error="raise" a request that
                `check` refuses.
        """
        params = pooling_metadata.pooling_params
        if len(pooled_data) != len(params):
            raise Refusal(
                "PoolingHead",
                "pooled_data",
                f"must have a row for each of {len(params)} requests, got {len(pooled_data)}",
            )
        if not isinstance(pooled_data, Tensor):
            pooled_data = torch.stack(list(pooled_data))
        if self.head_dtype is not None:
            pooled_data = pooled_data.to(self.head_dtype)
        rows = pooled_data if self.head is None else self.head(pooled_data)
        if rows.ndim != 2 or len(rows) != len(params):
            raise Refusal(
                "PoolingHead", "head", f"must give [{len(params)}, d] rows, got {list(rows.shape)}"
            )

        cuts = [param.dimensions for param in params]
        flags = [bool(_flag(param)) for param in params]
        cut = any(size is not None for size in cuts)
        normalises = type(self.activation).__name__ == "PoolerNormalize"
        fused = normalises and all(flags) and not cut
        rows = self._edit(rows, params, normalize=fused)
        if cut:
            # what a request does not want becomes 0, so that one pass normalises all lengths
            width, device = rows.shape[1], rows.device
            sizes = torch.tensor([width if n is None else n for n in cuts], device=device)
            beyond = torch.arange(width, device=device) >= sizes[:, None]
            rows = rows.masked_fill(beyond, 0)
        if not fused and self.activation is not None and any(flags):
            active = functional.normalize(rows, dim=-1) if normalises else self.activation(rows)
            chosen = torch.tensor(flags, device=rows.device)[:, None]
            rows = active if all(flags) else torch.where(chosen, active, rows)
        if not cut:
            return rows
        if len(set(cuts)) == 1:
            return rows[:, : cuts[0]]
        return [row if size is None else row[:size] for row, size in zip(rows, cuts, strict=True)]

    def _edit(self, rows: Tensor, params: Sequence[Any], normalize: bool) -> Tensor:
        """Every row by the projector that its request names, in one launch."""
        strict = self.on_error == "raise"
        asked: list[Asked | None] = []
        for i, param in enumerate(params):
            try:
                asked.append(self._read(param))
            except (TypeError, ValueError) as error:
                if strict:
                    which = f"(request {i} of {len(params)})"
                    if isinstance(error, Refusal):
                        raise Refusal(error.op, error.argument, f"{error.why} {which}") from None
                    raise type(error)(f"{error} {which}") from None
                asked.append(None)
        if isinstance(self.projector, ProjectorBank):
            edited, lost = serve(self.projector, rows, asked, normalize)
            if lost and strict:
                tenants = [params[i].extra_kwargs[KEY]["tenant"] for i in lost]
                raise Refusal("PoolingHead", "bank", f"must have room for {tenants}, got none")
            return edited
        numbers = [
            torch.nan if one is None or one.strength is None else one.strength for one in asked
        ]
        given = torch.tensor(numbers, dtype=torch.float32, device=rows.device)
        own = self.projector.strength.to(rows.device)
        given = torch.where(given.isnan(), own, given)
        edited = self.projector.edit_features(rows, given, normalize)
        return blank(edited, [i for i, one in enumerate(asked) if one is None])

    def _read(self, params: Any) -> Asked:
        """What a request says. TypeError, ValueError for what it must not say."""
        bank = self.projector if isinstance(self.projector, ProjectorBank) else None
        said = (getattr(params, "extra_kwargs", None) or {}).get(KEY, {})
        if not isinstance(said, Mapping):
            got = type(said).__name__
            raise TypeError(f'PoolingHead: extra_kwargs["{KEY}"] must be a dict, got {got}')
        if unknown := sorted(set(said) - {"tenant", "strength"}, key=str):
            raise Refusal(
                "PoolingHead",
                None,
                f'extra_kwargs["{KEY}"] may hold tenant and strength, got {unknown}',
            )
        size = params.dimensions
        if size is not None and not 1 <= size <= self.projector.dim:
            raise Refusal(
                "PoolingHead", "dimensions", f"must be in [1, {self.projector.dim}], got {size}"
            )
        strength = said.get("strength")
        if strength is not None:
            if not isinstance(strength, Real) or isinstance(strength, bool):
                got = type(strength).__name__
                raise TypeError(f"PoolingHead: strength must be a number, got {got}")
            if not 0 <= strength <= 2:
                raise Refusal("PoolingHead", "strength", f"must be in [0, 2], got {strength:g}")
            strength = float(strength)
        if bank is None:
            if "tenant" in said:
                raise Refusal(
                    "PoolingHead",
                    "tenant",
                    f"must come with a bank, got {said['tenant']!r} and one Projector",
                )
            return Asked(None, strength)
        if "tenant" not in said:
            raise Refusal(
                "PoolingHead",
                None,
                f'extra_kwargs["{KEY}"] must name a tenant, or None for none, got none',
            )
        tenant = said["tenant"]
        tenant = tuple(tenant) if isinstance(tenant, list) else tenant
        if not isinstance(tenant, str | tuple | None) or not has(bank, tenant):
            raise Refusal("PoolingHead", "tenant", f"must be in the bank, got {tenant!r}")
        return Asked(tenant, strength)


def _flag(params: Any) -> Any:
    """Whether to normalise: `use_activation`, which was `normalize` in earlier vLLM."""
    earlier = getattr(params, "normalize", None)
    return params.use_activation if earlier is None else earlier
