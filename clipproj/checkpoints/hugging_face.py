"""Models of Hugging Face transformers in folders: load, save, and use them in open_clip's way."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipproj import files
from clipproj.checkpoints.state import HF_CONFIG, HF_WEIGHTS, logged, read_state, write_state
from clipproj.editing.records import Record
from clipproj.editing.weights import key_of, keys_of
from clipproj.models.encoder import context_length, masks_texts, padded, pinned
from clipproj.models.families import TRANSFORMERS
from clipproj.models.heads import family_of, find_heads
from clipproj.refusal import Refusal

_BESIDE = (  # what transformers keeps beside a model, but for the vocabulary
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def load(folder: Path, checkpoint: Path, device: torch.device | str) -> tuple[nn.Module, Any]:
    """The model in eval mode, in the dtype of its heads, and its processor (or tokenizer).

    A config may name another dtype than its weights have; a head would be edited in that one, and
    the file's would not be the head that was.

    Nothing is downloaded and no code in the folder is run.

    Raises:
        ImportError: without transformers.
        ValueError: for weights that leave a part of the model as it was initialised, at random;
            for a folder without a tokenizer, its vocabulary, or with that of another model; for
            heads that the file has no tensors of, others, or in several dtypes.
        Whatever else transformers raises for a folder that it cannot load.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "load_model: folders with config.json are loaded by transformers: pip install "
            '"clipproj[plugins]"'
        ) from error

    here = {"local_files_only": True, "trust_remote_code": False}  # None would ask, and run it
    config = transformers.AutoConfig.from_pretrained(folder, **here)
    # AutoModel would build a *WithProjection model without its projection
    known = next((name for name in config.architectures or () if name in TRANSFORMERS), "AutoModel")
    build = getattr(transformers, known).from_pretrained
    with pinned("cpu"):
        model, told = build(folder, dtype="auto", output_loading_info=True, **here)
        missing = sorted([*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])])
        if missing:
            raise Refusal(
                "load_model",
                str(folder),
                f"must hold all weights of {type(model).__name__}, got none "
                f"that fit for {', '.join(missing[:3])}{', ...' if missing[3:] else ''}",
            )
        state = read_state(checkpoint)
        dtypes = {state[key].dtype for key, _ in head_keys("load_model", model, state)}
        if len(dtypes) > 1:
            got = ", ".join(sorted(map(str, dtypes)))
            raise Refusal("load_model", None, f"heads of {folder} must have one dtype, got {got}")
        if dtypes - {model.dtype}:
            model = build(folder, dtype=dtypes.pop(), **here)
    for key, tensor in head_keys("load_model", model, state):
        if not torch.equal(state[key], tensor):
            raise Refusal("load_model", str(checkpoint), f"must hold the head's own bits in {key}")
    processor = transformers.AutoProcessor.from_pretrained(folder, **here)
    _check_words(folder, model, getattr(processor, "tokenizer", processor))
    return model.to(device).eval(), processor


def _check_words(folder: Path, model: nn.Module, tokenizer: Any) -> None:
    """ValueError for what is no tokenizer, or not of this model, or lacks its vocabulary.

    Without its files transformers builds an empty one, for which all texts are the same.
    """
    if not hasattr(tokenizer, "model_max_length"):
        got = type(tokenizer).__name__
        raise Refusal("load_model", str(folder), f"must have a tokenizer, got {got} alone")
    family = family_of(model)
    if not hasattr(model, "get_text_features") and not (family and family.single("text")):
        return  # nothing reads its texts
    config: Any = getattr(model.config, "text_config", model.config)
    size = config.vocab_size
    if len(tokenizer) > size:
        raise Refusal(
            "load_model",
            None,
            f"tokenizer of {folder} must fit the {size} tokens of its text tower, "
            f"got {len(tokenizer)}",
        )
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("cat", "dog")]
    if ids[0] == ids[1] or any(not one or tokenizer.unk_token_id in one for one in ids):
        raise Refusal(
            "load_model",
            str(folder),
            f"must hold its tokenizer's vocabulary, got one of "
            f"{len(tokenizer)} tokens that does not know the word cat from dog",
        )


