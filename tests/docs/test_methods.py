"""docs/methods.md: its Python runs, its figures are those that were kept."""

from __future__ import annotations

import json
import re
from functools import partial

import documents
import pytest
import torch
import torch.nn.functional as F
from documents import ROOT

import clipproj
from clipproj import audit
from clipproj.audit.registry import audits

PAGE = ROOT / "docs/methods.md"
KEPT = json.loads((ROOT / "benchmarks/results/forgetting.json").read_text(encoding="utf-8"))
NAMES = {  # as the page calls them, where it does not as the table
    "nullspace, plain (the paper's)": "nullspace, plain",
    "**nullspace, hull** (default)": "nullspace, hull",
    "hull on a core of prompts": "coreset, hull",
    "redirect, empty prompt": "redirect, empty",
    "rotate, 120 degrees": "rotate",
    "TIA, texts normalised": "tia",
    "TIA, texts as left": "tia, texts as left",
    "*no edit, in halves*": "no edit, in halves",
    "Lip": "lip",
    "LEACE, told every label": "leace",
}
table = partial(documents.table, PAGE)


def test_python_runs() -> None:
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(4, 16), dim=1)
    classes = clipproj.Embeddings(rows, ("a", "b", "c", "d"), ("{}",), "made up")
    samples = audit.Samples(rows.repeat(3, 1), torch.arange(4).repeat(3), classes)
    p = clipproj.nullspace(classes.select(["a"]), classes.drop(["a"]))
    scope = {"clipproj": clipproj, "p": p, "samples": samples}
    for block in documents.blocks(PAGE, "python"):
        exec(block, scope)
    assert scope["tuned"].met


def test_every_audit_is_explained() -> None:
    assert [row[0] for row in table("audit | question")] == list(audits())


@pytest.mark.parametrize("row", table("method | still found"), ids=lambda row: row[0])
def test_figures_of_methods_are_those_kept(row: list[str]) -> None:
    name, *cells = row
    keys = ("forget", "keep", "nearest", "retrieval", "probe", "ranpac", "cosine")
    kinds = [NAMES.get(name, name)]
    if name.endswith("on images · made up"):
        kind = name.partition(",")[0].lower()
        kinds = [kind, f"{kind}, synthetic"]
    for i, kind in enumerate(kinds):
        numbers = KEPT["methods"][kind][1]
        for key, cell in zip(keys, cells, strict=True):
            shown = cell.split(" · ")[i].removesuffix(" %")
            if shown == "texts":
                continue
            value = numbers[key]["value"]
            want = value if key == "cosine" else 100 * value
            places = 3 if key == "cosine" else 1
            assert float(shown) == pytest.approx(want, abs=0.51 * 10**-places), (kind, key)


def test_figures_of_domains_are_those_kept() -> None:
    for cells, kept in zip(table("forgotten in"), KEPT["domains"], strict=True):
        shown = [float(x) for x in re.findall(r"[\d.]+", " ".join(cells[1:]))]
        values = [one["value"] for one in kept[1:]]
        want = [100 * v for v in values[:6]] + [values[6]]
        assert shown == pytest.approx(want, abs=0.0501)


def test_figures_of_several_names_are_those_kept() -> None:
    kept = json.loads((ROOT / "benchmarks/results/names.json").read_text(encoding="utf-8"))
    titles = {"Embedded": "Embedded", "Oxford": "oxford", "Food-101": "food101", "Pets'": "among"}
    edits = {
        "closed list, one-sided": "closed, one-sided",
        "closed list, folded": "closed, folded",
        "four names of it, one-sided": "short, one-sided",
        "names in general, one-sided": "generic, one-sided",
        "names in general, folded": "generic, folded",
        "mean, 1.5 for all": "closed, mean, strength 1.5",
    }
    rows = table("images, names forgotten")
    assert len(rows) > 15
    for place, edit, *cells in rows:
        title, number = re.fullmatch(r"([^\s,]+).*: (\d+)", place).groups()
        (numbers,) = (
            row[1:]
            for setting, rows in kept.items()
            for row in rows
            if titles[title] in setting and ("among" in setting) == (title == "Pets'")
            if row[0] == f"{number}, {edits[edit]}"
        )
        want = [one["value"] for one in numbers[:4]]
        for cell, value in zip(cells, want, strict=False):
            shown = None if cell == "n/a" else float(cell)
            assert shown == (None if value is None else pytest.approx(100 * value, abs=0.0501))
        assert cells[4:] == numbers[8:]
