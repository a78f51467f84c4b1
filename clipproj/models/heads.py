"""Find where a CLIP-like model keeps the last projection of each tower: what `edit` folds into.

Families (`families.py`) are told apart by class name and package, so that nothing but torch is
imported here, and what is found is checked before it is handed out. Other models are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from clipproj import files
from clipproj.models.families import (
    IMAGE,
    MAP_HEAD,
    NO_IMAGE,
    NO_TEXT,
    POOLED,
    TEXT,
    TIMM_HEAD,
    TRANSFORMERS,
    Absent,
    Family,
    Site,
)
from clipproj.projector import TOWERS
from clipproj.refusal import Refusal

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
_ENCODE = ("forward", "encode_image", "encode_text", "get_image_features", "get_text_features")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Head:
    """The last projection of one tower, or why an edit cannot be folded into one.

    Attributes:
        tower: "image" or "text".
        weight, bias: dotted parameter names in the unwrapped model; None when there is none.
        dim: the embedding dimension of the weight, as `ops.fold_` takes it: 1 for a Parameter
            [in, d] used as `x @ weight`, 0 for an `nn.Linear` [d, in]; None without a weight.
        width: d, or None when neither tower tells it.
        foldable: whether `edit` can fold into it.
        reason: why not, and what works instead; None when foldable.
    """

    tower: str
    weight: str | None
    bias: str | None
    dim: int | None
    width: int | None
    foldable: bool
    reason: str | None

    def __str__(self) -> str:
        refusal = f"not foldable: {self.reason}" if self.reason else ""
        if self.weight is None:
            return f"{self.tower:<5}  {refusal}"
        layout = f"[in, {self.width}]" if self.dim == 1 else f"[{self.width}, in]"
        bias = "bias" if self.bias else "no bias"
        return f"{self.tower:<5}  {self.weight}  {layout}, {bias}  {refusal}".rstrip()


@dataclass(frozen=True)
class Heads:
    """The heads of both towers, as attributes, by name (`heads["image"]`), or in this order."""

    image: Head
    text: Head

    def __getitem__(self, tower: str) -> Head:
        if tower not in TOWERS:
            raise Refusal("find_heads", "tower", f'must be "image" or "text", got {tower!r}')
        return self.image if tower == "image" else self.text

    def __iter__(self) -> Iterator[Head]:
        return iter((self.image, self.text))

    def __str__(self) -> str:
        return f"{self.image}\n{self.text}"


def find_heads(model: nn.Module) -> Heads:
    """Where each tower of `model` keeps its last projection, and whether it can be folded into.

    Knows open_clip's CLIP, CustomTextCLIP and CoCa, OpenAI's CLIP and the dual encoders of
    transformers, subclasses that encode as these do, with torch.compile or DataParallel (also the
    distributed one) around all or a part.

    A tower whose head is missing, quantised, sharded, reparametrised or wrapped by an adapter
    comes back as not foldable, with the reason; the other tower is looked at all the same.

    Raises:
        TypeError: for what is not an nn.Module.
        ValueError: for a model of another class, or with towers of different widths.

    Example:
        >>> head = clipproj.find_heads(model)["image"]
        >>> head.foldable, head.width
        (True, 128)
    """
    check_module("find_heads", model)
    model = unwrap(model)
    image: Site
    text: Site
    call = "encode_{}()"
    if which_class(model, "open_clip", "CLIP"):
        image, text = _image_site(model.visual, "open_clip"), "text_projection"
    elif which_class(model, "open_clip", "CustomTextCLIP", "CoCa"):
        image, text = _image_site(model.visual, "open_clip"), _text_site(model.text)
    elif which_class(model, "clip", "CLIP"):
        image, text = _image_site(model.visual, "clip"), "text_projection"
    elif family := family_of(model):
        image, text = family.image, family.text
        single = family.single("image") or family.single("text")
        call = "forward(), its {}_embeds" if single else "get_{}_features()"
    else:
        raise Refusal(
            "find_heads",
            "model",
            "must be CLIP, CustomTextCLIP or CoCa of open_clip, CLIP of OpenAI's "
            f"clip, or {', '.join(TRANSFORMERS)} of transformers, got {_describe(model)}",
        )
    heads = [_inspect(model, "image", image), _inspect(model, "text", text)]
    widths = {head.width for head in heads} - {None}
    if len(widths) > 1:
        raise Refusal(
            "find_heads",
            "model",
            f"must embed images and texts in one width, got {heads[0].width} and {heads[1].width}",
        )
    width = widths.pop() if widths else None
    return Heads(*(_finish(head, width, call.format(head.tower)) for head in heads))


def check_module(op: str, model: object) -> None:
    """TypeError, in the name of `op`, for what is not an nn.Module."""
    if not isinstance(model, nn.Module):
        several = "; unpack what create_model_and_transforms returns, the model comes first"
        hint = several if isinstance(model, tuple) else ""
        raise TypeError(f"{op}: model must be an nn.Module, got {type(model).__name__}{hint}")


def unwrap(model: nn.Module) -> nn.Module:
    """`model` without torch.compile's and (Distributed)DataParallel's wrappers, however nested."""
    while wrapper := which_class(model, "torch", *_WRAPPERS):
        model = getattr(model, _WRAPPERS[wrapper])
    return model


def head_tensors(model: nn.Module, head: Head) -> tuple[nn.Parameter, nn.Parameter | None]:
    """The weight and the bias that `head` names in `model`. ValueError when it names no weight."""
    if head.weight is None:
        raise Refusal("head_tensors", "head", f"must have a weight, got {head}")
    model = unwrap(model)
    bias = None if head.bias is None else model.get_parameter(head.bias)
    return model.get_parameter(head.weight), bias


def head_hash(model: nn.Module, tower: str | None = None) -> str | None:
    """Hex SHA-256 of the weight and bias of one tower's head; None when it is not foldable.

    With `tower=None` the identity of the embedding space: hex SHA-256 of the shape and the signs of
    the text head, which image edits leave alone, else of the image head. No cast between float32,
    bfloat16 and float16 turns a sign, in whatever order, and training turns some: of 512 x 512
    weights, noise of 1e-4 of their size turns 8, where bfloat16 rounds by 1e-3. A change that turns
    none, such as another scale of the whole head, is not seen.
    """
    heads = find_heads(model)
    if tower is not None:
        head = heads[tower]
        return files.sha256(*head_tensors(model, head)) if head.foldable else None
    for head in (heads.text, heads.image):
        if head.foldable:
            return sign_hash(*head_tensors(model, head))
    return None


def sign_hash(*tensors: Tensor | None) -> str:
    """Hex SHA-256 of shapes and signs, which no cast between floating types turns."""
    return files.sha256(*(None if t is None else t.signbit() for t in tensors))


def _image_site(visual: Any, package: str) -> Site:
    visual = unwrap(visual)
    if known := which_class(visual, package, *IMAGE):
        return f"visual.{IMAGE[known]}"
    if not which_class(visual, package, "TimmModel"):
        return Absent(f"the image tower is unknown to clipproj: {_describe(visual)}")
    # The adapter's own head comes last; where it is empty, the classifier of timm's trunk does.
    for child, path in TIMM_HEAD.items():
        if hasattr(visual.head, child):
            return f"visual.head.{path}"
    trunk: Any = unwrap(visual.trunk)
    classifier = trunk.get_classifier()
    if isinstance(classifier, nn.Identity):
        return MAP_HEAD if getattr(trunk, "attn_pool", None) is not None else POOLED
    for name, module in trunk.named_modules():
        if module is classifier:
            return f"visual.trunk.{name}"
    return Absent(f"the classifier of {_describe(trunk)} is not one module")


def _text_site(text: Any) -> Site:
    text = unwrap(text)
    if known := which_class(text, "open_clip", *TEXT):
        return f"text.{TEXT[known]}"
    if not which_class(text, "open_clip", "HFTextEncoder"):
        return Absent(f"the text tower is unknown to clipproj: {_describe(text)}")
    if isinstance(text.proj, nn.Identity):
        return POOLED
    return f"text.proj.{len(text.proj) - 1}" if type(text.proj) is nn.Sequential else "text.proj"


def _inspect(model: nn.Module, tower: str, site: Site) -> Head:
    """Check what is at `site`. Nested wrappers on the way become part of the parameter's name."""
    if isinstance(site, Absent):
        return Head(tower, None, None, None, None, False, site.reason)
    owner: Any = model
    found: Any = model
    path = ""
    for name in site.split("."):
        owner, found, path = found, getattr(found, name), f"{path}.{name}".lstrip(".")
        while wrapper := which_class(found, "torch", *_WRAPPERS):
            found = getattr(found, _WRAPPERS[wrapper])
            path = f"{path}.{_WRAPPERS[wrapper]}"
    if found is None:
        return Head(tower, None, None, None, None, False, f"{path} is None, nothing projects")
    if isinstance(found, Tensor):
        leaf = path.rpartition(".")[2]
        width = found.shape[1] if found.ndim == 2 else None
        reason = _refusal(owner, leaf, path, (None, width))
        return Head(tower, path, None, 1, width, reason is None, reason)
    if type(found) is not nn.Linear and not parametrize.is_parametrized(found):
        reason = f"{path} must be exactly an nn.Linear to be folded into, it is {_describe(found)}"
        return Head(tower, None, None, None, None, False, reason)
    weight = f"{path}.weight"
    bias = None if found.bias is None else f"{path}.bias"
    width = found.out_features
    reason = _refusal(found, "weight", weight, (width, found.in_features))
    if bias and reason is None:
        reason = _refusal(found, "bias", bias, (width,))
    return Head(tower, weight, bias, 0, width, reason is None, reason)


