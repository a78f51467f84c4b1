"""What each audit says: its result as a page of words, tables and charts, one module an audit."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from clipproj.audit.suite import AuditResult
from clipproj.report.page import Page, as_json, from_json


def section(key: str, result: Any) -> Page:
    """The page of an audit: what `page(result)` of the module of its key gives."""
    return import_module(f"{__name__}.{key}").page(result)


def kept(key: str, result: Any) -> dict[str, Any]:
    """The same as JSON, which `suite.audit` keeps beside the numbers."""
    return as_json(section(key, result))


def page_of(result: AuditResult) -> Page:
    """The page of what `suite.audit` gave with `words=kept`, or why it was not made."""
    if result.refused:
        return Page(result.key, result.key.capitalize(), f"Not made: {result.refused}.")
    return from_json(result.words)
