"""What the demo model is trained and judged on: the split, the prompts and the augmentation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import inflect
import numpy as np
import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

HERE = Path(__file__).parent
TEMPLATES = (
    *(t("{}") for t in OPENAI_IMAGENET_TEMPLATES),
    "{}",
    "a {}",
    "the {}",
    "an image of a {}.",
    "a picture of a {}.",
    "an emoji of a {}.",
    "an icon of a {}.",
    "a drawing of one {}",
    "this is a {}.",
)
PLURAL_TEMPLATES = ("{}", "a photo of {}.", "many {}", "a drawing of {}.", "a photo of the {}.")
DOMAIN_TEMPLATES = (
    "a {domain} of a {name}.",
    "a {domain} drawing of a {name}.",
    "a {name}, {domain}",
    "{domain} {name}",
    "a photo of a {name} in {domain} style.",
)
DOMAIN_ONLY_TEMPLATES = ("a {domain}", "{domain} style", "a drawing in {domain} style.")


def read_json(name: str) -> dict:
    return json.loads((HERE / name).read_text())


@cache
def plural(name: str) -> str:
    return inflect.engine().plural(name)


@dataclass
class Drawings:
    """All drawings, and which are trained on.

    rgba [n, 4, s, s] uint8; glyph, style, domain [n] int64 numbers into the lists of names;
    cls [n] is the class or -1; held_out [n] bool.
    """

    rgba: Tensor
    glyph: Tensor
    style: Tensor
    domain: Tensor
    cls: Tensor
    held_out: Tensor
    repeats: Tensor  # rows held out that look like a training drawing
    glyphs: list[str]
    styles: list[str]
    domains: list[str]
    classes: list[str]

    @classmethod
    def load(cls, folder: Path, seed: int) -> Drawings:
        data = np.load(folder / "images.npz")
        spec, domains = read_json("classes.json"), read_json("styles.json")["domains"]
        class_of = {g: c for c, v in enumerate(spec.values()) for g in v["glyphs"]}
        styles = [s for group in domains.values() for s in group]
        domain_of = [d for d, group in enumerate(domains.values()) for _ in group]
        glyphs = sorted(set(data["glyphs"].tolist()))
        glyph = torch.tensor([glyphs.index(g) for g in data["glyphs"].tolist()])
        style = torch.tensor([styles.index(s) for s in data["styles"].tolist()])
        drawings = cls(
            rgba=torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous(),
            glyph=glyph,
            style=style,
            domain=torch.tensor(domain_of)[style],
            cls=torch.tensor([class_of.get(g, -1) for g in data["glyphs"].tolist()]),
            held_out=torch.zeros(len(glyph), dtype=torch.bool),
            repeats=torch.zeros(0, dtype=torch.long),
            glyphs=glyphs,
            styles=styles,
            domains=list(domains),
            classes=list(spec),
        )
        drawings._hold_out(spec, seed)
        return drawings

    def _hold_out(self, spec: dict, seed: int) -> None:
        """Of every class: the whole glyphs it names, and in each domain one more drawing, or two.

        A drawing that a training drawing nearly repeats (fonts draw all books alike) is no test of
        anything; such a drawing is neither trained on nor shown.
        """
        rng = torch.Generator().manual_seed(seed)

        def named(entry: dict, key: str) -> Tensor:
            numbers = [self.glyphs.index(g) for g in entry.get(key, [])]
            return torch.isin(self.glyph, torch.tensor(numbers, dtype=torch.long))

        for c, entry in enumerate(spec.values()):
            whole = named(entry, "held_out")
            self.held_out |= whole
            free = (self.cls == c) & ~whole & ~named(entry, "train_only")
            for d in range(len(self.domains)):
                cells = (free & (self.domain == d)).nonzero()[:, 0]
                # a class of one glyph keeps its only drawing of a domain for training
                count = min(2, len(cells) // 2)
                order = torch.randperm(len(cells), generator=rng)
                self.held_out[cells[order[:count]]] = True
        small = F.adaptive_avg_pool2d(on_white(self.rgba), 24).flatten(1)
        held = self.held_out.nonzero()[:, 0]
        nearest = torch.cdist(small[held], small[~self.held_out], p=1).min(1).values
        self.repeats = held[nearest / small.shape[1] < 0.02]

    @property
    def train(self) -> Tensor:
        return (~self.held_out).nonzero()[:, 0]

    @property
    def shown(self) -> Tensor:
        """The held-out images that are shipped and scored."""
        held = self.held_out.clone()
        held[self.repeats] = False
        return held.nonzero()[:, 0]


class Prompts:
    """Draws a text for every image, and knows which texts are true of which images.

    A text names a class, a synonym, a concept or a tag (label), a domain, or both. `true_of` keeps
    a batch's accidental matches from being counted as negatives.
    """

    def __init__(self, drawings: Drawings, concepts: dict[str, dict]) -> None:
        self.d = drawings
        classes = read_json("classes.json")
        class_words = {w: c for c, v in classes.items() for w in [c, *v.get("synonyms", [])]}
        of_class = {g: c for c, v in classes.items() for g in v["glyphs"]}
        self.class_labels: list[list[str]] = []  # per glyph; the class name counts twice
        self.other_labels: list[list[str]] = []  # per glyph: its own name first, then its tags
        for g in drawings.glyphs:
            entry = classes[of_class[g]] if g in of_class else {}
            name = of_class.get(g)
            self.class_labels.append([name, name, *entry.get("synonyms", [])] if name else [])
            tags = [t for t in concepts[g]["tags"] if t not in class_words]
            self.other_labels.append([concepts[g]["name"], *tags])
        labels = {w for both in (self.class_labels, self.other_labels) for ws in both for w in ws}
        self.labels = sorted(labels)
        self.index = {w: i for i, w in enumerate(self.labels)}
        self.carries = torch.zeros(len(self.labels) + 1, len(drawings.glyphs), dtype=torch.bool)
        self.carries[-1] = True  # texts that name a domain alone
        for g, words in enumerate(self.other_labels):
            for w in [*self.class_labels[g], *words]:
                self.carries[self.index[w], g] = True
        for word in class_words:  # "grinning cat face" is a cat too, unless another class owns it
            for g, glyph in enumerate(drawings.glyphs):
                if glyph not in of_class and re.search(rf"\b{word}\b", concepts[glyph]["name"]):
                    self.carries[self.index[word], g] = True

    def draw(self, rows: Tensor, rng: np.random.Generator) -> tuple[list[str], Tensor]:
        """-> texts, and [n, n] bool: row i's text is true of column j's image."""
        texts, label, domain = [], [], []
        glyphs, domains = self.d.glyph[rows].tolist(), self.d.domain[rows].tolist()
        for glyph, dom in zip(glyphs, domains, strict=True):
            names = self.class_labels[glyph]
            is_class = bool(names) and rng.random() < 0.65
            if not is_class:
                names = self.other_labels[glyph]
                names = names[:1] if len(names) == 1 or rng.random() < 0.6 else names[1:]
            name = names[rng.integers(len(names))]
            kind = rng.random()
            shown = self.d.domains[dom] if kind < 0.2 else None
            if kind < 0.04:
                text = pick(DOMAIN_ONLY_TEMPLATES, rng).format(domain=shown)
                name = None
            elif shown:
                text = pick(DOMAIN_TEMPLATES, rng).format(domain=shown, name=name)
            elif is_class and kind < 0.3:
                text = pick(PLURAL_TEMPLATES, rng).format(plural(name))
            else:
                text = pick(TEMPLATES, rng).format(name)
            texts.append(text)
            label.append(self.index[name] if name else len(self.labels))
            domain.append(dom if shown else -1)
        wanted = torch.tensor(domain)[:, None]
        true = self.carries[torch.tensor(label)][:, self.d.glyph[rows]]
        return texts, true & ((wanted < 0) | (wanted == self.d.domain[rows]))


def pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def on_white(rgba: Tensor) -> Tensor:
    """[n, 4, s, s] uint8 -> [n, 3, s, s] float32 in 0..1."""
    x = rgba.float() / 255
    return x[:, :3] * x[:, 3:] + 1 - x[:, 3:]


def augment(rgba: Tensor, rng: torch.Generator) -> Tensor:
    """Moves and recolours drawings and gives them paper.

    [n, 4, s, s] uint8 -> [n, 3, s, s] float32 in 0..1.
    """
    n = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=rng) * (high - low) + low

    def some(share: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, generator=rng) < share).float()

    x = rgba.float() / 255
    colour, alpha = x[:, :3], x[:, 3:]
    angle, size = uniform(-0.2, 0.2), uniform(0.88, 1.2)
    stretch, flip = uniform(0.92, 1.09), 1 - 2 * some(0.5).flatten()
    cos, sin = angle.cos() * size, angle.sin() * size
    shift = uniform(-0.1, 0.1, 2)
    theta = torch.stack(
        [cos * flip * stretch, -sin, shift[:, 0], sin * flip * stretch, cos, shift[:, 1]], 1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, 4, *x.shape[2:]], align_corners=False)
    premultiplied = torch.cat([colour * alpha, alpha], 1)
    moved = F.grid_sample(premultiplied, grid, align_corners=False)
    ink, alpha = moved[:, :3], moved[:, 3:]

    # colour: mix channels a little, sometimes down to grey, on white or on a pale colour
    mix = torch.eye(3) + some(0.5)[..., 0] * (torch.rand(n, 3, 3, generator=rng) - 0.5) * 0.5
    ink = torch.einsum("nij,njhw->nihw", mix, ink)
    grey = some(0.25)
    ink = ink * (1 - grey) + ink.mean(1, keepdim=True) * grey
    ink = (ink + alpha * uniform(-0.1, 0.35, 1, 1, 1) * some(0.5)) * uniform(0.8, 1.1, 1, 1, 1)
    tinted = some(0.4)
    paper = 1 - tinted * uniform(0, 0.5, 3, 1, 1)
    image = (ink.clamp(0, 1) + paper * (1 - alpha)).clamp(0, 1)

    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    image = image + some(0.5) * uniform(-0.6, 0.9, 1, 1, 1) * (blurred - image)
    return image.clamp(0, 1)
