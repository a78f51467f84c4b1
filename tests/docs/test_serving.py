"""docs/serving.md: its requests are read, and its settings, fields and metrics exist."""

import json
import re

import documents
import pytest
from documents import ROOT

pytest.importorskip("pydantic", reason="the service needs pydantic: pip install clipproj[serve]")

from clipproj.serve import schema
from clipproj.serve.settings import Settings

PAGE = ROOT / "docs/serving.md"
TEXT = PAGE.read_text(encoding="utf-8")
BODIES = {
    "embeddings": schema.EmbeddingsRequest,
    "classify": schema.ClassifyRequest,
    "tenants": schema.SPECS["nullspace"],
}


def requests() -> list[tuple[str, dict]]:
    """The endpoint and the JSON body of every request that has one; what "..." is for filled in."""
    code = "".join(documents.blocks(PAGE, "sh")).replace("[0.1, ...]", "[0.1]")
    code = code.replace("iVBOR...", "iVBORw==")
    return [
        (endpoint, json.loads(body))
        for endpoint, body in re.findall(r"/v1/(\w+)\S* -d '(\{.*?\})'\n", code, flags=re.DOTALL)
    ]


def test_requests_are_read() -> None:
    found = requests()
    assert {endpoint for endpoint, _ in found} == set(BODIES)
    for endpoint, body in found:
        BODIES[endpoint].model_validate(body, context=Settings())


def test_settings_of_the_errors_exist() -> None:
    rows = documents.table(PAGE, "status |")
    assert len(rows) > 8
    told = {name for row in rows for name in re.findall(r"\(`(\w+)`", row[1])}
    told |= {name for row in rows for name in re.findall(r"`(\w+)`\)", row[1])}
    assert told - set(Settings.model_fields) == {"edit_refused"}  # which is the error's code


def test_fields_of_a_tenant_exist() -> None:
    listed = re.search(r"Besides `forget`: (.*?), as `clipproj erase`", TEXT, flags=re.DOTALL)[1]
    fields = {name for spec in schema.SPECS.values() for name in spec.model_fields}
    assert set(re.findall(r"`(\w+)`", listed)) <= fields


def test_metrics_exist() -> None:
    code = "".join(file.read_text("utf-8") for file in (ROOT / "clipproj/serve").glob("*.py"))
    made = set(re.findall(r'"(clipproj_\w+)"', code))
    told = {name.removesuffix("_total") for name in re.findall(r"`ray_(clipproj_\w+)`", TEXT)}
    assert told
    assert told <= made
