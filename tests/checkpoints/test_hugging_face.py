"""Folders of transformers: loaded, erased from, verified, undone."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from command import Run
from families import FAMILIES, MODELS, WIDTH
from plugin_models import clip_folder, image, projector
from stored import bits
from word_tokenizers import WORDS, hugging_face_tokenizer

import clipproj
from clipproj import edit, edits, embed_classes
from clipproj.checkpoints.checkpoint import check_model, load_model, save_model
from clipproj.checkpoints.checkpoint import undo as checkpoint_undo
from clipproj.checkpoints.hugging_face import Tokenizer
from clipproj.checkpoints.state import (
    HF_WEIGHTS,
    INDEX,
    locate,
    read_edits,
    read_state,
    replace_tensors,
    write_state,
)
from clipproj.cli.info import describe
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import verify
from clipproj.models.encoder import features


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("hf") / "clip")


def in_other_files(folder: Path, to: Path, kind: str) -> Path:
    """The same model, as transformers also writes it or wrote it once."""
    model = transformers.CLIPModel.from_pretrained(folder)
    shutil.copytree(folder, to)
    (to / HF_WEIGHTS).unlink()
    state = model.state_dict()
    if kind == "shards":
        model.save_pretrained(to, max_shard_size="60KB")
        assert len(list(to.glob("model-*.safetensors"))) > 2
    elif kind == "bin":
        torch.save(state, to / "pytorch_model.bin")
    else:
        names = list(state)
        places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
        for file in set(places.values()):
            torch.save({n: state[n] for n in names if places[n] == file}, to / file)
        index = {"metadata": {}, "weight_map": places}
        (to / f"pytorch_model.bin{INDEX}").write_text(json.dumps(index))
    return to


def test_a_folder_is_loaded(folder: Path) -> None:
    loaded = load_model(str(folder))
    model = transformers.CLIPModel.from_pretrained(folder)
    assert not loaded.model.training
    assert loaded.checkpoint == folder / HF_WEIGHTS
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    got = embed_classes(loaded.model, loaded.tokenizer, ["cat", "dog"], ["a {}"])
    assert torch.equal(got.tensor, embed_classes(model, processor, ["cat", "dog"], ["a {}"]).tensor)
    with pytest.raises(ValueError, match="pretrained must be left out with a folder"):
        load_model(str(folder), "openai")
    with pytest.raises(ValueError, match="pretrained must be left out with a folder"):
        check_model(str(folder), "openai")


def test_weights_that_leave_a_part_at_random_are_refused(folder: Path, tmp_path: Path) -> None:
    clip = in_other_files(folder, tmp_path / "m", "bin")
    state = torch.load(clip / "pytorch_model.bin", weights_only=True)
    del state["visual_projection.weight"]
    torch.save(state, clip / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"all weights of CLIPModel, got .* visual_projection"):
        load_model(str(clip))
    (clip / "pytorch_model.bin").write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=r"load_model: cannot load .*m: "):
        load_model(str(clip))


def test_a_folder_without_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*", "proc*"))
    with pytest.raises((RuntimeError, ValueError), match="load_model: "):
        load_model(str(tmp_path / "m"))


def test_a_tokenizer_without_its_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    clip = tmp_path / "m"
    shutil.copytree(folder, clip)
    (clip / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"must hold its tokenizer's vocabulary, got one of 2 tok"):
        load_model(str(clip))
    shutil.copy(folder / "tokenizer.json", clip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(clip)
    size = len(tokenizer)
    with pytest.raises(
        ValueError, match=f"fit the {size - 1} tokens of its text tower, got {size}"
    ):
        load_model(str(clip))


@pytest.mark.parametrize("file", ["config.json", "processor_config.json"])
def test_code_in_a_folder_never_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    clip = tmp_path / "m"
    shutil.copytree(folder, clip)
    told = json.loads((clip / file).read_text())
    autos = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor")
    told["auto_map"] = dict.fromkeys(autos, "mine.Mine")
    told["auto_map"]["AutoTokenizer"] = ["mine.Mine", "mine.Mine"]
    for key in ("model_type", "processor_class", "tokenizer_class"):
        told |= {key: "Odd"} if key in told else {}
    (clip / file).write_text(json.dumps(told))
    (clip / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine:\n    pass\n")
    cache = str(tmp_path / "modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))  # somebody who agrees to all
    with contextlib.suppress(RuntimeError, ValueError):  # it may find classes of its own
        load_model(str(clip))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [n for n in MODELS if "Vision" not in n or "Dual" in n])
def test_a_tokenizer_that_pads_on_the_left_gives_the_same_features(name: str) -> None:
    model, tokenizer = FAMILIES[name].build(), hugging_face_tokenizer()
    texts = [WORDS[-1], " ".join(WORDS[-5:])]
    want = embed_classes(model, tokenizer, texts, ["{}"]).tensor
    tokenizer.padding_side = "left"
    assert torch.equal(embed_classes(model, tokenizer, texts, ["{}"]).tensor, want)
    assert torch.equal(
        Tokenizer(model, tokenizer)(texts)[:, :4],
        Tokenizer(model, hugging_face_tokenizer())(texts)[:, :4],
    )


def test_positions_that_a_text_tower_never_uses_are_not_counted() -> None:
    tokenizer = hugging_face_tokenizer()
    model = FAMILIES["AltCLIPModel"].build()  # XLM-R's positions begin after the padding's
    limit = (
        model.config.text_config.max_position_embeddings - model.config.text_config.pad_token_id - 1
    )
    assert Tokenizer(model, tokenizer).context_length == limit
    fits = limit - len(tokenizer("")["input_ids"])
    assert embed_classes(model, tokenizer, [f"{WORDS[-1]} " * fits], ["{}"]).tensor.isfinite().all()
    with pytest.raises(ValueError, match=rf"must fit the model's {limit} tokens, got {limit + 1}"):
        embed_classes(model, tokenizer, [f"{WORDS[-1]} " * (fits + 1)], ["{}"])


def test_transformers_loads_what_erase_writes(folder: Path, erased: Path) -> None:
    model = transformers.AutoModel.from_pretrained(erased)
    processor = transformers.AutoProcessor.from_pretrained(erased)
    original = transformers.AutoModel.from_pretrained(folder)
    p = clipproj.load(erased / "folded.safetensors")
    pixels = processor(images=[image(1)], return_tensors="pt")
    with torch.no_grad():
        got = features(model.get_image_features(**pixels))
        want = p(features(original.get_image_features(**pixels)))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    before, after = bits(folder), bits(erased)
    assert {name for name in before if before[name] != after[name]} == {"visual_projection.weight"}
    assert before.keys() == after.keys()
    assert (
        processor.tokenizer("a cat")["input_ids"]
        == (transformers.AutoProcessor.from_pretrained(folder).tokenizer("a cat")["input_ids"])
    )


def test_verify_info_and_undo_of_a_folder(run: Run, folder: Path, erased: Path) -> None:
    receipt = erased / "receipt.safetensors"
    for place in (erased, erased / HF_WEIGHTS):
        assert run("verify", place, receipt).stdout.startswith("image head edited, bit for bit")
    assert run("verify", folder, receipt).exit_code == 1
    facts = json.loads(run("info", erased, "--json").stdout)
    assert facts["kind"] == "checkpoint"
    assert set(facts["heads"]) == {"visual_projection.weight", "text_projection.weight"}
    assert [one["forget"] for one in facts["edits"]] == [["cat"]]
    assert run("undo", erased, erased / "undo.safetensors").exit_code == 0
    assert bits(erased) == bits(folder)
    assert read_edits(locate(erased)) == []
    assert edits(transformers.AutoModel.from_pretrained(erased)) == ()


@pytest.mark.parametrize("kind", ["shards", "bin", "bin shards"])
def test_every_way_to_keep_the_weights(
    run: Run, folder: Path, asked: list[str], tmp_path: Path, kind: str
) -> None:
    clip = in_other_files(folder, tmp_path / "m", kind)
    assert bits(clip) == bits(folder)
    result = run("erase", "cat", "--model", clip, *asked[2:], "--json")
    assert result.exit_code == 0, result.stdout
    receipt = Receipt.load("clipproj-out/receipt.safetensors")
    assert verify(read_state(locate(Path("clipproj-out"))), receipt).exact
    # the same edit made where the weights lie
    out = locate(Path("clipproj-out"))
    there = in_other_files(folder, tmp_path / "edited", kind)
    head = {"visual_projection.weight": read_state(out)["visual_projection.weight"]}
    replace_tensors(locate(there), head, read_edits(out))
    assert run("verify", there, "clipproj-out/receipt.safetensors").exit_code == 0
    assert [one["forget"] for one in read_edits(locate(there))] == [["cat"]]
    files = sorted(path.name for path in there.iterdir())
    result = run("undo", there, "clipproj-out/undo.safetensors")
    assert result.exit_code == 0, result.stderr
    assert bits(there) == bits(folder)
    assert sorted(path.name for path in there.iterdir()) == files
    loaded = load_model(str(there))
    assert edits(loaded.model) == ()


def test_an_index_alone_is_read(folder: Path, tmp_path: Path) -> None:
    clip = in_other_files(folder, tmp_path / "m", "shards")
    index = clip / f"{HF_WEIGHTS}{INDEX}"
    assert {n: t.numpy().tobytes() for n, t in read_state(index).items()} == bits(folder)
    told = json.loads(index.read_text())
    name, file = next(iter(told["weight_map"].items()))
    for wrong, says in (("none.safetensors", "must be a file"), ("../m/x", "beside their index")):
        index.write_text(json.dumps({"weight_map": told["weight_map"] | {name: wrong}}))
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            read_state(index)
    other = next(one for one in told["weight_map"].values() if one != file)
    index.write_text(json.dumps({"weight_map": told["weight_map"] | {name: other}}))
    with pytest.raises(ValueError, match=f"must hold {name}, as model.safetensors.index.json says"):
        read_state(index)
    index.write_text("[]")
    with pytest.raises(ValueError, match="a JSON object"):
        read_state(index)


def test_the_output_must_not_hold_a_model_of_another_kind(
    run: Run, asked: list[str], usual: list[str], erased: Path
) -> None:
    before = tiny.tree(erased)
    result = run("erase", "cat", *usual)  # of open_clip
    assert result.exit_code == 2
    assert "out must hold no other checkpoint, got clipproj-out/model.safetensors" in result.stderr
    assert tiny.tree(erased) == before
    assert run("erase", "dog", *asked).exit_code == 0  # an earlier output of its own kind


def test_edits_in_a_row_and_the_log(run: Run, asked: list[str], folder: Path, erased: Path) -> None:
    lifted = ["--max-loss", "1", "--max-found", "1"]
    result = run("erase", "dog", "--model", erased, *asked[2:], "--out", "two", *lifted)
    assert result.exit_code == 0, result.stderr
    model = transformers.AutoModel.from_pretrained("two")
    assert [one.forget for one in edits(model)] == [("cat",), ("dog",)]
    assert run("undo", "two", "two/undo.safetensors").exit_code == 0
    assert bits(Path("two")) == bits(erased)
    assert [one["forget"] for one in read_edits(locate(Path("two")))] == [["cat"]]
    assert run("undo", "two", erased / "undo.safetensors").exit_code == 0
    assert bits(Path("two")) == bits(folder)


# Task models, dtypes, logs that are not the weights' own


DECODER = {"extract_layers": [0], "reduce_dim": 8, "decoder_num_attention_heads": 2}
TASKS = {"CLIPSegForImageSegmentation": DECODER, "OwlViTForObjectDetection": {}}


def task_model(name: str, folder: Path, to: Path) -> torch.nn.Module:
    """A model of transformers for a task, in a folder, with the tokenizer of another one."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("model*"))
    config = copy.deepcopy(transformers.CLIPConfig.from_pretrained(folder)).to_dict()
    text, vision = config["text_config"], config["vision_config"]
    cls = getattr(transformers, name)
    torch.manual_seed(0)
    if name.startswith("Flava"):
        shape = {k: vision[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                        "num_attention_heads")}  # fmt: skip
        told = {"text_config": shape | {"vocab_size": text["vocab_size"]}}
        told |= {"image_config": shape | {"image_size": 32, "patch_size": 16}}
        told |= {"multimodal_config": shape, "hidden_size": 32, "projection_dim": WIDTH}
        told |= {"image_codebook_config": {"num_groups": 1, "hidden_size": 8, "vocab_size": 16}}
    else:
        told = {"text_config": text, "vision_config": vision, "projection_dim": WIDTH}
    model = cls(cls.config_class(**told, **TASKS[name])).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("image_projection.bias"):  # else 0, and nothing is taken out of it
            torch.nn.init.normal_(parameter)
    model.save_pretrained(to)
    return model


