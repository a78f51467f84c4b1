"""Models of open_clip and transformers: load them, write them edited, undo an edit on the disk."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipproj import files
from clipproj.checkpoints.sources import activation_note, model_config, source_of, whole
from clipproj.checkpoints.state import (
    CONFIG,
    HF_CONFIG,
    HF_WEIGHTS,
    WEIGHTS,
    check_alone,
    check_whole,
    is_hugging_face,
    locate,
    read_edits,
    read_state,
    replace_tensors,
    write_state,
)
from clipproj.editing import log
from clipproj.editing.edit import undo as _undo
from clipproj.editing.records import after_undo
from clipproj.editing.weights import Original, weights_of
from clipproj.models.encoder import pinned
from clipproj.refusal import Refusal

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Loaded:
    """A model ready to use.

    Attributes:
        model: in eval mode.
        preprocess: PIL image to tensor; of transformers an image processor.
        tokenizer: texts to tokens [n, context]; of transformers a `hugging_face.Tokenizer`.
        name: what to call it in files and tables.
        config: what `open_clip_config.json` must hold for `local-dir:` to build it again; None for
            a model of transformers.
        checkpoint: the weights' file, or the index of their shards, where it is a local one.
        files: names of what `save_model` writes, as far as they are known before.
    """

    model: nn.Module
    preprocess: Callable[..., Any]
    tokenizer: Any
    name: str
    config: dict[str, Any] | None
    checkpoint: Path | None
    files: tuple[str, ...] = (WEIGHTS, CONFIG)

    @property
    def weights(self) -> str:
        """The name of the file that `save_model` writes the weights to."""
        return HF_WEIGHTS if self.config is None else WEIGHTS

    @property
    def library(self) -> str:
        """Which one loads it."""
        return "transformers" if self.config is None else "open_clip"


def load_model(
    name: str | None = None,
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
) -> Loaded:
    """Build a model with its weights; random weights are refused.

    The activation is the one that a tag's weights were trained with, whatever the architecture of
    that name has. A file does not say: where both are known it warns, naming the architecture that
    has the other one. `clipproj.edits` of the model lists what its checkpoint says was edited.

    Args:
        name: an open_clip architecture ("ViT-B-32"), a folder of open_clip (open_clip_config.json,
            also as "local-dir:FOLDER") or of transformers (config.json), "hf-hub:ORG/REPO" of
            open_clip, or None for the embedded model.
        pretrained: for an architecture: a tag of open_clip ("openai"), a checkpoint file or the
            index of its shards.

    Raises:
        ImportError: without open_clip, or transformers for its folders.
        ValueError: for an unknown architecture, tag or file, or one given where none is taken; for
            a folder of transformers without all weights or without a tokenizer.
        FileNotFoundError: for one without weights.
        RuntimeError: when it cannot be loaded: no network, or a checkpoint of another model.
    """
    if name is not None and is_hugging_face(Path(name)):
        return _transformers(Path(name), pretrained, device)
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            'load_model: models are loaded by open_clip: pip install "clipproj[cli]"'
        ) from error

    source, shown, checkpoint = source_of(name, pretrained)
    try:
        config = model_config(source, None if checkpoint else pretrained)
        with (
            whole(source, pretrained, checkpoint) as (place, weights),
            pinned(device),
            warnings.catch_warnings(),
        ):
            # open_clip only warns where a tag has another activation; the tag's is passed below
            warnings.filterwarnings("ignore", "QuickGELU mismatch", UserWarning)
            model, _, preprocess = open_clip.create_model_and_transforms(
                place,
                pretrained=weights,
                device=device,
                require_pretrained=True,
                **{key: config[key] for key in ("quick_gelu",) if key in config},
            )
            tokenizer = open_clip.get_tokenizer(place)
    except Exception as error:  # whatever open_clip, torch, a hub client or a pickle raises
        hint = ""
        if checkpoint is None:
            hint = "; its weights come from the network: try again online, or give a local file"
        raise RuntimeError(f"load_model: cannot load {shown}: {_brief(error)}{hint}") from error
    if dtypes := {str(p.dtype) for p in model.parameters()} - {"torch.float32"}:
        got = ", ".join(sorted(dtypes))
        raise RuntimeError(f"load_model: {shown} must be built in torch.float32, got {got}")
    if note := activation_note(source, shown, checkpoint):
        warnings.warn(note, stacklevel=2)
    log.record(model, read_edits(checkpoint, model.state_dict()))
    told = {"model_cfg": config, "preprocess_cfg": model.visual.preprocess_cfg}
    return Loaded(model.eval(), preprocess, tokenizer, shown, told, checkpoint)


def check_model(name: str | None, pretrained: str | None) -> None:
    """Refuse and warn of what `load_model` would, as far as it can be told without loading.

    Raises ValueError and FileNotFoundError as `load_model` does, ImportError without open_clip.
    """
    if name is not None and is_hugging_face(Path(name)):
        _check_folder(Path(name), pretrained)
    elif note := activation_note(*source_of(name, pretrained)):
        warnings.warn(note, stacklevel=2)


def _check_folder(folder: Path, pretrained: str | None) -> Path:
    """The checkpoint of a folder of transformers."""
    if pretrained:
        raise Refusal("load_model", "pretrained", f"must be left out with a folder, got {folder}")
    return locate(folder)


def _transformers(folder: Path, pretrained: str | None, device: torch.device | str) -> Loaded:
    from clipproj.checkpoints import hugging_face

    checkpoint = _check_folder(folder, pretrained)
    try:
        model, processor = hugging_face.load(folder, checkpoint, device)
        log.records(model)  # a log that is none is refused now
    except (ImportError, ValueError) as error:
        if str(error).startswith(("load_model: ", "edits: ")):
            raise
        raise RuntimeError(f"load_model: cannot load {folder}: {_brief(error)}") from error
    except Exception as error:  # whatever transformers, torch or a pickle raises
        raise RuntimeError(f"load_model: cannot load {folder}: {_brief(error)}") from error
    preprocess = getattr(processor, "image_processor", processor)
    tokenizer = hugging_face.Tokenizer(model, processor)
    written = (HF_WEIGHTS, HF_CONFIG, *hugging_face.companions(folder, tokenizer.tokenizer))
    return Loaded(model, preprocess, tokenizer, str(folder), None, checkpoint, written)


def save_model(loaded: Loaded, folder: Path) -> Path:
    """Write into a folder what loads the model again, as it is now, with the log of its edits. The
    folder is made where it is missing.

    Of open_clip: weights, configuration and tokenizer for `local-dir:FOLDER`, in the dtypes that
    it is loaded in. Of transformers what `from_pretrained(FOLDER)` reads: all that its folder
    holds, a task's own layers too, each tensor in its dtype; the heads alone are the model's.

    Returns the weights' file. Raises OSError when it cannot be written; ValueError for a model of
    transformers that differs from its folder's in more than its heads.
    """
    edits = log.records(loaded.model)
    folder.mkdir(parents=True, exist_ok=True)
    if loaded.config is None:
        from clipproj.checkpoints import hugging_face

        if loaded.checkpoint is None:
            raise Refusal("save_model", "loaded.checkpoint", "must be the model's file, got None")
        hugging_face.save(loaded.model, loaded.checkpoint, folder, loaded.files, edits)
        return folder / HF_WEIGHTS
    write_state(folder / WEIGHTS, loaded.model.state_dict(), edits)
    with files.atomic(folder / CONFIG) as part:
        part.write_text(json.dumps(loaded.config, indent=2), encoding="utf-8")
    if "hf_tokenizer_name" in loaded.config["model_cfg"]["text_cfg"]:
        loaded.tokenizer.tokenizer.save_pretrained(folder)
    return folder / WEIGHTS


def undo(
    checkpoint: str | os.PathLike[str],
    undo_file: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write `checkpoint` with the weights that `undo_file` keeps: the original's, bit for bit.

    Args:
        checkpoint: a file, an index of shards, or a folder with one.
        out: a .safetensors file for all of it; None: replace the head in the checkpoint, in its own
            format and shards, each file atomically.
        force: overwrite the head even if its bits are not those that the edit left. Later edits
            of that head are then out of it too, and out of the log; those that it had before this
            one are in both again.

    Returns:
        The file or index written.

    Raises:
        RuntimeError: the head is not the one that the edit left (edited again, or never), and no
            force.
        ValueError: no such head, a file that is not what it must be, one shard of several or
            another file beside the model's, or an output that is not .safetensors or is another
            model's. FileNotFoundError: no checkpoint. OSError: when it cannot be written; the
            checkpoint is then as it was.
    """
    if out is not None and Path(out).suffix != ".safetensors":
        raise Refusal("undo", "out", f"must be a .safetensors file, got {out}")
    checkpoint = locate(checkpoint)
    target = checkpoint if out is None else Path(out)
    here = target.exists() and checkpoint.samefile(target)
    if here:
        check_whole(checkpoint)
    else:
        check_alone(target)
    state = read_state(checkpoint)
    restored = _undo(state, undo_file, force=force)
    original = Original.load(undo_file)
    now = files.sha256(*weights_of("undo", state, *original.names))
    edits = after_undo(read_edits(checkpoint, state), original, now)
    if here:
        head = {name: tensor for name, tensor in restored.items() if tensor is not state[name]}
        replace_tensors(checkpoint, head, edits)
        return checkpoint
    write_state(target, restored, edits)
    return target


def _brief(error: Exception) -> str:
    """One line of an error of somebody else's, without colours."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, pickle.UnpicklingError):
            # not its text: torch advises to load the file without weights_only
            return (
                "the weights must be a state dict file, got a pickle of other things or a "
                "damaged file"
            )
        link = link.__cause__ or link.__context__
    text = " ".join(_ANSI.sub("", str(error)).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
