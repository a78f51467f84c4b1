"""State dict files, whole or in shards: find, read and write them, with the log of their edits."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipproj import files
from clipproj.editing.records import EDITS, Record, held, parse
from clipproj.refusal import Refusal

WEIGHTS = "open_clip_model.safetensors"  # what open_clip looks for in a `local-dir:`, in its order
OPEN_CLIP = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
HF_WEIGHTS = "model.safetensors"
HUGGING_FACE = (HF_WEIGHTS, "pytorch_model.bin", "pytorch_model.pth", "model.pth")
CONFIG, HF_CONFIG = "open_clip_config.json", "config.json"
INDEX = ".index.json"  # beside shards: which of them holds which tensor

State = dict[str, Tensor]


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder holds a model of transformers, and none of open_clip."""
    return (folder / HF_CONFIG).is_file() and not (folder / CONFIG).is_file()


def locate(path: str | os.PathLike[str]) -> Path:
    """The checkpoint: `path` itself, or the file or index of shards in a folder.

    Raises FileNotFoundError when there is none of a known name, ValueError for a folder of
    transformers whose config.json names another file.
    """
    path = Path(path)
    hugging_face = is_hugging_face(path)
    names = HUGGING_FACE if hugging_face else OPEN_CLIP + HUGGING_FACE
    if hugging_face and (named := _json(path / HF_CONFIG).get("transformers_weights")):
        raise Refusal(
            "checkpoint",
            "path",
            f"must have its weights under a usual name such as {HF_WEIGHTS}, got "
            f'"transformers_weights": {named!r} in {path / HF_CONFIG}; rename them',
        )
    found = _first(path, names) or path
    if not found.is_file():
        raise FileNotFoundError(
            f"checkpoint: path must be a checkpoint or a folder with {', '.join(names)} or an "
            f"{INDEX} of one, got {path}"
        )
    return found


def check_whole(path: Path) -> None:
    """Refuse to write a part of a folder's model alone: a shard, or one of transformers' other
    weights beside it, whose log is that of the model. Raises ValueError."""
    for names in (OPEN_CLIP, HUGGING_FACE):
        found = _first(path.parent, names)
        if found is None or path == found:
            continue
        other = names is HUGGING_FACE and _log_file(path) == path.parent / HF_CONFIG
        if other or path in (_shards(found) or {}):
            raise Refusal(
                "undo",
                "checkpoint",
                f"must be the whole model of its folder, {found.name}, got {path}",
            )


def check_alone(path: Path) -> None:
    """ValueError for a file to write whose log would be another model's: that in a config.json."""
    if (log := _log_file(path)) is not None:
        raise Refusal(
            "undo", "out", f"must be a file of its own, got {path}, which {log} describes"
        )


def read_state(path: str | os.PathLike[str]) -> State:
    """Tensors of a checkpoint by name, on the CPU: .safetensors, a torch file, an index of shards.

    As open_clip does it, "state_dict" nesting and "module." prefixes of a torch file are taken off;
    it is read with `weights_only=True`, so that nothing in it runs.

    Raises FileNotFoundError, or ValueError for a damaged file, one without tensors, or shards that
    do not hold what their index says.
    """
    path = Path(path)
    shards = _shards(path)
    if shards is None:
        return _read(path)
    state: State = {}
    for shard, names in shards.items():
        held = _read(shard)
        if missing := sorted(names - held.keys()):
            raise Refusal("read_state", str(shard), f"must hold {missing[0]}, as {path.name} says")
        state |= {name: held[name] for name in held if name in names}
    return state


def write_state(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], edits: list[Record]
) -> None:
    """Write a state dict as safetensors, atomically, with the log of its edits in the metadata.

    Tensors keep their dtypes; those that share memory (tied weights) are each written in full.
    Raises OSError (disk full, no permission) and leaves no partial file.
    """
    with files.atomic(path) as part:
        _save(path, part, state, {"format": "pt"} | ({EDITS: json.dumps(edits)} if edits else {}))


def replace_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], edits: list[Record]
) -> None:
    """Write some of a checkpoint's tensors anew, in place: in its format, of its shards those that
    hold them; and the log of its edits. All files are replaced or none; what lies elsewhere and is
    linked here, as in a hub's cache, stays, and the link gives way to a file.

    Args:
        tensors: by the names that `read_state` gives.

    Raises OSError when they cannot be written; the checkpoint is then as it was.
    """
    path = Path(path)
    shards = _shards(path) or {path: set(tensors)}
    log = _log_file(path)
    with files.staging(path.parent) as stage:
        for shard, names in shards.items():
            if own := {name: tensors[name] for name in tensors if name in names}:
                with files.atomic(stage / shard.name) as part:
                    _rewrite(shard, part, own, None if log else edits)
        if log is not None and _log_in(_json(log), log).get(EDITS) != _logged(edits):
            with files.atomic(stage / log.name) as part:
                part.write_text(logged(log, edits), encoding="utf-8")
        files.publish(stage, path.parent, (log or path).name)


