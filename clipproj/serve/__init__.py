"""The service: embeddings and classes over HTTP, each request with its tenant's projector.

It runs on Ray Serve. `clipproj serve` starts it on one machine; on a cluster it is
`serve run clipproj.serve:build model=ViT-B-32 pretrained=openai`, see docs/serving.md.

`engine` does the work and needs neither Ray nor HTTP; `store` keeps the tenants; `http` speaks
OpenAI's dialect; `app` puts them on Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

    from clipproj.serve.settings import Settings

__all__ = ["build"]


def build(args: dict[str, Any] | Settings) -> Application:
    """The application for `serve.run`, or for `serve run clipproj.serve:build NAME=VALUE ...`.

    Args:
        args: `clipproj.serve.settings.Settings`, or a mapping with its fields, as strings too.

    Raises:
        ImportError: without Ray Serve (the extra `[serve]`).
        ValueError: for unknown settings, or values out of range.
    """
    from clipproj.serve.app import build

    return build(args)
