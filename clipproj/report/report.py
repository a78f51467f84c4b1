"""The report of an edit: one HTML file that needs no other, made to be kept next to the receipt."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipproj import files as artefacts
from clipproj.audit.evaluate import NO_ANSWER, Comparison, CurvePoint
from clipproj.audit.images import Images, open_image
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import Verdict
from clipproj.models.text import Embeddings
from clipproj.models.words import name_key
from clipproj.projector import Projector
from clipproj.refusal import Refusal
from clipproj.report import formatting

if TYPE_CHECKING:
    from jinja2 import Template

THUMBNAIL = 96  # pixels, the longer side
GALLERY = 20  # pictures
BARS = 20  # classes, the rest folded away


def write_report(
    path: str | os.PathLike[str],
    *,
    projector: Projector,
    texts: Comparison,
    verdict: Verdict,
    receipt: Receipt,
    edit_seconds: float,
    files: Mapping[str, str],
    undo_command: str,
    alarms: Sequence[str] = (),
    notes: Sequence[str] = (),
    comparison: Comparison | None = None,
    curve: Sequence[CurvePoint] = (),
    pictures: Images | None = None,
    classes: Embeddings | None = None,
) -> None:
    """Write the report, atomically. The same inputs give the same bytes.

    Args:
        texts: the same edit on `stand_ins`.
        files: what was written: what it is, to its path.
        undo_command: the command line that takes the edit back.
        alarms, notes: what is wrong with the edit, and what else is worth a word; at the top.
        comparison, pictures, classes: what `compare` was given and gave; without a comparison the
            report is about texts alone.
        curve: of `strength_curve`; left out when empty, as for an edit of the text tower.

    Raises:
        ValueError: for a comparison without its pictures and classes, or a picture that cannot be
            read any more.
        OSError: when the file cannot be written.
        ImportError: without jinja2 or Pillow.
    """
    gallery = bars = None
    if comparison is not None:
        if pictures is None or classes is None:
            raise Refusal(
                "write_report", None, "a comparison must come with its pictures and classes"
            )
        gallery, bars = _gallery(comparison, pictures, classes), _bars(comparison)
    provenance = projector.provenance
    names = provenance.get("forget", {}).get("names") or [receipt.label]
    html = template("report.html.j2").render(
        title=f"Erasing {formatting.listed(names)} from {provenance.get('model', 'a model')}",
        names=formatting.listed(names),
        projector=projector,
        provenance=provenance,
        texts=texts,
        measured=texts if comparison is None else comparison,
        text_rows=_rows(texts, (*texts.forget, *texts.nearest)),
        alarms=alarms,
        notes=notes,
        verdict=verdict,
        receipt=receipt,
        edit_time=formatting.duration(edit_seconds),
        files=files,
        undo_command=undo_command,
        comparison=comparison,
        gallery=gallery,
        chart=_Chart.of(curve, receipt.strength) if curve else None,
        bars=bars,
    )
    with artefacts.atomic(path) as part:
        part.write_text(html, "utf-8", "backslashreplace")  # a path may be no UTF-8


def template(name: str) -> Template:
    """One of the templates beside this file. ImportError without jinja2."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("the report is made by jinja2: install clipproj[cli]") from error
    environment = Environment(
        loader=PackageLoader("clipproj.report"),
        autoescape=True,  # class and file names come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": formatting.percent, "cosine": formatting.cosine, "cell": formatting.cell,
        "interval": formatting.interval,
    }  # fmt: skip
    environment.globals |= {
        "count": formatting.count, "listed": formatting.listed, "result": formatting.result,
        "caveat": formatting.caveat,
    }  # fmt: skip
    return environment.get_template(name)


def _gallery(comparison: Comparison, pictures: Images, classes: Embeddings) -> list[dict[str, Any]]:
    """Two groups of pictures whose answer changed: of forgotten classes, and of others."""
    gone = {name_key(name) for name in comparison.forget}
    forgotten, others = [], []
    for i in comparison.changed.tolist():
        name = pictures.classes[pictures.labels[i]]
        (forgotten if name_key(name) in gone else others).append((i, name))
    room = GALLERY - min(len(forgotten), len(others), GALLERY // 2)  # the rest is the other group's
    groups = []
    for title, found, total in (
        ("Forgotten", forgotten, comparison.images_forget),
        ("Others", others, comparison.images_keep),
    ):
        cards = [
            {
                "name": name,
                "source": _data_uri(pictures.paths[i]),
                "before": _answer(int(comparison.before.predictions[i]), classes),
                "after": _answer(int(comparison.after.predictions[i]), classes),
            }
            for i, name in _spread(found, room)
        ]
        groups.append({"title": title, "cards": cards, "changed": len(found), "total": total})
    return groups


def _spread(items: list, room: int) -> list:
    """At most `room` of the items, evenly from all of them."""
    if len(items) <= room:
        return items
    return [items[i * len(items) // room] for i in range(room)]


def _answer(prediction: int, classes: Embeddings) -> str | None:
    return None if prediction == NO_ANSWER else classes.names[prediction]


def _data_uri(path: os.PathLike[str]) -> str:
    image = open_image(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    image.save(data, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def _bars(comparison: Comparison) -> dict[str, Any]:
    """Classes with pictures: the forgotten ones, then the others by what they lost."""
    rows = _rows(comparison, tuple(comparison.before.per_class))
    rows.sort(key=lambda r: (not r["forgotten"], r["after"] - r["before"], r["name"]))
    return {"shown": rows[:BARS], "folded": rows[BARS:]}


def _rows(comparison: Comparison, names: Sequence[str]) -> list[dict[str, Any]]:
    before, after = comparison.before.per_class, comparison.after.per_class
    gone = set(comparison.forget)
    return [
        {"name": n, "before": before[n], "after": after[n], "forgotten": n in gone} for n in names
    ]


@dataclass(frozen=True)
class _Chart:
    """The strength curve in the units of its SVG."""

    left, right, top, bottom = 44, 548, 20, 250
    points: tuple[CurvePoint, ...]
    lines: tuple[dict[str, Any], ...]
    chosen: float
    strength: float

    @classmethod
    def of(cls, curve: Sequence[CurvePoint], strength: float) -> _Chart:
        lines = []
        for key, label in (
            ("keep", "all others"), ("neighbours", "nearest others"),
            ("probe", "linear probe"), ("forget", "forgotten"),
        ):  # fmt: skip
            values = [(p.strength, getattr(p, key)) for p in curve]
            spots = [(cls.x(s), cls.y(v)) for s, v in values if not math.isnan(v)]
            if spots:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
                lines.append({"key": key, "label": label, "path": path, "y": spots[-1][1]})
        free = 0.0  # from where on down a label overlaps none
        for line in sorted(lines, key=lambda line: line["y"]):
            line["label_y"] = max(line["y"], free)
            free = line["label_y"] + 17
        return cls(tuple(curve), tuple(lines), cls.x(strength), strength)

    @classmethod
    def x(cls, strength: float) -> float:
        return cls.left + (cls.right - cls.left) * strength / 2

    @classmethod
    def y(cls, share: float) -> float:
        return cls.bottom - (cls.bottom - cls.top) * share
