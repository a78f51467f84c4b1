"""Every family's head is found, open_clip's whole list included; the rest is refused by name.

`HEADS` is the table of what must be found; the walk over open_clip's configurations has its own,
worked out from each configuration's text alone.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.distributed as dist
import transformers
from families import FAMILIES, TEXT, WIDTH, fold_matches
from torch import nn
from torch.nn.utils import parametrizations, prune

from clipproj.models import encoder, heads
from clipproj.models.families import head_weights
from clipproj.models.heads import find_heads

# Family -> image weight, text weight (+ when there is a bias); None: no head to fold into.
_HF = ("visual_projection.weight", "text_projection.weight")
HEADS: dict[str, tuple[str | None, str | None]] = {
    "open_clip ViT": ("visual.proj", "text_projection"),
    "open_clip ViT, average pool": ("visual.proj", "text_projection"),
    "open_clip ModifiedResNet": ("visual.attnpool.c_proj.weight +", "text_projection"),
    "open_clip CustomText ViT": ("visual.proj", "text.text_projection"),
    "open_clip text Linear": ("visual.proj", "text_projection.weight +"),
    "open_clip timm linear": ("visual.head.proj.weight", "text_projection"),
    "open_clip timm linear with bias": ("visual.head.proj.weight +", "text_projection"),
    "open_clip timm mlp": ("visual.head.mlp.fc2.weight", "text_projection"),
    "open_clip timm attention pool": ("visual.head.pool.proj.weight +", "text_projection"),
    "open_clip timm trunk, ViT": ("visual.trunk.head.weight +", "text.text_projection"),
    "open_clip timm trunk, ResNet": ("visual.trunk.fc.weight +", "text.text_projection"),
    "open_clip timm trunk, no head": (None, "text.text_projection"),
    "open_clip EVA02": ("visual.trunk.head.weight +", "text.text_projection"),
    "open_clip MobileCLIP": ("visual.trunk.head.fc.weight +", "text.text_projection"),
    "open_clip PE-Core": ("visual.trunk.head.weight +", "text.text_projection"),
    "open_clip SigLIP": (None, "text.text_projection.weight +"),
    "open_clip SigLIP i18n": (None, None),
    "open_clip CoCa": ("visual.proj", "text.text_projection"),
    "open_clip HF text, linear": ("visual.proj", "text.proj.weight"),
    "open_clip HF text, mlp": ("visual.proj", "text.proj.2.weight"),
    "open_clip HF text, clap_mlp": ("visual.proj", "text.proj.2.weight +"),
    "open_clip HF text, none": ("visual.proj", None),
    "OpenAI ViT": ("visual.proj", "text_projection"),
    "OpenAI ModifiedResNet": ("visual.attnpool.c_proj.weight +", "text_projection"),
    "CLIPModel": _HF,
    "CLIPVisionModelWithProjection": ("visual_projection.weight", None),
    "CLIPTextModelWithProjection": (None, "text_projection.weight"),
    "ChineseCLIPModel": _HF,
    "AltCLIPModel": _HF,
    "MetaClip2Model": _HF,
    "MetaClip2VisionModelWithProjection": ("visual_projection.weight", None),
    "MetaClip2TextModelWithProjection": (None, "text_projection.weight"),
    "CLIPSegModel": _HF,
    "OwlViTModel": _HF,
    "Owlv2Model": _HF,
    "VisionTextDualEncoderModel": _HF,
    "BlipModel": _HF,
    "FlavaModel": ("image_projection.weight +", "text_projection.weight +"),
    "GroupViTModel": ("visual_projection.3.weight +", "text_projection.3.weight +"),
    "SiglipModel": (None, "text_model.head.weight +"),
    "Siglip2Model": (None, "text_model.head.weight +"),
    "AlignModel": (None, "text_projection.weight +"),
}


def found(head: heads.Head) -> str | None:
    """A head in the notation of the tables, after a check that its parts fit each other."""
    if head.weight is None:
        assert head.bias is None
        assert head.dim is None
        return None
    linear = head.weight.endswith(".weight")
    assert head.dim == (0 if linear else 1)
    assert head.bias in (None, head.weight.removesuffix("weight") + "bias")
    return head.weight + (" +" if head.bias else "")


@pytest.mark.parametrize("name", FAMILIES)
def test_finds_the_heads_and_folding_does_what_projecting_features_does(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    both = find_heads(model)
    assert (found(both.image), found(both.text)) == HEADS[name]
    assert [head.tower for head in both] == ["image", "text"]
    for head in both:
        assert head.foldable == (head.weight is not None) == (head.reason is None)
        assert head.width == (None if name == "open_clip SigLIP i18n" else WIDTH)
        if head.foldable:
            fold_matches(family, model, head.tower)


def test_every_family_has_its_row() -> None:
    assert set(FAMILIES) == set(HEADS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_state_dict_tells_the_same_heads(name: str) -> None:
    model = FAMILIES[name].build()
    want = [head.weight for head in find_heads(model) if head.weight]
    assert sorted(head_weights(model.state_dict())) == sorted(want)
    task = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    told = head_weights(task | {"classifier.weight": torch.ones(2, 3)})
    assert {key.removeprefix("model.") for key in told} >= set(want)


def timm_classifiers() -> list[str]:
    """A model of timm for each name that its one classifier may have."""
    found: dict[str, str] = {}
    for name in timm.list_models():
        classifier = timm.models.get_pretrained_cfg_value(name, "classifier")
        if isinstance(classifier, str):
            found.setdefault(classifier, name)
    return sorted(found.values())


@pytest.mark.parametrize("name", timm_classifiers())
def test_a_state_dict_tells_the_classifier_of_a_trunk_of_timm(name: str) -> None:
    pool = "" if name.endswith("_clip") else "avg"  # OpenAI's ResNets in timm pool by themselves
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": None}
    with torch.device("meta"):
        model = open_clip.CustomTextCLIP(WIDTH, vision, TEXT)
    site = find_heads(model).image.weight
    assert set(head_weights(model.state_dict())) - {"text.text_projection"} == {site} - {None}


# open_clip's own list


def tiny_text_config(name: str) -> transformers.PretrainedConfig:
    """Stands in for the configuration a hub would give: of the same kind, only small."""
    size: dict[str, Any] = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    if "mt5" in name:
        return transformers.MT5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2)
    if "nllb" in name:
        return transformers.M2M100Config(d_model=16, encoder_layers=1, decoder_layers=1)
    kind = transformers.XLMRobertaConfig if "xlm" in name else transformers.RobertaConfig
    return kind(hidden_size=16, intermediate_size=16, **size)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(from_pretrained=tiny_text_config)
    monkeypatch.setattr("open_clip.hf_model.AutoConfig", stand_in)


def expected_image(vision: dict[str, Any]) -> str | None:
    if not vision.get("timm_model_name"):
        resnet = isinstance(vision["layers"], list)
        return "visual.attnpool.c_proj.weight +" if resnet else "visual.proj"
    match vision["timm_proj"]:
        case "none":
            return None
        case "linear":
            return "visual.head.proj.weight" + (" +" if vision.get("timm_proj_bias") else "")
        case "mlp":
            return "visual.head.mlp.fc2.weight"
    in_classifier = vision["timm_model_name"].startswith("fastvit")
    return f"visual.trunk.head{'.fc' if in_classifier else ''}.weight +"


def expected_text(text: dict[str, Any], own_tower: bool) -> str | None:
    if text.get("hf_model_name"):
        linear = text.get("hf_proj_type", "mlp") == "linear"
        return "text.proj.weight" if linear else "text.proj.2.weight"
    if text.get("proj_type") == "none":
        return None
    path = "text.text_projection" if own_tower else "text_projection"
    return f"{path}.weight +" if text.get("proj_bias") else path


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", open_clip.list_models())
def test_walks_the_configurations_of_open_clip(name: str) -> None:
    """On the meta device: real classes and widths, no data; one layer, since depth is no matter."""
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    text |= {"layers": 1, "hf_model_pretrained": False}
    if isinstance(vision.get("layers"), int):
        vision["layers"] = 1
    own_tower = config.pop("custom_text", False) or "hf_model_name" in text
    cls = open_clip.CustomTextCLIP if own_tower else open_clip.CLIP
    if "multimodal_cfg" in config:
        cls, own_tower = open_clip.CoCa, True
    with torch.device("meta"):
        both = find_heads(cls(**config))
    assert found(both.image) == expected_image(vision)
    assert found(both.text) == expected_text(text, own_tower)
    for head in both:
        assert not head.foldable
        if head.weight is not None:
            assert head.width == config["embed_dim"]
            assert "meta device" in str(head.reason)


# What is refused


def test_imports_no_model_library() -> None:
    code = "import sys, clipproj.models.heads; "
    code += "print({'open_clip', 'transformers', 'timm'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def pretend(module: str, name: str, base: type[nn.Module] = nn.Module) -> type[nn.Module]:
    """A class that goes by the name of one that cannot be built here."""
    return type(name, (base,), {"__module__": module})


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("open_clip.clap_model", "CLAP"),
        ("open_clip.naflex_genlip_model", "NaFlexGenLip"),
        ("my.clip.model", "CLIP"),
        ("mine", "CLIPModel"),
        ("transformers.models.clip.modeling_clip", "CLIPVisionModel"),
        ("transformers.models.x_clip.modeling_x_clip", "XCLIPModel"),
    ],
)
def test_refuses_models_it_does_not_know(module: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"find_heads: model must be .*, got {module}.{name}$"):
        find_heads(pretend(module, name)())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_refuses_what_is_no_module_and_names_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"find_heads: model must be an nn.Module, got dict"):
        find_heads({})
    with pytest.raises(ValueError, match="jit=False"):
        find_heads(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    with pytest.raises(ValueError, match=r"PeftModel, an adapter of PEFT: merge it first"):
        find_heads(pretend("peft.peft_model", "PeftModel")())
    with pytest.raises(ValueError, match="fold before sharding"):
        find_heads(pretend("torch.distributed.fsdp", "FullyShardedDataParallel")())


def test_takes_a_subclass_unless_it_encodes_in_its_own_way() -> None:
    class Trained(transformers.CLIPModel):
        def loss(self) -> None: ...

    class Gated(transformers.CLIPModel):
        def get_image_features(self, **inputs: torch.Tensor) -> torch.Tensor:
            return super().get_image_features(**inputs).pooler_output.tanh()

    config = FAMILIES["CLIPModel"].build().config
    assert find_heads(Trained(config)).image.foldable
    with pytest.raises(ValueError, match=r"got .*test_heads\..*Gated$"):
        find_heads(Gated(config))


def test_refuses_towers_of_two_widths() -> None:
    model = FAMILIES["CLIPModel"].build()
    model.visual_projection = nn.Linear(32, WIDTH + 1, bias=False)
    with pytest.raises(ValueError, match="in one width, got 33 and 32"):
        find_heads(model)


def test_finds_modern_text_and_refuses_unknown_towers() -> None:
    model = FAMILIES["open_clip CustomText ViT"].build()
    model.text = pretend("open_clip.transformer", "ModernTextTransformer")()
    model.text.text_projection = nn.Linear(8, WIDTH, bias=False)
    assert found(find_heads(model).text) == "text.text_projection.weight"
    model.text = pretend("mine", "Text")()
    model.visual = pretend("mine", "Vision")()
    for head in find_heads(model):
        assert not head.foldable
        assert f"the {head.tower} tower is unknown to clipproj: mine." in str(head.reason)


def test_refuses_a_pruned_head_but_finds_the_other() -> None:
    model = FAMILIES["open_clip ViT"].build()
    model.visual.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    image, text = find_heads(model)
    assert image.weight is None
    assert "visual.proj is None" in str(image.reason)
    assert (image.width, text.foldable) == (WIDTH, True)


def test_a_refused_tower_says_what_works() -> None:
    refused = {
        "open_clip SigLIP": "MAP head.*clipproj.Projector to the result of encode_image",
        "SiglipModel": "MAP head.*clipproj.Projector to the result of get_image_features",
        "AlignModel": "pooled.*clipproj.Projector to the result of get_image_features",
        "CLIPTextModelWithProjection": "no image tower",
    }
    for name, text in refused.items():
        head = find_heads(FAMILIES[name].build()).image
        assert not head.foldable
        assert re.search(text, str(head.reason))


def lora(linear: nn.Linear) -> nn.Module:
    wrapped = pretend("peft.tuners.lora.layer", "Linear")()
    wrapped.base_layer = linear
    return wrapped


def quantised(linear: nn.Linear) -> nn.Module:
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return torch.ao.nn.quantized.dynamic.Linear.from_float(linear)


def bitsandbytes(linear: nn.Linear) -> nn.Module:
    four_bit = pretend("bitsandbytes.nn.modules", "Linear4bit", nn.Linear)
    return four_bit(linear.in_features, linear.out_features, bias=False)


def weight_as(make: Any) -> Any:
    def change(linear: nn.Linear) -> nn.Module:
        linear.weight = nn.Parameter(make(linear.weight.detach()), requires_grad=False)
        return linear

    return change


class Packed(torch.Tensor):
    """A tensor subclass, as quantisers put behind an nn.Linear."""


def gets_bias_of(size: int) -> Any:
    def change(linear: nn.Linear) -> nn.Module:
        linear.bias = nn.Parameter(torch.zeros(size))
        return linear

    return change


def lazy(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.parameter.UninitializedParameter()
    return linear


CHANGES = {
    "lora": (lora, "exactly an nn.Linear.*PEFT: merge it first"),
    "torch.ao": (quantised, "exactly an nn.Linear.*torch.ao.nn.*fold before quantising"),
    "bitsandbytes": (bitsandbytes, "exactly an nn.Linear.*Linear4bit.*fold before quantising"),
    "int8": (weight_as(lambda w: w.to(torch.int8)), "torch.int8, quantised"),
    "float8": (weight_as(lambda w: w.to(torch.float8_e4m3fn)), "float8_e4m3fn, quantised"),
    "subclass": (weight_as(lambda w: w.as_subclass(Packed)), "a Packed, a quantised or otherwise"),
    "meta": (weight_as(lambda w: w.to("meta")), "meta device"),
    "flat shard": (weight_as(lambda w: w.flatten()), r"shape \[1024\], it is sharded"),
    "empty shard": (weight_as(lambda w: w.new_empty(0)), r"shape \[0\], it is sharded"),
    "row shard": (weight_as(lambda w: w[:4]), r"shape \[4, 32\], it is sharded"),
    "bias shard": (gets_bias_of(4), r"bias has shape \[4\], it is sharded"),
    "lazy": (lazy, "not initialised"),
    "parametrised": (parametrizations.weight_norm, "_WeightNorm.*remove_parametrizations"),
    "old weight_norm": (nn.utils.weight_norm, "computed anew at each call"),
    "pruning": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "computed anew at each call"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", CHANGES)
def test_refuses_heads_it_cannot_edit_in_place(kind: str) -> None:
    change, reason = CHANGES[kind]
    model = FAMILIES["CLIPModel"].build()
    model.visual_projection = change(model.visual_projection)
    image, text = find_heads(model)
    assert not image.foldable
    assert re.search(f"^visual_projection.*{reason}.*; project the features", str(image.reason))
    assert text.foldable


def test_refuses_a_parametrised_bare_parameter() -> None:
    model = FAMILIES["open_clip ViT"].build()
    nn.utils.parametrize.register_parametrization(model.visual, "proj", nn.Tanh())
    assert "visual.proj is parametrised (Tanh)" in str(find_heads(model).image.reason)


@pytest.fixture
def one_process() -> Iterator[None]:
    if not dist.is_available():
        pytest.skip("torch is built without distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_refuses_fully_sharded_heads() -> None:
    from torch.distributed.fsdp import fully_shard

    model = FAMILIES["CLIPModel"].build()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh, ignored_params={model.logit_scale})
    for head in find_heads(model):
        assert not head.foldable
        assert "is a DTensor, a sharded tensor" in str(head.reason)


# Wrappers, tensors, hashes, features


def test_looks_through_wrappers_outside_and_inside() -> None:
    family = FAMILIES["open_clip ViT"]
    model = family.build()
    plain = find_heads(model)
    wrapped = torch.compile(nn.DataParallel(torch.compile(model)))
    assert heads.unwrap(wrapped) is model
    assert find_heads(wrapped) == plain
    model.visual = torch.compile(model.visual, backend="eager")
    inside = find_heads(wrapped)
    assert inside.image.weight == "visual._orig_mod.proj"
    assert heads.head_tensors(wrapped, inside.image) == (heads.unwrap(model.visual).proj, None)
    fold_matches(family, model, "image")


def test_head_tensors_are_the_parameters_themselves() -> None:
    model = FAMILIES["open_clip ModifiedResNet"].build()
    image = find_heads(model).image
    weight, bias = heads.head_tensors(model, image)
    assert weight is model.visual.attnpool.c_proj.weight
    assert bias is model.visual.attnpool.c_proj.bias
    siglip = FAMILIES["open_clip SigLIP"].build()
    with pytest.raises(ValueError, match=r"head_tensors: head must have a weight, got image"):
        heads.head_tensors(siglip, find_heads(siglip).image)


def test_hash_is_of_one_tower_and_by_default_of_the_text_tower() -> None:
    model = FAMILIES["FlavaModel"].build()
    text, image = heads.head_hash(model, "text"), heads.head_hash(model, "image")
    space = heads.head_hash(model)
    assert len({text, image, space}) == 3
    with torch.no_grad():
        model.image_projection.bias[0] += 1
    assert (heads.head_hash(model), heads.head_hash(model, "text")) == (space, text)
    assert heads.head_hash(model, "image") != image
    vision = FAMILIES["CLIPVisionModelWithProjection"].build()
    assert heads.head_hash(vision, "text") is None is not heads.head_hash(vision)
    assert heads.head_hash(FAMILIES["open_clip SigLIP i18n"].build()) is None
    with pytest.raises(ValueError, match="tower must be"):
        heads.head_hash(model, "audio")


HALF, BFLOAT = torch.float16, torch.bfloat16


@pytest.mark.parametrize("family", ["open_clip ViT", "FlavaModel", "CLIPVisionModelWithProjection"])
def test_the_space_outlives_casts_but_not_training(family: str) -> None:
    model = FAMILIES[family].build()
    head = next(head for head in (*find_heads(model),)[::-1] if head.foldable)
    weight = heads.head_tensors(model, head)[0]
    with torch.no_grad():
        weight.view(-1)[:4] = torch.tensor([-1e-30, 1e-30, -0.0, 0.0])  # float16 has no 1e-30
    space = heads.head_hash(model)
    for casts in (
        (HALF,),
        (BFLOAT,),
        (torch.float64,),
        (HALF, BFLOAT),
        (BFLOAT, HALF, torch.float),
    ):
        twin = copy.deepcopy(model)
        for dtype in casts:
            twin.to(dtype)
        assert heads.head_hash(twin) == space, casts
        assert heads.head_hash(twin, head.tower) != heads.head_hash(model, head.tower)
    with torch.no_grad():
        weight += 0.01 * weight.std() * torch.randn_like(weight)
    assert heads.head_hash(model) != space
    assert heads.head_hash(FAMILIES["CLIPModel"].build()) != space


def test_the_space_sees_noise_below_the_rounding_of_bfloat16() -> None:
    # the figures in head_hash's docstring
    weight = torch.randn(512, 512)
    turned = weight.signbit() != (weight + 1e-4 * torch.randn(512, 512)).signbit()
    assert 3 <= turned.sum() <= 16
    assert ((weight.bfloat16() - weight) / weight).square().mean().sqrt() > 1e-3


def test_features_reads_both_versions_of_transformers() -> None:
    family = FAMILIES["CLIPModel"]
    model = family.build()
    inputs = family.inputs("image")
    pooled = model.vision_model(**inputs).pooler_output
    want = model.visual_projection(pooled)
    now = model.get_image_features(**inputs)
    assert torch.equal(encoder.features(now), want)
    assert encoder.features(want) is want  # transformers 4
    single = FAMILIES["CLIPVisionModelWithProjection"].build()
    output = single(**inputs)
    assert encoder.features(output) is output.image_embeds
    whole = model(**inputs, **family.inputs("text"))
    for several in (whole, (want, pooled), None):
        with pytest.raises(TypeError, match="features: output must be a tensor or hold exactly"):
            encoder.features(several)


def test_prints_a_table() -> None:
    lines = str(find_heads(FAMILIES["SiglipModel"].build())).splitlines()
    assert lines[0].startswith("image  not foldable: features are the output of a residual MAP")
    assert lines[1] == f"text   text_model.head.weight  [{WIDTH}, in], bias"
    assert "[in, 32], no bias" in str(find_heads(FAMILIES["open_clip ViT"].build()).text)