def _refusal(owner: Any, name: str, path: str, shape: tuple[int | None, ...]) -> str | None:
    """Why the values of parameter `name` of `owner` cannot be edited in place; None if they can."""
    if parametrize.is_parametrized(owner, name):
        kinds = ", ".join(type(kind).__name__ for kind in owner.parametrizations[name])
        return f"{path} is parametrised ({kinds}): remove_parametrizations() first"
    if name not in owner._parameters:
        return (
            f"{path} is computed anew at each call (weight_norm, spectral_norm, pruning) or "
            "flattened by FullyShardedDataParallel: remove that, or fold before applying it"
        )
    value = owner._parameters[name]
    if is_lazy(value):
        return f"{path} is not initialised yet: run the model once first"
    if type(value) is not nn.Parameter:
        kind = type(value).__name__
        state = "sharded" if kind == "DTensor" else "quantised or otherwise special"
        return f"{path} is a {kind}, a {state} tensor: fold before it becomes one"
    if value.dtype not in _DTYPES:
        return f"{path} is {value.dtype}, quantised: fold before quantising"
    if value.is_meta:
        return f"{path} is on the meta device, without data (not loaded, or offloaded): load it"
    fits = value.ndim == len(shape) and all(
        want in (None, got) for want, got in zip(shape, value.shape, strict=True)
    )
    if not fits or value.numel() == 0:
        got = list(value.shape)
        return f"{path} has shape {got}, it is sharded (FSDP, DeepSpeed): fold before sharding"
    return None


