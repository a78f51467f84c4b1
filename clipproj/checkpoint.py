"""Models and their checkpoints: load what open_clip can load, read and write state dict files."""

from __future__ import annotations

import difflib
import json
import os
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipproj import files
from clipproj.edit import undo as _undo
from clipproj.encoder import default_device
from clipproj.weights import weights_of

WEIGHTS = "open_clip_model.safetensors"  # the names open_clip looks for in a `local-dir:`
CONFIG = "open_clip_config.json"
EDITS = "clipproj"  # metadata key: JSON list of the edits in a checkpoint, oldest first

State = dict[str, Tensor]
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Loaded:
    """A model ready to use.

    Attributes:
        model: in eval mode.
        preprocess: PIL image to tensor.
        tokenizer: texts to token tensor.
        name: what to call it in files and tables.
        config: what `open_clip_config.json` must hold for `local-dir:` to build it again.
        checkpoint: the weights' file where it is a local one.
    """

    model: nn.Module
    preprocess: Callable[..., Tensor]
    tokenizer: Callable[..., Any]
    name: str
    config: dict[str, Any]
    checkpoint: Path | None


def load_model(
    name: str | None = None,
    pretrained: str | None = None,
    device: torch.device | str = "cpu",
) -> Loaded:
    """Build a model with open_clip, with weights; random weights are refused.

    Args:
        name: an open_clip architecture ("ViT-B-32"), a folder with open_clip_config.json (also as
            "local-dir:FOLDER"), "hf-hub:ORG/REPO", or None for the embedded model.
        pretrained: for an architecture: a tag of open_clip ("openai") or a checkpoint file.

    Raises:
        ImportError: without open_clip.
        ValueError: for an unknown architecture, tag or file, or one given where none is taken.
        RuntimeError: when open_clip cannot load it: no network, or a checkpoint of another model.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            'load_model: models are loaded by open_clip: pip install "clipproj[cli]"'
        ) from error

    source, shown, checkpoint = _source(name, pretrained)
    try:
        with default_device(device):
            model, _, preprocess = open_clip.create_model_and_transforms(
                source, pretrained=pretrained, device=device, require_pretrained=True
            )
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:  # whatever open_clip, torch, a hub client or a pickle raises
        hint = ""
        if checkpoint is None:
            hint = "; its weights come from the network: try again online, or give a local file"
        raise RuntimeError(f"load_model: cannot load {shown}: {_brief(error)}{hint}") from error
    config = {"model_cfg": _model_config(source), "preprocess_cfg": model.visual.preprocess_cfg}
    return Loaded(model.eval(), preprocess, tokenizer, shown, config, checkpoint)


def _source(name: str | None, pretrained: str | None) -> tuple[str, str, Path | None]:
    """What open_clip is asked for, what the model is called, and the local file it comes from."""
    import open_clip

    if name is None:
        from clipproj import demo

        if pretrained:
            raise ValueError("load_model: pretrained must come with a model, got none")
        folder = demo.model_dir()
        return f"local-dir:{folder}", demo.NAME, folder / WEIGHTS
    folder = Path(name.removeprefix("local-dir:"))
    if name.startswith("local-dir:") or folder.is_dir():
        if pretrained:
            raise ValueError(f"load_model: pretrained must be left out with a folder, got {name}")
        if not (folder / CONFIG).is_file():
            raise ValueError(f"load_model: model must be a folder with {CONFIG}, got {folder}")
        weights = folder / WEIGHTS
        return f"local-dir:{folder}", str(folder), weights if weights.is_file() else folder
    if name.startswith("hf-hub:"):
        if pretrained:
            raise ValueError(f"load_model: pretrained must be left out with hf-hub:, got {name}")
        return name, name, None
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        raise ValueError(
            "load_model: model must be a folder, hf-hub:ORG/REPO or an open_clip architecture, got "
            f"{name!r}{_close(name, known)}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        raise ValueError(
            f"load_model: {name} needs pretrained weights, a checkpoint file or {_listed(tags)}"
        )
    if Path(pretrained).is_file():
        return name, f"{name} ({Path(pretrained).name})", Path(pretrained)
    if pretrained not in tags:
        raise ValueError(
            f"load_model: pretrained must be a file or {_listed(tags)}, got {pretrained!r}"
            f"{_close(pretrained, tags)}"
        )
    return name, f"{name} ({pretrained})", None


def _model_config(source: str) -> dict[str, Any]:
    import open_clip
    from open_clip.factory import _get_hf_config

    if source.startswith("local-dir:"):
        text = (Path(source.removeprefix("local-dir:")) / CONFIG).read_text(encoding="utf-8")
        return json.loads(text)["model_cfg"]
    if source.startswith("hf-hub:"):
        return _get_hf_config(source.removeprefix("hf-hub:"))["model_cfg"]
    return deepcopy(open_clip.get_model_config(source.replace("/", "-")))


def save_model_files(loaded: Loaded, folder: Path) -> None:
    """Write beside the weights what `local-dir:FOLDER` needs: the configuration, the tokenizer."""
    with files.atomic(folder / CONFIG) as part:
        part.write_text(json.dumps(loaded.config, indent=2), encoding="utf-8")
    if "hf_tokenizer_name" in loaded.config["model_cfg"]["text_cfg"]:
        loaded.tokenizer.tokenizer.save_pretrained(folder)


def locate(path: str | os.PathLike[str]) -> Path:
    """The checkpoint file: `path` itself, or the one in an output folder."""
    path = Path(path)
    found = path / WEIGHTS if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(
            f"checkpoint: path must be a checkpoint or a folder with {WEIGHTS}, got {path}"
        )
    return found


def read_state(path: str | os.PathLike[str]) -> State:
    """Tensors of a checkpoint by name, on the CPU: .safetensors, or a torch file.

    As open_clip does it, "state_dict" nesting and "module." prefixes of a torch file are taken off;
    it is read with `weights_only=True`, so that nothing in it runs.

    Raises FileNotFoundError, or ValueError for a damaged file or one without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"read_state: path must be a file, got {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            with warnings.catch_warnings():  # of how torch would rather have it written
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"read_state: path must be a whole file, got {path}: {error}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # unpickling what is no pickle raises errors of any type
        # not its text: torch advises to load the file without weights_only
        raise ValueError(
            f"read_state: path must be .safetensors or a whole torch file of tensors, got {path}"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ValueError(f"read_state: path must hold a state dict, got {path}")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"read_state: path must hold a state dict with tensors, got {path}")
    if next(iter(tensors)).startswith("module."):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def write_state(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], edits: list[dict[str, Any]]
) -> None:
    """Write a state dict as safetensors, atomically, with the log of its edits in the metadata.

    Tensors keep their dtypes; those that share memory (tied weights) are each written in full.
    Raises OSError (disk full, no permission) and leaves no partial file.
    """
    plain: State = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        plain[name] = value
    metadata = {"format": "pt"} | ({EDITS: json.dumps(edits)} if edits else {})
    with files.atomic(path) as part:
        try:
            save_file(plain, part, metadata=metadata)
        except SafetensorError as error:  # its I/O errors come as this type
            raise OSError(f"write: cannot write {path}: {error}") from error


