"""A report as one HTML file that needs no other: no script, no font, no image from elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clipproj import files
from clipproj._version import __version__
from clipproj.report.formatting import cell, interval
from clipproj.report.page import Report

if TYPE_CHECKING:
    from jinja2 import Template


def write(path: str | os.PathLike[str], report: Report) -> None:
    """Write the report, atomically. The same report gives the same bytes.

    Raises OSError when it cannot be written, ImportError without jinja2.

    Example:
        >>> write("audit.html", Report("Erasing “cat”", "clipproj audit", pages))
    """
    html = _template().render(report=report, version=__version__)
    with files.atomic(path) as part:
        part.write_text(html, "utf-8", "backslashreplace")  # a path may be no UTF-8


def _template() -> Template:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("reports are made by jinja2: install clipproj[cli]") from error
    environment = Environment(
        loader=PackageLoader("clipproj.report"),
        autoescape=True,  # class and file names come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "interval": interval}
    return environment.get_template("report.html.j2")
