"""Models of transformers: `attach`, which takes those of open_clip and OpenAI's clip too."""

from clipproj.plugins.attach import Attached, attach

__all__ = ["Attached", "attach"]