def read_edits(path: str | os.PathLike[str] | None) -> list[dict[str, Any]]:
    """The log of edits that `write_state` left in a checkpoint; empty for any other file."""
    if path is None or Path(path).suffix != ".safetensors":
        return []
    try:
        with safe_open(path, framework="pt") as opened:
            return json.loads((opened.metadata() or {}).get(EDITS, "[]"))
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint: path must be a whole safetensors file, got {path}: {error}"
        ) from error


def undo(
    checkpoint: str | os.PathLike[str],
    undo_file: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
) -> Path:
    """Write `checkpoint` with the weights that `undo_file` keeps: the original's, bit for bit.

    Args:
        out: where to; None: replace the checkpoint, atomically.
        force: overwrite the head even if its bits are not those that the edit left. Later edits
            of that head are then out of it too, and out of the log.

    Returns:
        The file written.

    Raises:
        RuntimeError: the head is not the one that the edit left (edited again, or never), and no
            force.
        ValueError: no such head, a file that is not what it must be, or an output that is not
            .safetensors. OSError: when it cannot be written; the checkpoint is then as it was.
    """
    target = Path(checkpoint if out is None else out)
    if target.suffix != ".safetensors":
        raise ValueError(f"undo: out must be a .safetensors file, got {target}")
    state = read_state(checkpoint)
    restored = _undo(state, undo_file, force=force)
    undone = files.read(undo_file, "undo").meta
    now = files.sha256(*weights_of("undo", state, *undone["names"]))
    write_state(target, restored, _without(read_edits(checkpoint), undone, now))
    return target


def _without(
    edits: list[dict[str, Any]], undone: Mapping[str, Any], now: str
) -> list[dict[str, Any]]:
    """The log of a checkpoint whose head, of digest `now`, gets the bits from before an edit."""
    on_head = [entry for entry in edits if entry["tower"] == undone["tower"]]
    same = [entry for entry in on_head if entry["projector"] == undone["projector_hash"]]
    if now == undone["after"]:  # it is the last one on the head, whatever the other one has
        gone = same[-1:]
    elif same:
        gone = on_head[on_head.index(same[0]) :]
    else:  # nobody knows which of them those bits have; to claim an edit that is none is worse
        gone = [] if now == undone["before"] else on_head
    return [entry for entry in edits if not any(entry is one for one in gone)]


def size(state: Mapping[str, Tensor]) -> int:
    """Bytes that a state dict takes on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _listed(tags: list[str]) -> str:
    if not tags:
        return "a tag (open_clip knows none for it)"
    return f"one of the tags {', '.join(tags[:6])}{', ...' if len(tags) > 6 else ''}"


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f"; close: {', '.join(close)}" if close else ""


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
