"""A page as headless Chromium lays it out at a given width: what overflows, what is broken."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

# The window of headless Chromium is at least 500 pixels wide, a frame in it may be narrower.
_FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }}</style>
<iframe id="page" width="{width}" height="3000" scrolling="no" style="border: 0" srcdoc="{page}">
</iframe>
<pre id="told"></pre>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement, range = page.createRange();
  const told = {{width: root.clientWidth, scroll: root.scrollWidth, broken: [], outside: [],
    small: []}};
  for (const part of page.querySelectorAll("details")) part.open = true;
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {{
    const text = texts.currentNode, parent = text.parentElement;
    if (parent.closest("code, title, desc")) continue;
    for (const word of text.data.matchAll(/[^\\s-]+/g)) {{
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      const boxes = [...range.getClientRects()].filter(box => box.width > 0);
      if (!boxes.length) continue;
      if (new Set(boxes.map(box => Math.round(box.top))).size > 1) told.broken.push(word[0]);
      const ends = range.getBoundingClientRect();
      if (!parent.closest(".wide") && (ends.left < 0 || ends.right > root.clientWidth))
        told.outside.push(word[0]);
      if (parseFloat(getComputedStyle(parent).fontSize) < 11) told.small.push(word[0]);
    }}
  }}
  told.scroll = root.scrollWidth;
  document.getElementById("told").textContent = JSON.stringify(told);
}};
</script>
"""


def measured(page: str, width: int, folder: Path) -> dict:
    """What Chromium makes of the page at `width` pixels, all that is folded opened.

    `width` and `scroll` are of the page as it is laid out; `broken` are words on two lines,
    `outside` words beyond the page's sides that are in no box that scrolls, `small` words in
    letters below 11 pixels. Skips where there is no Chromium.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here to lay the page out")
    file = folder / f"frame-{width}.html"
    file.write_text(_FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    made = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000",
         "--window-size=1400,3000", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True, env=os.environ,
    )  # fmt: skip
    told = re.search(r'<pre id="told">(.+?)</pre>', made.stdout, re.DOTALL)
    assert told, f"the page did not load: {made.stderr[-500:]}"
    return json.loads(html.unescape(told[1]))