@pytest.mark.parametrize("name", TASKS)
def test_a_task_model_keeps_all_but_the_head(name: str, folder: Path, tmp_path: Path) -> None:
    original = task_model(name, folder, tmp_path / "m")
    loaded = load_model(str(tmp_path / "m"))
    made = edit(loaded.model, projector(1))
    made.save_undo(tmp_path / "undo")
    path = save_model(loaded, tmp_path / "out")
    assert verify(read_state(path), made.receipt).exact
    before, after = bits(tmp_path / "m"), bits(tmp_path / "out")
    (changed, *more) = [key for key in before if before[key] != after[key]]
    assert (before.keys(), len(more)) == (after.keys(), 1 if made.receipt.bias else 0)
    assert changed.split(".", 1)[1] in (made.receipt.weight, made.receipt.bias)
    configs = [json.loads((tmp_path / at / "config.json").read_text()) for at in ("m", "out")]
    assert configs[1].pop("clipproj") == {"edits": [made.record]}
    assert configs[0] == configs[1]
    again = type(original).from_pretrained(tmp_path / "out")
    assert [one.projector for one in edits(again)] == [made.receipt.projector_hash]
    assert len(describe(path)["heads"]) >= 2
    checkpoint_undo(path, tmp_path / "undo")
    assert bits(tmp_path / "out") == before


