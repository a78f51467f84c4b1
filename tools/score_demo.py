"""Scores the packaged model on its held-out pictures, before and after erasing classes."""

import argparse
import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier
from PIL import Image

PACKAGE = Path(__file__).parents[1] / "clipproj" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", action="store_true", help="also print every class")
    parser.add_argument("--model", type=Path, default=PACKAGE)
    args = parser.parse_args()
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{args.model}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.model}")
    model.eval()
    domains = json.loads((Path(__file__).parent / "styles.json").read_text())["domains"]
    domain_of = {style: d for d, styles in domains.items() for style in styles}
    files = sorted((args.model / "pictures").glob("*/*.png"))
    names = sorted({f.parent.name for f in files})
    label = torch.tensor([names.index(f.parent.name) for f in files])
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(f)) for f in files])
        z = F.normalize(torch.cat([model.encode_image(b) for b in images.split(128)]), dim=1)
        t = build_zero_shot_classifier(model, tokenizer, names, OPENAI_IMAGENET_TEMPLATES).T

    right = (z @ t.T).argmax(1) == label
    print(f"top-1 {right.float().mean():.3f} on {len(files)} pictures, {len(names)} classes")
    for domain in domains:
        rows = torch.tensor([domain_of[f.stem.split("-", 1)[1]] == domain for f in files])
        print(f"  {domain:16} {right[rows].float().mean():.3f} of {int(rows.sum())}")
    by_class = {n: right[label == c].float().mean().item() for c, n in enumerate(names)}
    for name, score in sorted(by_class.items(), key=lambda kv: kv[1]):
        if args.classes or score < 0.6:
            print(f"  {name:16} {score:.2f} of {int((label == names.index(name)).sum())}")

    print("erase t_f - mean(keep): strength, forget accuracy, accuracy lost on the others")
    for strength in (1.0, 1.5, 2.0):
        rows = []
        for c in range(len(names)):
            keep = torch.arange(len(names)) != c
            u = F.normalize(t[c] - t[keep].mean(0), dim=0)
            edited = ((z - strength * (z @ u)[:, None] * u) @ t.T).argmax(1) == label
            rest = label != c
            lost = right[rest].float().mean() - edited[rest].float().mean()
            rows.append((edited[~rest].float().mean().item(), lost.item()))
        cat = rows[names.index("cat")]
        mean = torch.tensor(rows).mean(0)
        print(f"  {strength}: cat {cat[0]:.3f} {cat[1]:+.3f}, mean {mean[0]:.3f} {mean[1]:+.3f}")


if __name__ == "__main__":
    main()
