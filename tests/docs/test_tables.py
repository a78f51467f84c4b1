"""Figures and lists of the pages that are kept elsewhere too: they are the same there."""

import json
import re
import statistics
from pathlib import Path

import documents
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from documents import ROOT

import clipproj
from clipproj import audit

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def test_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [row[0].strip("`[]") for row in documents.table(ROOT / "docs/install.md", "extra |")]
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_operators_are_those_that_are_registered() -> None:
    rows = documents.table(ROOT / "docs/operators.md", "operator |")
    listed = {name for row in rows for name in re.findall(r"`(\w+)(?:\(.*?\))?`", row[0])}
    schemas = (str(schema) for schema in torch._C._jit_get_all_schemas())
    assert listed == {
        re.match(r"clipproj::(\w+)", text)[1] for text in schemas if text.startswith("clipproj::")
    }


def test_figures_of_the_service_are_those_kept() -> None:
    kept = json.loads((ROOT / "benchmarks/results/service-amd-epyc.json").read_text())["phases"]
    keys = "rows per second", "p50 ms", "p99 ms"
    rows = documents.table(ROOT / "docs/serving.md", "tenants in each batch")
    for (name, *cells), phase in zip(rows, kept.values(), strict=True):
        for cell, key in zip(cells, keys, strict=True):
            shown, ratio = re.fullmatch(r"(\d+)(?: ms)?(?: \((.*)\))?", cell).groups()
            assert float(shown) == round(phase[key]), (name, key)
            assert f"{phase['over none'][key]:.2f}" == (ratio or "1.00"), (name, key)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        pytest.param(
            "food101_fewshot",
            r"(\d+) % of its images among (\d+) dishes of .* edit (\d+);",
            id="food",
        ),
        pytest.param(
            "oxford_pets_test",
            r"(\d+) and (?=\d+ among (\d+) breeds)(\d+)",
            id="pets",
            marks=pytest.mark.campaign,  # ten seconds
        ),
    ],
)
def test_what_a_probe_finds_of_real_features_is_as_said(file: str, said: str) -> None:
    path = ROOT.parent / f"shared/data/{file}_vitb32.npz"
    if not path.exists():
        pytest.skip(f"needs shared/data/{path.name}, features of real images")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    after, classes, before = map(int, re.search(said, readme).groups())
    samples = real_samples(path)
    found = {"before": [], "after": []}
    for name in samples.names:
        texts = samples.classes
        edit = clipproj.nullspace(texts.select([name]), texts.drop([name]), "hull")
        result = audit.compare(samples, samples.edited(edit), [name])
        assert float(result.after.forget) == 0
        found["before"].append(float(result.before.probe))
        found["after"].append(float(result.after.probe))
    assert len(samples.names) == classes
    assert {when: round(100 * statistics.mean(of)) for when, of in found.items()} == {
        "before": before, "after": after,
    }  # fmt: skip


def real_samples(path: Path) -> audit.Samples:
    """Images of the classes that the file has texts of."""
    with np.load(path) as data:
        kept = sorted({*data["text_class"].tolist()})
        rows = [data["text"][data["text_class"] == c].astype(np.float32).mean(0) for c in kept]
        names = tuple(str(data["classes"][c]) for c in kept)
        mine = np.isin(data["label"], kept)
        features = data["image"][mine].astype(np.float32)
        labels = torch.tensor([kept.index(label) for label in data["label"][mine]])
    texts = F.normalize(torch.from_numpy(np.stack(rows)))
    return audit.Samples(features, labels, clipproj.Embeddings(texts, names, ("{}",), "ViT-B/32"))
