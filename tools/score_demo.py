"""Scores the packaged model on its held-out images, before and after erasing classes."""

import argparse
import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES, build_zero_shot_classifier
from PIL import Image
from torch import Tensor

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
    files = sorted((args.model / "images").glob("*/*.png"))
    names = sorted({f.parent.name for f in files})
    label = torch.tensor([names.index(f.parent.name) for f in files])
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.open(f)) for f in files])
        z = F.normalize(torch.cat([model.encode_image(b) for b in images.split(128)]), dim=1)
        t = build_zero_shot_classifier(model, tokenizer, names, OPENAI_IMAGENET_TEMPLATES).T

    right = (z @ t.T).argmax(1) == label
    print(f"top-1 {right.float().mean():.3f} on {len(files)} images, {len(names)} classes")
    for domain in domains:
        rows = torch.tensor([domain_of[f.stem.split("-", 1)[1]] == domain for f in files])
        print(f"  {domain:16} {right[rows].float().mean():.3f} of {int(rows.sum())}")
    by_class = {n: right[label == c].float().mean().item() for c, n in enumerate(names)}
    for name, score in sorted(by_class.items(), key=lambda kv: kv[1]):
        if args.classes or score < 0.6:
            print(f"  {name:16} {score:.2f} of {int((label == names.index(name)).sum())}")

    print("erase each class in turn: accuracy on it, accuracy lost on the others")
    scores: dict[str, list[tuple[float, float]]] = {}
    for c in range(len(names)):
        mine = label == c
        for edit, matrix in edits(t, c).items():
            edited = (z @ matrix @ t.T).argmax(1) == label
            lost = right[~mine].float().mean() - edited[~mine].float().mean()
            row = (edited[mine].float().mean().item(), lost.item())
            scores.setdefault(edit, []).append(row)
    for edit, rows in scores.items():
        cat, mean = rows[names.index("cat")], torch.tensor(rows).mean(0)
        print(f"  {edit:24} cat {cat[0]:.3f} {cat[1]:+.3f}, mean {mean[0]:.3f} {mean[1]:+.3f}")


def edits(t: Tensor, c: int) -> dict[str, Tensor]:
    """What can be multiplied to feature rows to erase text c of t [m, d]: name -> [d, d]."""
    f, keep = t[c], t[torch.arange(len(t)) != c]
    span = torch.linalg.qr(keep.T).Q
    eye = torch.eye(t.shape[1])

    def without(u: Tensor, strength: float = 1.0) -> Tensor:
        u = F.normalize(u, dim=0)
        return eye - strength * torch.outer(u, u)

    def ccup(lam: float, mu: float) -> Tensor:
        kept = (eye + mu * keep.T @ keep).double()
        return (kept @ torch.linalg.inv(kept + lam * torch.outer(f, f).double())).float()

    return {
        "t_f": without(f),
        "t_f - mean(keep)": without(f - keep.mean(0)),
        "t_f - mean(keep), s=1.5": without(f - keep.mean(0), 1.5),
        "t_f - its part in span": without(f - span @ (span.T @ f)),
        "CCUP lam=10 mu=1": ccup(10, 1),
        "CCUP lam=10 mu=100": ccup(10, 100),
    }


if __name__ == "__main__":
    main()
