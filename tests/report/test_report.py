"""report.html as a browser and a reader get it, and its table as a terminal does."""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console

from clipproj import audit, ops
from clipproj.audit import evaluate
from clipproj.audit.evaluate import Comparison
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import verify
from clipproj.methods import nullspace
from clipproj.models.heads import Head
from clipproj.models.text import Embeddings
from clipproj.report import charts, erasure, formatting
from clipproj.report import html as pages
from clipproj.report.page import Report, Table
from clipproj.report.terminal import printed

EVIL = "<script>alert('cat')</script> & [red]co[/red]"
NAMES = ("ant", "bee", EVIL, "dog", "emu", "fox", "gnu", "hen")
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An edit of a made-up model with 8 classes, and all that its report is made of."""
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(8, 32, generator=generator) + 2, dim=1)
    classes = Embeddings(rows, NAMES, ("a {}",), "made <up>")
    colours = ("red", "lime", "blue", "cyan", "navy", "gold", "pink", "grey")
    for i, colour in enumerate(colours):
        (folder / f"{i}").mkdir()
        for j in range(30):
            Image.new("RGB", (200, 150), colour).save(folder / f"{i}" / f"{j}.png")
    loaded = audit.load_images(folder)
    images = audit.Images(loaded.paths, loaded.labels, NAMES)
    noise = 0.1 * torch.randn(240, 32, generator=generator)
    samples = audit.Samples.of_images(rows[images.labels] + noise, images, classes)
    forget, keep = classes.select([EVIL]), classes.drop([EVIL])
    projector = nullspace(forget, keep, "mean").scaled(1.5)

    weight = torch.randn(16, 32, generator=generator)
    edited = weight.clone()
    ops.fold_(edited, projector.read, projector.read, None, projector.strength, dim=1)
    head = Head("image", "visual.proj", None, dim=1, width=32, foldable=True, reason=None)
    receipt = Receipt.make(head, projector, projector, (weight, None), (edited, None))
    return {
        "comparison": evaluate.compare(samples, samples.edited(projector), [EVIL]),
        "curve": evaluate.strength_curve(samples, [EVIL], projector),
        "images": images,
        "classes": classes,
        "projector": projector,
        "texts": audit.judge(projector, forget, keep, audit.Limits(1, 1), closed=True).texts,
        "verdict": verify(edited, receipt),
        "receipt": receipt,
        "edit_seconds": 41e-6,
        "files": {"checkpoint": "model.safetensors", "undo": "<undo>.safetensors"},
        "undo_command": "clipproj undo model.safetensors '<undo>.safetensors'",
    }


@pytest.fixture(scope="module")
def html(case: dict, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    erasure.write_report(path, **case)
    return path.read_text(encoding="utf-8")


def without_images(case: dict) -> dict:
    return case | {"comparison": None, "curve": (), "images": None}


def test_loads_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert "://" not in html
    assert "@import" not in html
    assert "url(" not in html
    for tag in ("script", "link", "iframe", "object", "embed", "base"):
        assert not page.all(tag)
    linked = [value for _, attributes in page.tags for key, value in attributes.items()
              if key in ("src", "href", "srcset", "data", "xlink:href")]  # fmt: skip
    assert linked
    assert all(value.startswith(("data:image/", "#")) for value in linked)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


def test_names_are_text_wherever_they_come_from(html: str) -> None:
    assert "<script" not in html
    assert "<up>" not in html
    page = Page(html)
    assert EVIL in page.text
    assert "from made <up>" in page.text
    assert "<undo>.safetensors" in page.text
    assert f"An image of {EVIL}" in [image["alt"] for image in page.all("img")]


def test_a_path_that_is_no_utf8_is_shown_in_escapes(case: dict, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    erasure.write_report(path, **case | {"undo_command": "clipproj undo n\udce4s"})
    assert r"clipproj undo n\udce4s" in path.read_text(encoding="utf-8")
    pages.write(path, Report("t", "e", (), facts={"images": "3 from n\udce4s"}))
    assert r"3 from n\udce4s" in path.read_text(encoding="utf-8")


def test_gallery_shows_a_class_under_another_spelling_as_forgotten(
    case: dict, tmp_path: Path
) -> None:
    shown = case["images"]
    shown = replace(shown, classes=tuple(name.upper() for name in shown.classes))
    path = tmp_path / "r.html"
    erasure.write_report(path, **case | {"images": shown})
    page = Page(path.read_text(encoding="utf-8"))
    assert f"An image of {EVIL.upper()}" in [image["alt"] for image in page.all("img")]
    forgotten = page.text.split("Forgotten")[-1].split("Others")[0]
    assert EVIL.upper() in forgotten


def test_has_every_section(case: dict, html: str) -> None:
    text = Page(html).text
    for heading in (
        "Erasing", "Images whose answer changed", "Strength", "Class by class",
        "Mixtures of class texts",
        "Receipt", "Files", "To take the edit back",
    ):  # fmt: skip
        assert heading in text
    receipt = case["receipt"]
    for fact in (
        receipt.head_before, receipt.head_after, receipt.projector_hash, receipt.created,
        receipt.torch, case["verdict"].text, case["undo_command"], "visual.proj",
    ):  # fmt: skip
        assert fact in text
    for name in NAMES:
        assert name in text


def test_the_four_numbers_are_together_with_their_limit(case: dict, html: str) -> None:
    comparison = case["comparison"]
    assert comparison.before.forget > 0.9
    assert comparison.after.forget == 0
    cards = html[html.index('<dl class="cards">') : html.index("</dl>")]
    for key in ("forget", "keep", "nearest", "probe"):
        for scores in (comparison.before, comparison.after):
            assert formatting.percent(getattr(scores, key)) in cards
    assert formatting.percent(comparison.agreement) in cards
    assert "edited" in cards  # what the receipt says
    after_cards = html[html.index("</dl>") :][:400]
    assert "The information is not: a linear probe still finds" in after_cards


def test_gallery_shows_some_of_each_group_and_says_how_many(case: dict, html: str) -> None:
    page = Page(html)
    assert len(page.all("img")) <= erasure.GALLERY
    changed = len(case["comparison"].changed)
    assert changed > erasure.GALLERY
    assert "Forgotten: 30 of 30" in page.text
    assert f"Others: {changed - 30} of 210" in page.text


def test_thumbnails_are_small(html: str, tmp_path: Path) -> None:
    assert len(html) < 100_000
    uri = Page(html).all("img")[0]["src"]
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (96, 72)


def test_curve_marks_the_chosen_strength(case: dict, html: str) -> None:
    page = Page(html)
    assert "1.5, chosen" in page.text
    lines = page.all("polyline")
    assert {line["class"] for line in lines} == {"forget", "keep", "nearest", "probe"}
    assert "not fitted" not in page.text
    assert all(len(line["points"].split()) == len(case["curve"]) for line in lines)
    forget = next(line["points"] for line in lines if line["class"] == "forget")
    assert float(forget.split()[-1].split(",")[1]) == charts.HEIGHT  # the bottom: accuracy 0


def test_curve_says_that_it_lacks_the_probe(case: dict, tmp_path: Path) -> None:
    curve = [replace(point, probe=math.nan) for point in case["curve"]]
    erasure.write_report(tmp_path / "report.html", **(case | {"curve": curve}))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {line["class"] for line in page.all("polyline")} == {"forget", "keep", "nearest"}
    assert "The linear probe was not fitted at every strength." in page.text


def test_is_readable_without_eyes(html: str) -> None:
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(th.get("scope") for th in page.all("th"))
    named = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(named) == len(page.all("desc")) == 1  # and its title; the others are parts of it
    outer = [svg for svg in page.all("svg") if "preserveaspectratio" not in svg]
    assert all(svg in named or "aria-hidden" in svg for svg in outer)


def test_same_inputs_same_bytes(case: dict, html: str, tmp_path: Path) -> None:
    erasure.write_report(tmp_path / "again.html", **case)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_without_images_it_is_about_texts_and_says_so(case: dict, tmp_path: Path) -> None:
    erasure.write_report(tmp_path / "report.html", **without_images(case))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Mixtures of two class texts stand in for images" in page.text
    assert "Top-1 accuracy on 7 mixtures of texts of" in page.text
    assert "accuracy on 42 mixtures of texts of other classes" in page.text
    assert "Class by class" not in page.text
    assert not page.all("img")


def test_without_a_curve(case: dict, tmp_path: Path) -> None:
    erasure.write_report(tmp_path / "report.html", **(case | {"curve": ()}))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.all("polyline")
    assert "Class by class" in page.text


def test_many_classes_are_folded_away(case: dict, tmp_path: Path) -> None:
    many = {EVIL: 0.5} | {f"class {i:03}": 1.0 for i in range(100)}
    comparison = case["comparison"]
    comparison = replace(
        comparison,
        before=replace(comparison.before, per_class=many),
        after=replace(comparison.after, per_class=many | {"class 050": 0.25}),
    )
    erasure.write_report(tmp_path / "report.html", **(case | {"comparison": comparison}))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "81 more, which lost nothing" in html
    rows = [html.index(f'<th scope="row">{name}') for name in ("class 050", "class 000")]
    assert rows == sorted(rows)
    assert "class 099" in html


def test_refuses_a_comparison_without_its_images(case: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="with its images"):
        erasure.write_report(tmp_path / "report.html", **(case | {"images": None}))
    assert not (tmp_path / "report.html").exists()


def test_an_image_that_vanished_is_named(case: dict, tmp_path: Path) -> None:
    images = case["images"]
    gone = replace(images, paths=tuple(path.with_name("gone.png") for path in images.paths))
    with pytest.raises(ValueError, match=r"gone\.png"):
        erasure.write_report(tmp_path / "report.html", **(case | {"images": gone}))


# ---- tables and sentences ----


def shown(table: Table) -> str:
    screen = io.StringIO()
    Console(width=200, file=screen).print(printed(table))
    return screen.getvalue()


def test_table_gives_the_four_numbers_and_their_limit(case: dict) -> None:
    text = shown(erasure.table(case["comparison"]))
    lines = [line.strip() for line in text.splitlines()]
    assert any(line.startswith(f"“{EVIL}” (30 images)") for line in lines)
    assert any(line.startswith("all other classes (210 images)") for line in lines)
    assert any(line.startswith("the 5 nearest of them") for line in lines)
    assert any(line.startswith("a linear probe finds") for line in lines)
    for name in case["comparison"].nearest:
        assert any(line.startswith(name) for line in lines)
    assert "a linear probe still finds" in re.sub(r"\s+", " ", text)


def test_the_table_of_texts_says_what_they_stand_for(case: dict) -> None:
    text = re.sub(r"\s+", " ", shown(erasure.table(case["texts"])))
    assert f"“{EVIL}” (7 mixtures of texts) 100.0 0.0" in text
    assert "all other classes (42 mixtures of texts) 100.0" in text
    assert re.search(r"a linear probe finds .* n/a n/a", text)
    assert "not what images lose" in text


def test_alarms_stand_in_red_above_everything(case: dict, html: str, tmp_path: Path) -> None:
    assert 'role="alert"' not in html
    erasure.write_report(tmp_path / "report.html", **case, alarms=("All <other> classes fall.",))
    loud = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert loud.index('class="alarm"') < loud.index('class="lead"')
    assert "All &lt;other&gt; classes fall." in loud


def scored(comparison: Comparison, forget: tuple, probe: tuple) -> Comparison:
    before = replace(comparison.before, found=forget[0], probe=probe[0])
    after = replace(comparison.after, found=forget[1], probe=probe[1])
    return replace(comparison, before=before, after=after)


@pytest.mark.parametrize(
    ("forget", "probe", "claims"),
    [
        ((0.9, 0.0), (0.9, 0.8), "text is erased. The information is not: a linear probe still"),
        ((0.9, 0.4), (0.9, 0.8), "text is weakened, not erased. The information is in place"),
        ((0.9, 0.9), (0.9, 0.8), "text is not weakened. The information is in place"),
        ((0.9, 0.0), (0.9, 0.1), "A linear probe finds 10.0\u00a0%"),
        ((0.9, 0.0), (math.nan, math.nan), "is unknown: a linear probe needs two images"),
        ((0.0, 0.0), (0.9, 0.9), "did not know the class by its text before the edit"),
        ((math.nan, math.nan), (math.nan, math.nan), "was not measured"),
    ],
)
def test_caveat_claims_no_more_than_was_measured(
    forget: tuple, probe: tuple, claims: str, case: dict
) -> None:
    assert claims in formatting.caveat(scored(case["comparison"], forget, probe))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.5, "2.5 s"), (0.0412, "41.2 ms"), (41e-6, "41 µs"), (3e-7, "0.3 µs")],
)
def test_duration(seconds: float, words: str) -> None:
    assert formatting.duration(seconds).replace("\u00a0", " ") == words


def test_words() -> None:
    assert formatting.percent(math.nan) == formatting.cosine(math.nan) == "n/a"
    assert formatting.listed(["a"]) == "“a”"
    assert formatting.listed(["a", "b"]) == "“a” and “b”"
    assert formatting.listed(list("abcde")) == "“a”, “b”, “c” and 2 more"
    assert formatting.count(1, "image") == "1 image"
    assert formatting.count(2, "class") == "2 classes"
    assert formatting.count(1234, "image").replace("\u00a0", " ") == "1 234 images"
