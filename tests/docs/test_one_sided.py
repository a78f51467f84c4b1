"""benchmarks/results/one_sided.md is made of its JSON."""

from __future__ import annotations

import json
import sys

from documents import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from one_sided import page

KEPT = ROOT / "benchmarks/results"


def test_the_table_is_that_of_the_numbers_kept() -> None:
    found = json.loads((KEPT / "one_sided.json").read_text(encoding="utf-8"))
    assert (KEPT / "one_sided.md").read_text(encoding="utf-8") == page(found)
