"""What tests of the command share: its type, and a reader of the pages that it writes."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

Run = Callable[..., Any]  # a result with exit_code, stdout, stderr, exception


class Page(HTMLParser):
    """Ids, links to them, and everything that would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.every, self.links, self.loads, self.text = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.every.append(found["id"])
        if "id" in found and tag == "section":
            self.ids.append(found["id"])
        if (found.get("href") or "").startswith("#") and tag == "a":
            self.links.append(found["href"][1:])
        for name in ("src", "href", "xlink:href"):
            value = found.get(name) or ""
            if value and not value.startswith(("#", "data:")):
                self.loads.append(value)

    def handle_data(self, data: str) -> None:
        self.text += data