def read_edits(
    path: str | os.PathLike[str] | None, state: Mapping[str, Tensor] | None = None
) -> list[Record]:
    """The log of edits in a checkpoint, as far as its heads bear it out: in a safetensors file's
    metadata, of shards in those of their index, of a model of transformers in the config.json
    beside. Empty for a file without one.

    Args:
        state: what `read_state` gives, if that is at hand.

    Raises ValueError for a damaged file, or one that holds something else there.
    """
    if path is None:
        return []
    path = Path(path)
    log = _log_file(path)
    if log is not None:
        found = parse(_log_in(_json(log), log).get(EDITS, []), str(log))
    elif path.suffix == ".safetensors":
        found = parse(_metadata_log(path), str(path))
    else:
        return []
    return held(found, read_state(path) if state is None else state) if found else []


def logged(log: Path, edits: list[Record]) -> str:
    """The text of a config.json or an index with this log of edits in place of the one it has."""
    told = _json(log)
    place = _log_in(told, log)
    place.pop(EDITS, None)
    place |= {EDITS: _logged(edits)} if edits else {}
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def size(state: Mapping[str, Tensor]) -> int:
    """Bytes that a state dict takes on disk."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The file or index in a folder that stands for its weights."""
    places = [folder / f"{name}{end}" for name in names for end in ("", INDEX)]
    return next((place for place in places if place.is_file()), None)


def _log_file(path: Path) -> Path | None:
    """The JSON file that logs a checkpoint's edits: of one with a name of transformers' the
    config.json beside, of other shards their index; None for what holds its log itself."""
    config = path.parent / HF_CONFIG
    if path.name.removesuffix(INDEX) in HUGGING_FACE and config.is_file():
        return config
    return path if path.name.endswith(INDEX) else None


def _logged(edits: list[Record]) -> dict[str, Any] | None:
    return {"edits": edits} if edits else None


def _log_in(told: dict[str, Any], log: Path) -> dict[str, Any]:
    """The part of such a file that the log is in, under `EDITS`."""
    place = told.setdefault("metadata", {}) if log.name.endswith(INDEX) else told
    if not isinstance(place, dict):
        raise Refusal("read_state", "metadata", f"must be a JSON object, got another in {log}")
    return place


def _metadata_log(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as opened:
            return json.loads((opened.metadata() or {}).get(EDITS, "[]"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise Refusal(
            "checkpoint", "path", f"must be a whole safetensors file, got {path}: {error}"
        ) from error


def _shards(path: Path) -> dict[Path, set[str]] | None:
    """Names of tensors by the shard that holds them, of an index; None for another file."""
    if not path.name.endswith(INDEX):
        return None
    places = _json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Refusal("read_state", "path", f"must be an index with a weight_map, got {path}")
    shards: dict[Path, set[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or file in ("", "..") or Path(file).name != file:
            raise Refusal("read_state", "shards", f"must lie beside their index, got {file!r}")
        shards.setdefault(path.parent / file, set()).add(name)
    return shards


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"read_state: path must be a file, got {path}")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no UTF-8
        raise Refusal("read_state", "path", f"must be JSON, got {path}: {error}") from error
    if not isinstance(told, dict):
        raise Refusal("read_state", "path", f"must be a JSON object, got {path}")
    return told


def _read(path: Path) -> State:
    if not path.is_file():
        raise FileNotFoundError(f"read_state: path must be a file, got {path}")
    state = _tensors_of(_load(path), path)
    return {name: state[key] for name, key in _keys(state, path).items()}


def _keys(state: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The file's own key of every tensor, by the name that `read_state` gives it."""
    keys = [key for key, value in state.items() if isinstance(value, Tensor)]
    if not keys:
        raise Refusal("read_state", "path", f"must hold a state dict with tensors, got {path}")
    prefix = "module." if str(keys[0]).startswith("module.") else ""
    names = {str(key).removeprefix(prefix): key for key in keys}
    if len(names) != len(keys):
        raise Refusal(
            "read_state", "path", f"must hold each tensor once, got two of a name in {path}"
        )
    return names


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # of how torch would rather have it written
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise Refusal("read_state", "path", f"must be a whole file, got {path}: {error}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # unpickling what is no pickle raises errors of any type
        # not its text: torch advises to load the file without weights_only
        raise Refusal(
            "read_state",
            "path",
            f"must be .safetensors or a whole torch file of tensors, got {path}",
        ) from error


def _tensors_of(loaded: Any, path: Path) -> Any:
    """The state dict itself in what a file holds."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise Refusal("read_state", "path", f"must hold a state dict, got {path}")
    return loaded


def _rewrite(
    path: Path, part: Path, tensors: Mapping[str, Tensor], edits: list[Record] | None
) -> None:
    """What `path` holds with some tensors anew, in its own format, into `part`."""
    loaded = _load(path)
    state = _tensors_of(loaded, path)
    keys = _keys(state, path)
    state.update({keys[name]: tensor for name, tensor in tensors.items()})
    if path.suffix != ".safetensors":
        try:
            torch.save(loaded, part)
        except RuntimeError as error:  # its I/O errors come as this type
            raise OSError(f"write: cannot write {path}: {error}") from error
        return
    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata() or {})
    if edits is not None:
        metadata.pop(EDITS, None)
        metadata |= {EDITS: json.dumps(edits)} if edits else {}
    _save(path, part, state, metadata)


def _save(
    path: str | os.PathLike[str], part: Path, state: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    plain: State = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        plain[name] = value
    try:
        save_file(plain, part, metadata=metadata or None)
    except SafetensorError as error:  # its I/O errors come as this type
        raise OSError(f"write: cannot write {path}: {error}") from error
