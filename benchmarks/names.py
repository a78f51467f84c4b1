"""Several names at once: what they cost, and whether the gate sees it, as a Markdown table.

On the embedded model's images and, where their files are given, on features of real images by
OpenAI's ViT-B/32 with real texts: random names forgotten from a closed list and from a generic one,
by what the command line makes of them, in both forms, and by a mean contrast at strength 1.5
whatever the rank.

    python benchmarks/names.py --keep benchmarks/results \\
        [--texts vitb32_text.npz --images oxford_pets_test_vitb32.npz food101_fewshot_vitb32.npz]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from forgetting import markdown

import clipproj
from clipproj import Embeddings
from clipproj.audit import compare, judge
from clipproj.audit.samples import Samples
from clipproj.audit.stats import mean, plain
from clipproj.methods.registry import Task, method
from clipproj.recipe import Recipe, make
from clipproj.recipe.samples import load
from clipproj.report.page import Table

SIZES = (1, 2, 5, 10, 100)
SHORT = 4  # names in a short list
EDITS = ("one-sided", "folded", "mean, strength 1.5")
DRAWS = 5
LISTS = (  # of texts: the first is closed, all together stand for a lexicon
    ("imagenet_names", "imagenet_photo"), ("lvis_names", "lvis"), ("oid_names", "oid"),
    ("o365_names", "o365"),
)  # fmt: skip
COLUMNS = (
    "names, list, edit", "found %", "others lost %", "nearest lost %", "same answer %", "cosine",
    "mixtures: found %", "others lost %", "nearest lost %", "refused on images", "on mixtures",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Images, and lists to keep; `generic` None: only the closed list.

    Attributes:
        candidates: names that may be forgotten.
    """

    title: str
    samples: Samples
    generic: Embeddings | None
    candidates: Sequence[str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", type=Path, help="npz with names and texts of LISTS")
    parser.add_argument("--images", type=Path, nargs="*", default=(), help="npz of features")
    parser.add_argument("--keep", type=Path, help="folder for names.json and names.md")
    args = parser.parse_args()
    found, parts = {}, []
    for setting in settings(args.texts, args.images):
        table = Table(COLUMNS, tuple(rows(setting)), f"Means over {DRAWS} draws of random names.")
        found[setting.title] = [list(map(plain, row)) for row in table.rows]
        parts.append(f"## {setting.title}\n\n{markdown(table)}")
        print(parts[-1], "\n", flush=True)
    if args.keep is not None:
        (args.keep / "names.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (args.keep / "names.json").write_text(text + "\n", encoding="utf-8")


def settings(texts: Path | None, images: Sequence[Path]) -> Iterator[Setting]:
    source = load(Recipe(command="names"))
    samples = source.samples
    yield Setting(f"Embedded model, {len(samples.names)} classes", samples, None, samples.names)
    if texts is None:
        return
    data = np.load(texts)
    imagenet, every = (_named(data, *keys) for keys in (LISTS[:1], LISTS))
    for path in images:
        closed = features(path)
        title = f"{path.stem}: {len(closed)} images"
        yield Setting(f"{title}, {len(closed.names)} names", closed, every, closed.names)
    if images:  # the same images among all the names, which holds theirs too
        closed = features(images[0])
        place = (closed.classes.tensor @ imagenet.tensor.T).argmax(dim=1)
        far = [name for i, name in enumerate(imagenet.names) if i not in set(place.tolist())]
        wide = replace(closed, labels=place[closed.labels], classes=imagenet, texts=imagenet.tensor)
        yield Setting(f"{images[0].stem} among {len(imagenet)} names", wide, None, far)


def _named(data: Mapping[str, np.ndarray], *lists: tuple[str, str]) -> Embeddings:
    """The texts of lists of the file, of each name its first."""
    named: dict[str, np.ndarray] = {}
    for names, rows in lists:
        for name, row in zip(data[names].tolist(), data[rows], strict=True):
            named.setdefault(name, row)
    return embed(np.stack(list(named.values())), tuple(named))


def features(path: Path) -> Samples:
    """Images of the classes that the file has texts for."""
    data = np.load(path)
    row = {int(c): i for i, c in enumerate(data["text_class"])}
    own = np.isin(data["label"], list(row))
    names = tuple(str(data["classes"][c]).replace("_", " ") for c in data["text_class"])
    labels = torch.tensor([row[int(label)] for label in data["label"][own]])
    rows = torch.from_numpy(data["image"][own].astype(np.float32))
    return Samples(rows, labels, embed(data["text"], names))


def embed(rows: np.ndarray, names: tuple[str, ...]) -> Embeddings:
    unit = F.normalize(torch.from_numpy(rows.astype(np.float32)), dim=1)
    return Embeddings(unit, names, ("a photo of a {}.",), "OpenAI ViT-B/32")


def rows(setting: Setting) -> Iterator[tuple]:
    samples = setting.samples
    lists = ("closed",) if setting.generic is None else ("closed", "short", "generic")
    for size in SIZES:
        if 2 * size > len(samples.names):
            return
        for kind in lists:
            for edit in EDITS[: 2 if kind == "short" else None]:
                draws = [draw(setting, size, kind, edit, seed) for seed in range(DRAWS)]
                numbers = [mean(column, (-1, 1)) for column in zip(*draws, strict=True)]
                counts = [f"{round(float(n) * DRAWS)} of {DRAWS}" for n in numbers[-2:]]
                yield (f"{size}, {kind}, {edit}", *numbers[:-2], *counts)


def draw(setting: Setting, size: int, kind: str, edit: str, seed: int) -> list[float]:
    """The numbers of one edit, in the order of the columns; the last two 0 or 1."""
    samples = setting.samples
    names = random.Random(f"{seed} of {size}").sample(list(setting.candidates), size)
    forget = samples.classes.select(names)
    keep, general = samples.classes.drop(names), None
    if setting.generic is not None:
        far = (setting.generic.tensor @ forget.tensor.T).amax(dim=1) <= 0.97
        rest = setting.generic.select([setting.generic.names[i] for i in far.nonzero().flatten()])
        if kind == "generic":
            keep = rest  # of which neighbours leave out more
        elif kind == "short":
            keep = keep.select(random.Random(seed).sample(keep.names, SHORT))
        if kind != "generic":
            general = rest
    if edit == "mean, strength 1.5":
        p = clipproj.nullspace(forget, keep, "mean").scaled(1.5)
    else:
        task = Task(forget, keep, closed=kind != "generic")
        p = make("names", task, method("names", None), one_sided=edit == "one-sided")
    seen = compare(samples, samples.edited(p), names, probe=False)
    told = {"closed": kind != "generic"}
    judged = judge(p, forget, keep, **told, images=seen)
    on_texts = judge(p, forget, keep, **told, general=general)
    numbers = [seen.after.found]
    numbers += [getattr(seen.before, k) - getattr(seen.after, k) for k in ("keep", "nearest")]
    numbers += [seen.agreement, seen.cosine, judged.texts.after.found]
    texts = judged.texts
    numbers += [getattr(texts.before, k) - getattr(texts.after, k) for k in ("keep", "nearest")]
    return [*map(float, numbers), float(judged.refused), float(on_texts.refused)]


if __name__ == "__main__":
    main()