@pytest.mark.parametrize("says", ["float16", "bfloat16", None])
@pytest.mark.parametrize("kind", ["float32", "float16", "norms float32", "float64"])
def test_the_head_is_edited_in_the_dtype_that_it_is_kept_in(
    folder: Path, tmp_path: Path, says: str | None, kind: str
) -> None:
    clip, out = tmp_path / "m", tmp_path / "out"
    shutil.copytree(folder, clip)
    config = json.loads((clip / "config.json").read_text())
    config.pop("dtype")
    (clip / "config.json").write_text(json.dumps(config | ({"dtype": says} if says else {})))
    narrow = getattr(torch, kind.split()[-1]) if " " not in kind else torch.float16
    state = read_state(clip / HF_WEIGHTS)
    mixed = {k: v.to(torch.float32 if " " in kind and "norm" in k else narrow)
             for k, v in state.items()}  # fmt: skip
    write_state(clip / HF_WEIGHTS, mixed, [])
    loaded = load_model(str(clip))
    made = edit(loaded.model, projector(1))
    made.save_undo(tmp_path / "undo")
    out.mkdir()
    written = read_state(save_model(loaded, out))
    assert verify(written, made.receipt).exact
    assert {k: v.dtype for k, v in written.items()} == {k: v.dtype for k, v in mixed.items()}
    before, after = bits(clip), bits(out)
    assert [key for key in before if before[key] != after[key]] == ["visual_projection.weight"]
    assert len(edits(load_model(str(out)).model)) == 1
    checkpoint_undo(out, tmp_path / "undo")
    assert bits(out) == before


