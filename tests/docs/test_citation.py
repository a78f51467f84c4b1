"""CITATION.cff: what its format asks for is there, and it agrees with the package."""

import re

import pytest
from documents import ROOT

import clipproj

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
CITED = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_it_has_what_its_format_asks_for() -> None:
    assert CITED["cff-version"] == "1.2.0"
    for one in (CITED, *CITED["references"]):
        assert isinstance(one["title"], str)
        assert all("family-names" in by or "name" in by for by in one["authors"])
    assert isinstance(CITED["message"], str)
    assert {one["type"] for one in CITED["references"]} == {"article"}


def test_it_is_of_this_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert CITED["version"] == clipproj.__version__
    assert f'license = "{CITED["license"]}"' in project


def test_its_papers_are_among_those_that_the_docs_name() -> None:
    methods = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    urls = [one["url"] for one in CITED["references"]]
    papers = [re.fullmatch(r"https://arxiv\.org/abs/(\d{4}\.\d{5})", url)[1] for url in urls]
    assert papers[0] == "2512.14137"
    assert [paper for paper in papers if paper not in methods] == []
