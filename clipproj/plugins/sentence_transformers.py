"""Modules for a SentenceTransformer's pipeline: the projector itself, or as its Dense.

    clip = Transformer("openai/clip-vit-base-patch32")
    model = SentenceTransformer(modules=[clip, Projection(p)])
    model.encode(images)          # edited; the projector is saved and loaded with the model

`encode` sorts its inputs by length before it batches them, so a list of names, one for each input,
would reach the wrong rows: a call of `encode` takes one name for all, and `encode_rows` takes a
list.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module
from torch import Tensor, nn

import clipproj
from clipproj.bank import ProjectorBank
from clipproj.plugins._rows import Name, check_projector, on_tower, strengths
from clipproj.projector import TOWERS, Projector
from clipproj.refusal import Refusal

_FILES = {"projector": "projector.safetensors", "bank": "bank.safetensors"}
_UNSAID = object()  # None is a name: of rows that stay as they are
_RAW: ContextVar[bool] = ContextVar("clipproj_raw", default=False)


class Projection(Module):
    """Projects `sentence_embedding`, after the module that makes it.

    Of a CLIP model's inputs only those of one modality are edited, images for a projector of the
    image side; the others pass (normalised, if that is asked for). A text pipeline wants a
    projector of side "text", or `modality="text"`. Inputs that are neither are refused.

    With a ProjectorBank each call names its entry: `model.encode(images, tenant="acme",
    strength=1.0)`. A name is a string, a tuple of them for several erasures at once, or None for
    rows that stay as they are; a call without it raises.

    Args:
        projector: a Projector, or a bank.
        modality: what to edit, "image" or "text"; the projector's side when None. The other one
            takes the projector's transpose.
        normalize: divide rows by their length, in the same pass.

    Raises:
        TypeError: neither a projector nor a bank.
        ValueError: another modality; one that is not the bank's side; an affine projector of the
            other side.
    """

    config_keys: ClassVar[list[str]] = ["modality", "normalize", "kind"]
    forward_kwargs: ClassVar[set[str]] = {"tenant", "strength"}

    def __init__(
        self,
        projector: Projector | ProjectorBank,
        modality: str | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        check_projector("Projection", projector)
        modality = projector.side if modality is None else modality
        if modality not in TOWERS:
            raise Refusal("Projection", "modality", f'must be "image" or "text", got {modality!r}')
        self.projector = on_tower("Projection", projector, modality)
        self.modality = modality
        self.normalize = bool(normalize)

    @property
    def kind(self) -> str:
        """What is saved: "projector" or "bank"."""
        return "bank" if isinstance(self.projector, ProjectorBank) else "projector"

    def forward(
        self, features: dict[str, Any], tenant: Any = _UNSAID, strength: Any = None
    ) -> dict[str, Any]:
        """Edits `features["sentence_embedding"]` [n, d].

        Args:
            features: also read: `modality`, which may be missing where texts are edited.
            tenant: the bank's entry for all rows.
            strength: a number for all rows, in place of the projector's or the entry's own.

        Raises:
            RuntimeError: a bank, and no tenant.
            TypeError: a tenant without a bank, or a list of them.
            ValueError: a name that the bank does not have; another modality or width; a strength
                out of range.
        """
        z = features["sentence_embedding"]
        # A text pipeline need not say so; of images it must be known that they are.
        modality = features.get("modality", "text" if self.modality == "text" else None)
        if modality not in TOWERS:
            raise Refusal("Projection", "modality", f'must be "image" or "text", got {modality!r}')
        if _RAW.get():
            if modality != self.modality:
                raise Refusal(
                    "encode_rows",
                    "inputs",
                    f"must all be of modality {self.modality!r}, got {modality!r}",
                )
            return features
        self._check(tenant)
        if modality == self.modality:
            z = self._project(z, tenant, strength)
        elif self.normalize:
            z = nn.functional.normalize(z, dim=-1)
        features["sentence_embedding"] = z
        return features

    def _check(self, tenant: Any) -> None:
        if self.kind == "projector":
            if tenant is not _UNSAID:
                raise TypeError("Projection: tenant must come with a bank, got one Projector")
        elif tenant is _UNSAID:
            raise RuntimeError(
                "Projection: tenant must be given to encode() with a bank, got none; "
                "tenant=None leaves the rows as they are"
            )
        elif tenant is not None and not isinstance(tenant, str | tuple):
            raise TypeError(
                "Projection: tenant must be one name for all rows, because encode() reorders "
                f"them, got {type(tenant).__name__}; encode_rows() takes a list"
            )

    def _project(self, z: Tensor, tenant: Name, strength: Any) -> Tensor:
        if z.ndim != 2 or z.shape[-1] != self.projector.dim:
            raise Refusal(
                "Projection",
                "sentence_embedding",
                f"must be [n, {self.projector.dim}], got {list(z.shape)}",
            )
        if self.kind == "projector":
            return self.projector.edit_features(z, strength, self.normalize)
        index = self.projector.index([tenant]).expand(len(z)).contiguous()
        return self.projector.edit_features(z, index, strength, self.normalize)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **_: Any) -> None:
        """Write config.json and the projector or the bank, as safetensors whatever is asked for."""
        self.projector.save(os.path.join(output_path, _FILES[self.kind]))
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Projection:
        """Read what `save` wrote, also from the hub.

        The library calls it; as for all modules that are not its own it wants
        `SentenceTransformer(path, trust_remote_code=True)`.

        Raises FileNotFoundError, or ValueError for a damaged file or configuration.
        """
        names = ("token", "cache_folder", "revision", "local_files_only")
        hub = {"subfolder": subfolder} | {k: options[k] for k in names if k in options}
        config = cls.load_config(model_name_or_path, **hub)
        kind = config.get("kind")
        if kind not in _FILES:
            raise Refusal(
                "Projection",
                "config",
                f"must name a projector or a bank, got kind {kind!r} in "
                f"{os.path.join(model_name_or_path, subfolder)}",
            )
        path = cls.load_file_path(model_name_or_path, _FILES[kind], **hub)
        if path is None:
            raise FileNotFoundError(
                f"Projection: {_FILES[kind]} is missing in "
                f"{os.path.join(model_name_or_path, subfolder)}"
            )
        projector = ProjectorBank.load(path) if kind == "bank" else clipproj.load(path)
        return cls(projector, config.get("modality"), config.get("normalize", False))

    def get_embedding_dimension(self) -> int:
        """d, as the module before it has."""
        return self.projector.dim


def encode_rows(
    model: SentenceTransformer,
    inputs: Sequence[Any],
    tenants: Sequence[Name],
    strength: Any = None,
    **options: Any,
) -> Tensor:
    """`model.encode` with a bank's entry of its own for each input, [n, d] on the model's device.

    The inputs are encoded together, in the library's order, and projected together afterwards, in
    the caller's.

    Args:
        model: its last module is a `Projection` of a bank.
        inputs: n inputs of the bank's modality.
        tenants: n names, None for a row that stays as it is.
        strength: None, a number, or n of them.
        options: for `encode`, such as batch_size.

    Raises:
        TypeError: no Projection of a bank at the end; an option that has no place here.
        ValueError: another number of names; a name that the bank does not have; inputs of another
            modality.
    """
    last = model[-1]
    if not isinstance(last, Projection) or last.kind != "bank":
        got = type(last).__name__
        raise TypeError(f"encode_rows: model must end with a Projection of a bank, got {got}")
    if isinstance(inputs, str) or isinstance(tenants, str) or len(inputs) != len(tenants):
        raise Refusal(
            "encode_rows",
            "tenants",
            f"must be a list of one name for each of {len(inputs)} inputs, got {len(tenants)}",
        )
    taken = {"tenant", "output_value", "precision", "pool", "convert_to_numpy", "truncate_dim"}
    taken |= {"convert_to_tensor", "normalize_embeddings"}
    if clash := sorted(taken & set(options)):
        raise TypeError(f"encode_rows: options must be encode's for speed alone, got {clash}")
    bank = last.projector
    index = bank.index(list(tenants))  # before the work, so that an unknown name costs nothing
    given = strengths(strength, index)
    token = _RAW.set(True)
    try:
        z = model.encode(list(inputs), convert_to_tensor=True, **options)
    finally:
        _RAW.reset(token)
    return bank(z, index.to(z.device), given, last.normalize)


def to_dense(projector: Projector) -> Dense:
    """The projector as the library's own linear module, which text-embeddings-inference reads too.

    A dense [d, d] product: slower than a `Projection`, but made of nothing but the library's. It
    edits every input, of whatever modality; there is no strength per call.

    Raises TypeError for anything but a Projector.
    """
    if not isinstance(projector, Projector):
        got = type(projector).__name__
        raise TypeError(f"to_dense: projector must be a Projector, got {got}")
    affine = projector.offset is not None
    return Dense(
        projector.dim,
        projector.dim,
        bias=affine,
        activation_function=nn.Identity(),
        init_weight=projector.dense().T.contiguous(),  # [out, in]
        init_bias=projector.shift() if affine else None,
    )


__all__ = ["Projection", "encode_rows", "to_dense"]