def _finish(head: Head, width: int | None, call: str) -> Head:
    """Both towers share one width, and every refusal of a tower names the way that works."""
    if head.foldable or head.reason in (NO_IMAGE.reason, NO_TEXT.reason):
        return replace(head, width=width)
    way = f"project the features instead: apply the clipproj.Projector to the result of {call}"
    return replace(head, width=width, reason=f"{head.reason}; {way}")


def family_of(model: nn.Module) -> Family | None:
    """The row of a model of transformers; None for others."""
    return TRANSFORMERS.get(which_class(model, "transformers", *TRANSFORMERS) or "")


def which_class(module: object, package: str, *names: str) -> str | None:
    """Which of `package`'s classes `names` the module is an instance of, if any.

    A subclass counts while it encodes as that class does: one that overrides how may well do
    something after the projection.
    """
    own = type(module)
    for cls in own.__mro__:
        if cls.__name__ in names and cls.__module__.partition(".")[0] == package:
            same = all(getattr(own, name, None) is getattr(cls, name, None) for name in _ENCODE)
            return cls.__name__ if same else None
    return None


def _describe(module: nn.Module) -> str:
    """The class of an unknown module, with the way out for those that hide a known one."""
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    package = name.partition(".")[0]
    if isinstance(module, torch.jit.ScriptModule):
        return f"{name}: load the model with jit=False"
    if package == "peft" or hasattr(module, "base_layer"):
        return f"{name}, an adapter of PEFT: merge it first, with merge_and_unload()"
    if "FullyShardedDataParallel" in name:
        return f"{name}, which shards the parameters: fold before sharding"
    if package in ("bitsandbytes", "torchao") or "quant" in name.lower():
        return f"{name}, which is quantised: fold before quantising"
    return name