def head_keys(op: str, model: nn.Module, state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors of a model's foldable heads, by their keys in the state dict of its folder.

    ValueError, in the name of `op`, where it has no such key.
    """
    heads = [head for head in find_heads(model) if head.foldable]
    names = [name for head in heads for name in (head.weight, head.bias) if name]
    return [(key_of(op, state, name), model.get_parameter(name).detach().cpu()) for name in names]


class Tokenizer:
    """A model's tokenizer in open_clip's way: texts to tokens [n, context], cut and padded.

    Args:
        model: of transformers. tokenizer: its own, or a processor that holds one.

    Attributes:
        tokenizer: of transformers, as it takes texts itself.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.context_length = context_length(model, self.tokenizer)
        self._masked = masks_texts(model)

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Tokens [n, context] of n texts on the CPU, int64."""
        return padded(self.tokenizer, texts, context_length or self.context_length)["input_ids"]

    def inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the text tower takes of these tokens: with a mask, less the padding of all rows."""
        if not self._masked:
            return {"input_ids": tokens}
        pad = self.tokenizer.pad_token_id
        lengths = tokens.shape[1] - (tokens != pad).int().flip(1).argmax(1)
        lengths = lengths + (pad == self.tokenizer.eos_token_id)  # CLIP pads with what ends a text
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        longest = int(mask.any(0).sum())
        return {
            "input_ids": tokens[:, :longest],
            "attention_mask": mask[:, :longest].to(tokens.dtype),
        }


class Pixels:
    """An image processor in open_clip's way: a PIL image to pixels [3, h, w].

    Raises ValueError for one that makes more than pixels, as SigLIP 2's with its patches does.
    """

    def __init__(self, processor: Any) -> None:
        from PIL import Image

        self.processor = processor
        made = processor(images=[Image.new("RGB", (32, 32))], return_tensors="pt")
        if set(made) != {"pixel_values"}:
            raise Refusal(
                "Pixels",
                "processor",
                f"must make pixel_values alone, got {', '.join(made)} of "
                f"{type(processor).__name__}",
            )

    def __call__(self, image: Any) -> Tensor:
        return self.processor(images=[image], return_tensors="pt")["pixel_values"][0]


def companions(folder: Path, tokenizer: Any) -> list[str]:
    """Names of the files that a folder's tokenizer and processors are read from."""
    names = {*_BESIDE, *type(tokenizer).vocab_files_names.values()}
    return sorted(name for name in names if (folder / name).is_file())


def save(
    model: nn.Module, source: Path, folder: Path, names: Sequence[str], edits: list[Record]
) -> None:
    """Write what `from_pretrained(folder)` reads: all that `source` is, with the model's heads.

    Args:
        source: the checkpoint that the model was loaded from, with `names` beside it.

    Raises OSError; ValueError for a model with other weights than `source` outside its heads.
    """
    state = read_state(source)
    heads = dict(head_keys("save_model", model, state))
    for name, tensor in model.state_dict().items():
        keys = keys_of(state, name)  # none of what the library renames or computes
        if len(keys) != 1 or keys[0] in heads or state[keys[0]].shape != tensor.shape:
            continue
        if not torch.equal(state[keys[0]].to(tensor.dtype), tensor.cpu()):
            raise Refusal(
                "save_model",
                "model",
                f"must differ from {source} in its heads alone, got other bits in {name}",
            )
    for key, tensor in heads.items():
        if tensor.dtype != state[key].dtype:
            raise Refusal(
                "save_model", key, f"must be {state[key].dtype} as in {source}, got {tensor.dtype}"
            )
    write_state(folder / HF_WEIGHTS, state | heads, [])
    for name in names:
        if name not in (HF_WEIGHTS, HF_CONFIG):
            shutil.copyfile(source.parent / name, folder / name)
    with files.atomic(folder / HF_CONFIG) as part:
        part.write_text(logged(source.parent / HF_CONFIG, edits), encoding="utf-8")
