"""Trains the demo model on emoji drawings and writes it, with held-out images, into the package.

The loss is CLIP's, except that a batch's accidental matches (two dogs, "dog" and "animal") are left
out of the negatives.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from demo_data import Drawings, Prompts, augment
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

PACKAGE = Path(__file__).parents[1] / "clipproj" / "demo"
MODEL = {
    "embed_dim": 128,
    # ModifiedResNet, CLIP's own ResNet: with ten thousand drawings it learns far faster than a ViT
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PREPROCESS = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
MEAN = torch.tensor(OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(OPENAI_DATASET_STD).view(3, 1, 1)


def clip_loss(image: Tensor, text: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """image, text: [n, d] unit rows; true: [n, n] bool, text i is true of image j."""
    other = true & ~torch.eye(len(true), dtype=torch.bool)
    logits = (scale * text @ image.T).masked_fill(other, -torch.inf)
    target = torch.arange(len(true))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def batches(
    drawings: Drawings, size: int, rng: np.random.Generator, share: float = 0.7
) -> Iterator[Tensor]:
    """Of the images, `share` from the classes (each class alike), the rest from all concepts."""
    train = drawings.train.numpy()
    cls = drawings.cls.numpy()[train]
    per_class = [train[cls == c] for c in range(len(drawings.classes))]
    named_size = round(share * size)
    while True:
        chosen = rng.integers(len(per_class), size=named_size)
        named = [per_class[c][rng.integers(len(per_class[c]))] for c in chosen]
        yield torch.from_numpy(np.concatenate([named, rng.choice(train, size - named_size)]))


def save_model(model: open_clip.CLIP, tokens_seen: Tensor, to: Path) -> None:
    """float16; tokens never seen in training have no meaning and become zero, which packs well."""
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in model.state_dict().items()
        if k != "attn_mask"
    }
    state["token_embedding.weight"][~tokens_seen] = 0
    save_file(state, to / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (to / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_images(drawings: Drawings, to: Path) -> None:
    """On white, 96 x 96, named class/glyph-style.png."""
    for old in to.glob("images/*/*.png"):
        old.unlink()
    for i in drawings.shown.tolist():
        folder = to / "images" / drawings.classes[drawings.cls[i]]
        folder.mkdir(parents=True, exist_ok=True)
        drawing = Image.fromarray(drawings.rgba[i].permute(1, 2, 0).numpy())
        page = Image.new("RGBA", drawing.size, "white")
        page.alpha_composite(drawing)
        name = f"{drawings.glyphs[drawings.glyph[i]]}-{drawings.styles[drawings.style[i]]}.png"
        page.convert("RGB").save(folder / name, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--to", type=Path, default=PACKAGE)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, torch_rng = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)

    args.to.mkdir(parents=True, exist_ok=True)
    drawings = Drawings.load(args.data, args.seed)
    prompts = Prompts(drawings, json.loads((args.data / "concepts.json").read_text()))
    save_images(drawings, args.to)
    side = MODEL["vision_cfg"]["image_size"]
    small = torch.cat(
        [
            F.interpolate(part, size=(side, side), mode="bicubic", antialias=True)
            for part in drawings.rgba.split(1000)
        ]
    )
    print(f"train {len(drawings.train)}, held out {len(drawings.shown)} + {len(drawings.repeats)}")

    model = open_clip.CLIP(**MODEL)
    model.visual.to(memory_format=torch.channels_last)  # three times faster on a CPU
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    tokens_seen = torch.zeros(MODEL["text_cfg"]["vocab_size"], dtype=torch.bool)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    warmup = min(200, args.steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(
            (s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(1, s / args.steps)) + 1e-3
        ),
    )

    start, running = time.time(), 0.0
    for step, rows in enumerate(islice(batches(drawings, args.batch, rng), args.steps), 1):
        texts, true = prompts.draw(rows, rng)
        tokens = tokenizer(texts)
        tokens_seen[tokens.unique()] = True
        augmented = (augment(small[rows], torch_rng) - MEAN) / STD
        augmented = augmented.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            image, text = model.encode_image(augmented), model.encode_text(tokens)
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        loss = clip_loss(image, text, model.logit_scale.exp(), true)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        running += loss.item()
        if step % 50 == 0 or step == args.steps:
            took = time.time() - start
            print(f"{step} loss {running / 50:.3f} {took:.0f}s {step / took:.2f}/s", flush=True)
            running = 0.0
        if step % 200 == 0 or step == args.steps:
            save_model(model, tokens_seen, args.to)


if __name__ == "__main__":
    main()