def test_heads_that_cannot_be_written_are_refused(folder: Path, tmp_path: Path) -> None:
    clip = tmp_path / "m"
    shutil.copytree(folder, clip)
    state = read_state(clip / HF_WEIGHTS)
    head = state["visual_projection.weight"]
    write_state(clip / HF_WEIGHTS, state | {"visual_projection.weight": head.half()}, [])
    with pytest.raises(ValueError, match=r"heads of .*m must have one dtype, got .*16, .*32"):
        load_model(str(clip))
    (clip / HF_WEIGHTS).rename(clip / "part.safetensors")
    write_state(clip / "part.safetensors", state, [])
    names = [name for name in state if name != "visual_projection.weight"]
    index = {"weight_map": dict.fromkeys(names, "part.safetensors")}
    (clip / f"{HF_WEIGHTS}{INDEX}").write_text(json.dumps({"metadata": {}} | index))
    with pytest.raises(ValueError, match=r"load_model: .* must hold .*visual_projection\.weight"):
        load_model(str(clip))  # transformers finds it in the shard, though no index says so
    loaded = load_model(str(folder))
    with torch.no_grad():
        loaded.model.logit_scale += 1
    with pytest.raises(ValueError, match=r"in its heads alone, got other bits in logit_scale"):
        save_model(loaded, tmp_path)


def test_what_lies_beside_the_weights_is_copied(folder: Path, tmp_path: Path) -> None:
    loaded = load_model(str(folder))
    embed_classes(loaded.model, loaded.tokenizer, ["cat"], ["a {}"])
    loaded.tokenizer(["cat"])  # sets the tokenizer's own truncation and padding
    save_model(loaded, tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names == set(loaded.files)
    for name in names - {HF_WEIGHTS, "config.json"}:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_the_output_must_not_hold_another_models_files(
    run: Run, asked: list[str], name: str
) -> None:
    Path("clipproj-out").mkdir()
    Path("clipproj-out", name).write_text("mine")
    result = run("erase", "cat", *asked)
    assert result.exit_code == 2
    assert f"an earlier output of clipproj, got clipproj-out with {name}" in result.stderr
    assert tiny.tree(Path("clipproj-out")) == {name: b"mine"}


def test_a_config_that_names_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_weights"] = "other.safetensors"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    for call in (locate, lambda path: load_model(str(path))):
        with pytest.raises(
            ValueError, match=r"usual name .* \"transformers_weights\": 'other\.saf"
        ):
            call(tmp_path / "m")
