"""The families of models that clipproj knows, and what is special about each: tables alone.

Classes are named, not imported, so that no model library is needed. A new family of transformers
is a row of `TRANSFORMERS`; of open_clip and OpenAI's clip, a tower's class is a row of `IMAGE` or
`TEXT`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Absent:
    """Why a tower has no projection to fold into."""

    reason: str


Site = str | Absent  # dotted path of a Parameter or an nn.Linear, or why there is none

MAP_HEAD = Absent("features are the output of a residual MAP head, x + mlp(norm(x))")
POOLED = Absent("features are the pooled output of the trunk, nothing projects them")
NO_IMAGE = Absent("the model has no image tower")
NO_TEXT = Absent("the model has no text tower")


@dataclass(frozen=True)
class Family:
    """A class of models of transformers.

    Attributes:
        image, text: where the last projection of each tower is.
        image_end: of an image tower without one, the module whose result is the features.
        channels: whether they are dimension 1 of that module's result [n, d, ...].
        every_token: whether `get_*_features` gives a row for each token, of which the first is the
            feature; else it gives one row.
    """

    image: Site
    text: Site
    image_end: str | None = None
    channels: bool = False
    every_token: bool = False

    def single(self, tower: str) -> bool:
        """Whether it is that tower alone, which `forward` encodes."""
        return (self.text is NO_TEXT) if tower == "image" else (self.image is NO_IMAGE)


_CLIP = Family("visual_projection", "text_projection")
_IMAGE_ALONE = Family("visual_projection", NO_TEXT)
_TEXT_ALONE = Family(NO_IMAGE, "text_projection")
_SIGLIP = Family(MAP_HEAD, "text_model.head", image_end="vision_model.head")

TRANSFORMERS = {
    "CLIPModel": _CLIP,
    "ChineseCLIPModel": _CLIP,
    "AltCLIPModel": _CLIP,
    "MetaClip2Model": _CLIP,
    "CLIPSegModel": _CLIP,
    "OwlViTModel": _CLIP,
    "Owlv2Model": _CLIP,
    "VisionTextDualEncoderModel": _CLIP,
    "BlipModel": _CLIP,
    "CLIPVisionModelWithProjection": _IMAGE_ALONE,
    "CLIPTextModelWithProjection": _TEXT_ALONE,
    "MetaClip2VisionModelWithProjection": _IMAGE_ALONE,
    "MetaClip2TextModelWithProjection": _TEXT_ALONE,
    "FlavaModel": Family("image_projection", "text_projection", every_token=True),
    "GroupViTModel": Family("visual_projection.3", "text_projection.3"),
    "SiglipModel": _SIGLIP,
    "Siglip2Model": _SIGLIP,
    "AlignModel": Family(POOLED, "text_projection", image_end="vision_model.pooler", channels=True),
}
# How `config.model_type` begins where texts were padded to the full length in training, and not
# masked: with a mask they are other features.
UNMASKED = ("siglip",)

# Of open_clip and OpenAI's clip: where a tower of a class ends, below `visual` and `text`.
IMAGE = {"VisionTransformer": "proj", "ModifiedResNet": "attnpool.c_proj"}
TEXT = {"TextTransformer": "text_projection", "ModernTextTransformer": "text_projection"}
# In open_clip's TimmModel by what its `head` has; where that is empty, in the classifier of timm's
# trunk, which is called one of these.
TIMM_HEAD = {"proj": "proj", "mlp": "mlp.fc2", "pool": "pool.proj"}
TIMM_CLASSIFIER = (
    "classif", "classifier", "fc", "head", "head.classifier.4", "head.fc", "head.fc2", "head.l",
    "head.linear", "head.proj", "last_linear",
)  # fmt: skip
# Classes of open_clip whose `encode_*` normalise unless told not to.
NORMALISING = ("CoCa",)

_SITES = {
    *(f"visual.{site}" for site in IMAGE.values()),
    *(f"visual.head.{site}" for site in TIMM_HEAD.values()),
    *(f"visual.trunk.{site}" for site in TIMM_CLASSIFIER),
    *("text_projection", "text.proj", "text.proj.2"),
    *(f"text.{site}" for site in TEXT.values()),
    *(site for one in TRANSFORMERS.values() for site in (one.image, one.text) if type(site) is str),
}
_WEIGHT = re.compile(rf"(.+?\.)??({'|'.join(map(re.escape, sorted(_SITES)))})(\.weight)?")


def head_weights(state: Mapping[str, Tensor]) -> list[str]:
    """The weights of heads in a state dict, by name in its order; `find_heads` asks the model.

    A task model of transformers holds a dual encoder, whose heads are below a name of its own: they
    count where there are none above.
    """
    matrices = (name for name, tensor in state.items() if tensor.ndim == 2)
    found = {name: made[1] for name in matrices if (made := _WEIGHT.fullmatch(name))}
    return [name for name, above in found.items() if above is None] or list(found)
