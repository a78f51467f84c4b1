"""vLLM's pooler as its interface documents it, under the names that it uses.

vLLM itself is too big to install for tests. `reference` is what its pooler does with a head
and with each request, from its documented order: cast, project, cut, normalise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class Params:
    """vLLM's PoolingParams, those of its fields that an embedding head reads."""

    dimensions: int | None = None
    use_activation: bool | None = True
    extra_kwargs: dict[str, Any] | None = None


@dataclass
class Metadata:
    pooling_params: list[Params]


class PoolerNormalize(nn.Module):
    def forward(self, pooled: Any) -> Any:
        if isinstance(pooled, list):
            return [functional.normalize(row, dim=-1) for row in pooled]
        return functional.normalize(pooled, dim=-1)


class SequencePoolerHead(nn.Module, ABC):
    @abstractmethod
    def forward(self, pooled_data: Any, pooling_metadata: Metadata) -> Any: ...


class EmbeddingPoolerHead(SequencePoolerHead):
    """The slots of vLLM's head."""

    def __init__(self, projector: Any = None, head_dtype: Any = None, activation: Any = None):
        super().__init__()
        self.projector, self.head_dtype, self.activation = projector, head_dtype, activation

    def forward(self, pooled_data: Any, pooling_metadata: Metadata) -> Any:
        rows = torch.stack(list(pooled_data)).to(self.head_dtype)
        rows = self.projector(rows)
        return [
            reference(row, param)
            for row, param in zip(rows, pooling_metadata.pooling_params, strict=True)
        ]


class Pooler(nn.Module):
    """vLLM's SequencePooler: pools, then calls the head with the states and the metadata."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head

    def forward(self, states: Tensor, metadata: Metadata) -> Any:
        return self.head(states[:, -1], metadata)


def reference(row: Tensor, params: Params) -> Tensor:
    row = row if params.dimensions is None else row[: params.dimensions]
    return functional.normalize(row, dim=-1) if params.use_activation else row
