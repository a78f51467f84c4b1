"""What each method forgets and what it costs: the figures of docs/methods.md, as Markdown tables.

On the embedded model and its held-out images: every method on every class that the model knows;
a class forgotten in some domains; other words and prompts against the plain and the best edit. On
real CLIP texts, where a file of them is given: how long a keep list each contrast bears.

    python benchmarks/forgetting.py --keep benchmarks/results [--texts vitb32_text.npz]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import clipproj
from clipproj import audit
from clipproj.audit.stats import mean, plain, share
from clipproj.compare import words
from clipproj.compare.run import ComparisonRecipe, run
from clipproj.methods import Cells, selective_rows
from clipproj.recipe import Recipe
from clipproj.recipe.samples import Unedited, load, prompt_embedder
from clipproj.report.formatting import cell, interval
from clipproj.report.page import Table

HERE = Path(__file__).parent
STYLES = json.loads((HERE.parent / "tools/styles.json").read_text())["domains"]
MONOCHROME = ("line drawing", "stencil")
DOMAIN_PROMPTS = (
    "a {domain} of a {}.", "a {domain} drawing of a {}.", "{domain} {}", "a {}, {domain}",
)  # fmt: skip
LENGTHS = (9, 16, 39, 99, 209, 999)
EDITS = {  # of the attack: the plain one and the best
    "nullspace, plain": ("none", 1.0),
    "nullspace, hull": ("hull", 1.0),
    "nullspace, mean 1.5": ("mean", 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--texts", type=Path, help="npz with imagenet_photo and imagenet_other")
    parser.add_argument("--keep", type=Path, help="folder for forgetting.json and forgetting.md")
    parser.add_argument("--classes", type=int, help="how many; default: all that the model knows")
    args = parser.parse_args()
    torch.manual_seed(0)
    wanted = ComparisonRecipe(
        count=args.classes, also=HERE / "methods", out=Path(".benchmarks/compare")
    )
    source = load(Recipe(command="forgetting"))
    found: dict[str, Any] = {"date": datetime.now(timezone.utc).date().isoformat()}
    parts = []

    def add(key: str, title: str, tables: Sequence[Table], numbers: Any) -> None:
        found[key] = numbers
        parts.append(f"## {title}\n\n" + "\n\n".join(markdown(table) for table in tables))
        print(parts[-1], "\n", flush=True)

    (compared,) = run(wanted)
    board = compared.leaderboard
    add(
        "methods",
        f"Methods, {len(board.forget)} classes of the embedded model",
        [words.main(board), words.more(board)],
        plain({s.name: [s.about, s.numbers] for s in board.rows}),
    )
    rows = by_domain(source)
    add("domains", "A class in some domains", [rows], [list(map(plain, r)) for r in rows.rows])
    classes = board.forget[:: max(1, len(board.forget) // 12)][:12]
    rows = attacked(source, classes)
    add("paraphrase", "Other words", [rows], [list(map(plain, r)) for r in rows.rows])
    if args.texts is not None:
        rows = keep_lists(args.texts)
        add("keep_lists", "Keep lists", [rows], [list(map(plain, r)) for r in rows.rows])
    if args.keep is not None:
        (args.keep / "forgetting.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (args.keep / "forgetting.json").write_text(text + "\n", encoding="utf-8")


def by_domain(source: Unedited) -> Table:
    """Each class forgotten in line drawings and stencils, or in colour; pooled over classes."""
    loaded, samples = source.loaded, source.samples
    names = samples.names
    style = {s: domain for domain, styles in STYLES.items() for s in styles}
    domain = [style[path.stem.split("-", 1)[1]] for path in samples.paths]
    prompts = [
        template.replace("{domain}", d).replace("{}", name)
        for name in names for d in STYLES for template in DOMAIN_PROMPTS
    ]  # fmt: skip
    rows = clipproj.embed_classes(loaded.model, loaded.tokenizer, dict.fromkeys(prompts), ["{}"])
    shape = (len(names), len(STYLES), len(DOMAIN_PROMPTS), -1)
    texts = F.normalize(rows.select(prompts).tensor.view(shape).mean(2), dim=-1).flatten(0, 1)
    cells = Cells(
        texts, tuple(n for n in names for _ in STYLES), tuple(STYLES) * len(names)
    )  # fmt: skip
    colour = tuple(d for d in STYLES if d not in MONOCHROME)
    out = []
    before = samples.correct()
    for forgotten, kept in ((MONOCHROME, colour), (colour, MONOCHROME)):
        inside = torch.tensor([d in forgotten for d in domain])
        for form, strength in (("reader", 1.0), ("subspace", 1.0), ("subspace", 2.0)):
            hits: dict[str, list[Tensor]] = {"there": [], "elsewhere": []}
            was: dict[str, list[Tensor]] = {"there": [], "elsewhere": []}
            others, cosines = [], []
            for name in names:
                p = selective_rows(
                    samples.classes, cells, name, forgotten, kept, form=form, strength=strength
                )
                edited = samples.edited(p)
                after, mine = edited.correct(), samples.of([name])
                for group, mask in (("there", mine & inside), ("elsewhere", mine & ~inside)):
                    hits[group].append(after[mask])
                    was[group].append(before[mask])
                # the same images for every class: a case is a class, not an image
                others.append([float(x[~mine].double().mean()) for x in (before, after)])
                cosine = F.cosine_similarity(samples.features, edited.features)[~mine]
                cosines.append(float(cosine.mean()))
            numbers = [
                share(torch.cat(side[group]))
                for group in ("there", "elsewhere") for side in (was, hits)
            ]  # fmt: skip
            numbers += [mean(column, (0, 1)) for column in zip(*others, strict=True)]
            label = f"{form}{'' if strength == 1 else f', strength {strength:g}'}"
            out.append((f"{' and '.join(forgotten)}: {label}", *numbers, mean(cosines, (-1, 1))))
    columns = (
        "forgotten in", "there before %", "after %", "elsewhere before %", "after %",
        "others before %", "after %", "cosine",
    )  # fmt: skip
    return Table(
        columns,
        tuple(out),
        "Every class in turn, from texts alone. There and elsewhere: images of the class, "
        "pooled; others: means over classes.",
    )


def attacked(source: Unedited, classes: Sequence[str]) -> Table:
    """What other words, searched prompts and fitted vectors find after each edit."""
    samples, embed = source.samples, prompt_embedder(source.loaded)
    kinds = ("own name", "synonym", "template", "prompt search", "mix of texts", "any vector")
    out = []
    for label, (contrast, strength) in EDITS.items():
        after: dict[str, list[float]] = {kind: [] for kind in kinds}
        control: dict[str, list[float]] = {kind: [] for kind in kinds}
        for name in classes:
            forget, keep = samples.classes.select([name]), samples.classes.drop([name])
            p = clipproj.nullspace(forget, None if contrast == "none" else keep, contrast, strength)
            found = audit.paraphrase(samples, p, [name], embed)
            after["own name"].append(found.own[0].after.answered)
            control["own name"].append(found.own[0].before.answered)
            for one in found.attacks:
                if one.kind in kinds:
                    vector = one.kind == "any vector"
                    pick = (lambda f: f.auroc) if vector else (lambda f: f.answered)
                    after[one.kind].append(float(pick(one.held_out)))
                    control[one.kind].append(float(pick(one.unedited)))
        for kind in kinds:
            pair = mean(control[kind], (0, 1)), mean(after[kind], (0, 1))
            out.append((f"{label}: {kind}", *pair))
    columns = ("attack", "unedited %", "after the edit %")
    caption = (
        f"Means over {len(classes)} classes. Chosen on one half of the images, measured on the "
        "other: share of the class's images that win against all other class texts; of any "
        "vector the AUROC against all other images."
    )
    return Table(columns, tuple(out), caption)


def keep_lists(path: Path, forgets: int = 40) -> Table:
    """Real CLIP texts: what each contrast leaves of a class as its keep list gets longer.

    The texts of one set of prompts are erased and compete; those of the other stand in for
    images, which they are not: the gap between texts and images is not in them.
    """
    data = np.load(path)
    texts, queries = (
        F.normalize(torch.from_numpy(data[key]).float(), dim=1)
        for key in ("imagenet_photo", "imagenet_other")
    )
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    out = []
    for n in LENGTHS:
        for contrast, strength in (
            ("none", 1.0), ("span", 1.0), ("mean", 1.0), ("mean", 1.5), ("hull", 1.0),
        ):  # fmt: skip
            gone, kept, near, cosines, left, refused = [], [], [], [], [], 0
            for f in order[:forgets]:
                nearest = (texts @ texts[f]).argsort(descending=True)[1:].tolist()
                rivals = [c for c in nearest if float(texts[c] @ texts[f]) < 1 - 1e-6]
                rivals = rivals[: max(3, n // 10)]
                rest = [c for c in order if c not in (f, *rivals)]
                rest = [c for c in rest if float(texts[c] @ texts[f]) < 1 - 1e-6]
                keep = (rivals + rest)[:n]  # a few less where names share a text
                try:
                    p = clipproj.nullspace(
                        texts[f : f + 1], None if contrast == "none" else texts[keep], contrast,
                        strength,
                    )  # fmt: skip
                except ValueError:  # inside span(keep): nothing is left to erase
                    refused += 1
                    left.append(0.0)
                    continue
                compete = texts[[f, *keep]]
                before = queries[[f, *keep]]
                after = p(before)
                was = (before @ compete.T).argmax(1) == torch.arange(len(compete))
                now = (after @ compete.T).argmax(1) == torch.arange(len(compete))
                if was[0]:
                    gone.append(bool(now[0]))
                kept.append(float(was[1:].double().mean() - now[1:].double().mean()))
                near.append(float(was[1:4].double().mean() - now[1:4].double().mean()))
                cosines.append(float(F.cosine_similarity(before[1:], after[1:]).mean()))
                left.append(float((texts[f] @ p.read.T).norm()))
            lost = mean(kept, (-1, 1)), mean(near, (-1, 1))
            numbers = share(gone), *lost, mean(cosines, (-1, 1)), mean(left, (0, 1)), refused
            out.append((f"{n} kept: {contrast}, {strength:g}", *numbers))
    columns = (
        "keep list", "still found %", "others lost %", "nearest three lost %", "cosine",
        "length taken", "refused",
    )  # fmt: skip
    caption = (
        f"OpenAI ViT-B/32, {forgets} of ImageNet's classes in turn, each against its nearest and "
        "random others. Images are stood in for by texts of other prompts. Length taken: of the "
        "class's unit text along what is erased."
    )
    return Table(columns, tuple(out), caption)


def markdown(table: Table) -> str:
    """A table with its intervals and caption."""

    def shown(value: Any, heading: str) -> str:
        span = interval(value, heading)
        return cell(value, heading) + (f" ({span})" if span else "")

    rows = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)]]
    rows += [[shown(v, h) for v, h in zip(row, table.columns, strict=True)] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + (f"\n\n{table.caption}" if table.caption else "")


if __name__ == "__main__":
    main()
