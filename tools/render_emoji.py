"""Draws every concept in every style, 96 x 96, into one file: images.npz (RGBA) with its index.

Icon sets are looked up by code point where the set says it, else by name; fonts by their character
map. rsvg-convert draws everything, because other renderers stumble over some of the icons.
"""

import argparse
import io
import json
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from fontTools.pens.boundsPen import BoundsPen
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont
from PIL import Image

SIZE = 96
MARGIN = 0.06  # white space on each side, as a share of the drawing
MIN_STYLES = 6  # concepts drawn by fewer styles are left out
# librsvg 2.54 gives up on the filters of these two.
UNDRAWABLE = {("2602", "fluent-emoji"), ("2614", "fluent-emoji")}
GROUPS = {
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
}


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"[’'.]", "", name.lower())).strip("-")


def code(char: str) -> str:
    """Code points in hexadecimal; the variation selector matters only inside a sequence."""
    points = [f"{ord(c):x}" for c in char]
    return points[0] if points[1:] == ["fe0f"] else "-".join(points)


def concepts(modules: Path) -> dict[str, dict]:
    """Glyph -> {name, tags}, for the groups that show things."""
    named = json.loads((modules / "unicode-emoji-json/data-by-emoji.json").read_text())
    tags = {
        code(e["emoji"].replace("\ufe0e", "")): e.get("tags", [])
        for e in json.loads((modules / "emojibase-data/en/data.json").read_text())
    }
    return {
        code(char): {"name": e["name"].replace("’", "'"), "tags": tags.get(code(char), [])}
        for char, e in named.items()
        if e["group"] in GROUPS
    }


def icon_bodies(package: Path, glyphs: dict[str, dict], fixed: dict) -> Iterator[tuple[str, str]]:
    """(glyph, svg) for one iconify set."""
    data = json.loads((package / "icons.json").read_text())
    icons = data["icons"]
    aliases = {k: v["parent"] for k, v in data.get("aliases", {}).items() if len(v) == 1}
    chars_file = package / "chars.json"
    chars = json.loads(chars_file.read_text()) if chars_file.exists() else {}
    by_glyph = {glyph: name for name, glyph in fixed.items() if glyph}
    for glyph, concept in glyphs.items():
        names = [slug(concept["name"])]
        if "-" not in glyph:
            names.append(slug(unicodedata.name(chr(int(glyph, 16)), "")))
        names += [f"{n}-1" for n in names] + [n.replace("-", "") for n in names]
        if glyph in by_glyph:
            names = [by_glyph[glyph]]
        elif glyph in chars:
            names = [chars[glyph]]
        names = [aliases.get(n, n) for n in names if n not in fixed or fixed[n] == glyph]
        name = next((n for n in names if n in icons), None)
        if name is None:
            continue
        icon = icons[name]
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        left, top = icon.get("left", 0), icon.get("top", 0)
        yield glyph, svg(icon["body"], left, top, width, height)


def font_bodies(files: list[Path], glyphs: dict[str, dict]) -> Iterator[tuple[str, str]]:
    """(glyph, svg) for a font, which may be cut into several files."""
    for file in files:
        font = TTFont(file)
        cmap, outlines = font.getBestCmap(), font.getGlyphSet()
        for glyph in glyphs:
            if "-" in glyph or int(glyph, 16) not in cmap:
                continue
            outline = outlines[cmap[int(glyph, 16)]]
            bounds, path = BoundsPen(outlines), SVGPathPen(outlines)
            outline.draw(bounds)
            outline.draw(path)
            if bounds.bounds is None:
                continue
            x0, y0, x1, y1 = bounds.bounds
            body = f'<path transform="scale(1 -1)" d="{path.getCommands()}"/>'
            yield glyph, svg(body, x0, -y1, x1 - x0, y1 - y0)


def svg(body: str, left: float, top: float, width: float, height: float) -> str:
    side = max(width, height) * (1 + 2 * MARGIN)
    left, top = left - (side - width) / 2, top - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}" width="{SIZE}" height="{SIZE}">{body}</svg>'
    )


def draw(source: str) -> np.ndarray:
    png = subprocess.run(
        ["rsvg-convert", "-w", str(SIZE), "-h", str(SIZE)],
        input=source.encode(),
        capture_output=True,
        check=True,
    ).stdout
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def symbola() -> Path:
    query = ["fc-match", "-f", "%{family}\n%{file}", "Symbola"]
    answer = subprocess.run(query, capture_output=True, check=True, text=True).stdout
    family, file = answer.split("\n")
    if not family.startswith("Symbola"):
        raise RuntimeError("render_emoji: the font Symbola must be installed (fonts-symbola)")
    return Path(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/emoji"))
    folder: Path = parser.parse_args().folder
    modules = folder / "node_modules"
    styles = json.loads((Path(__file__).parent / "styles.json").read_text())
    glyphs = concepts(modules)

    sources: list[tuple[str, str, str]] = []  # glyph, style, svg
    for style in (s for group in styles["domains"].values() for s in group):
        if style == "noto-mono":
            files = (modules / "@fontsource/noto-emoji/files").glob("*-400-normal.woff")
            found = font_bodies(sorted(files), glyphs)
        elif style == "symbola":
            found = font_bodies([symbola()], glyphs)
        else:
            package = modules / "@iconify-json" / style
            found = icon_bodies(package, glyphs, styles["names"].get(style, {}))
        drawn = dict(found)
        print(f"{style:28} {len(drawn)}")
        sources += [
            (glyph, style, source)
            for glyph, source in drawn.items()
            if (glyph, style) not in UNDRAWABLE
        ]

    count = {g: sum(g == s[0] for s in sources) for g in glyphs}
    sources = [s for s in sources if count[s[0]] >= MIN_STYLES]
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(draw, (s[2] for s in sources))))
    kept = {g: c for g, c in glyphs.items() if count[g] >= MIN_STYLES}
    (folder / "concepts.json").write_text(json.dumps(kept, indent=1))
    np.savez(
        folder / "images.npz",
        images=images,
        glyphs=np.array([s[0] for s in sources]),
        styles=np.array([s[1] for s in sources]),
    )
    print(f"{len(sources)} drawings of {len(kept)} concepts")


if __name__ == "__main__":
    main()
