"""Lip's evaluation protocol (Kravets and Namboodiri, arXiv 2407.07485): what the field compares by.

Three classes of each of four fine-grained data sets are forgotten, one at a time, from OpenAI's
CLIP. Asked is the accuracy on the class, on the other classes of its data set, and on the three
other data sets. The paper's accuracies *after* forgetting are not known here, only those before, so
a run of this protocol can be checked at its start and compared with no published result.

Evidence, as marked below: [CODE] the authors' repository or the splits of CoOp that it reads,
[DATA] their result files `results_zs_all_RN50.pkl` and `results_zs_all_ViT16.pkl`, [DATA, inferred]
a count that the fractions in those files imply.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from clipproj.audit.images import Images
from clipproj.models.words import name_key
from clipproj.refusal import Refusal

BACKBONES = {"RN50": "OpenAI CLIP RN50, d = 1024", "ViT-B/16": "OpenAI CLIP ViT-B/16, d = 512"}
OTHERS = 3  # data sets beside the class's own


@dataclass(frozen=True)
class Reference:
    """Zero-shot accuracies before forgetting, as shares; published with two decimals of a percent.

    Args:
        full: on all test images.
        forget: on those of each forgotten class, in their order.
        keep: on those of all other classes, a mean over the three choices of the class.
    """

    full: float
    forget: tuple[float, float, float]
    keep: float

    @property
    def mean(self) -> float:
        """The mean over the three forgotten classes."""
        return sum(self.forget) / len(self.forget)


@dataclass(frozen=True)
class Dataset:
    """One of the four data sets.

    Args:
        title: its name in print.
        classes: how many classes compete.
        forget: the classes to forget, one at a time, spelled as in the protocol's splits.
        images: test images of each of them.
        templates: the prompts.
        reference: accuracies before forgetting, by backbone.
        folders: names that its folder goes by; case, spaces, hyphens and underscores do not count.
        inside: where class folders lie in the distribution of the data set, "" if nowhere.
        spellings: the data set's own spelling of a forgotten class where the splits changed it.
        left_out: class folders of the distribution that the splits leave out.
        year_last: whether the data set's own names end in a year that the splits put first.
    """

    title: str
    classes: int
    forget: tuple[str, str, str]
    images: tuple[int, int, int]
    templates: tuple[str, ...]
    reference: Mapping[str, Reference]
    folders: tuple[str, ...]
    inside: str = ""
    spellings: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    year_last: bool = False

    def prepared(self, images: Images) -> Images:
        """The images of a folder under the names that the protocol's prompts are made with.

        Without ImageNet's number in front, a year first, and without the classes left out. Of what
        is test and what training nothing is known here: the folder should hold the test images.
        """
        out = {_key(name) for name in self.left_out}
        stays = [i for i, name in enumerate(images.classes) if _key(name) not in out]
        rows = torch.isin(images.labels, torch.tensor(stays, device="cpu")).nonzero().flatten()
        names = [self._prompted(images.classes[i]) for i in stays]
        order = sorted(range(len(stays)), key=names.__getitem__)  # names stay sorted
        new = torch.full((len(images.classes),), -1, dtype=torch.int64, device="cpu")
        for label, i in enumerate(order):
            new[stays[i]] = label
        return replace(
            images,
            paths=tuple(images.paths[i] for i in rows.tolist()),
            labels=new[images.labels[rows]],
            classes=tuple(names[i] for i in order),
        )

    def _prompted(self, name: str) -> str:
        name = _without_number(name)
        words = name.split()
        if self.year_last and len(words) > 1 and words[-1].isdigit() and len(words[-1]) == 4:
            return " ".join([words[-1], *words[:-1]])
        return name

    def find(self, classes: Iterable[str]) -> tuple[str, ...]:
        """The forgotten classes as `classes` spell them, in the protocol's order.

        Case, spaces, hyphens and underscores do not count, nor does ImageNet's number in front
        (`n02086079-Pekinese`); beside that a name is the protocol's or the data set's own.

        Raises:
            ValueError: for a forgotten class that is not there, with names that are close, or that
                is there twice.
        """
        classes = tuple(classes)
        by_key: dict[str, list[str]] = {}
        for name in classes:
            by_key.setdefault(_key(_without_number(name)), []).append(name)
        out = []
        for name in self.forget:
            keys = dict.fromkeys(_key(s) for s in (name, self.spellings.get(name, name)))
            found = [one for key in keys for one in by_key.get(key, ())]
            if len(found) > 1:
                raise Refusal(self.title, "classes", f"must have {name!r} once, got {found}")
            if not found:
                close = [one for key in keys for one in difflib.get_close_matches(key, by_key)]
                shown = ", ".join(repr(by_key[key][0]) for key in dict.fromkeys(close))
                raise Refusal(
                    self.title,
                    "classes",
                    f"must have {name!r}, got {len(classes)} others"
                    + (f"; close: {shown}" if shown else ""),
                )
            out.append(found[0])
        return tuple(out)


def _percent(full: float, one: float, two: float, three: float, keep: float) -> Reference:
    shares = (round(value / 100, 4) for value in (one, two, three))
    return Reference(round(full / 100, 4), tuple(shares), round(keep / 100, 4))


DATASETS: Mapping[str, Dataset] = {
    "stanford_dogs": Dataset(
        "Stanford Dogs",
        classes=120,  # [DATA]
        forget=("Pekinese", "toy poodle", "Scotch terrier"),  # [CODE]
        images=(61, 61, 64),  # [CODE] counted in the split file
        templates=("a photo of a {}.",),  # [CODE]
        reference={  # [DATA]
            "RN50": _percent(51.68, 70.49, 57.38, 50.00, 51.62),
            "ViT-B/16": _percent(59.13, 78.69, 60.66, 62.50, 59.07),
        },
        folders=("stanford_dogs",),  # [CODE]
        inside="Images",  # [CODE]
    ),
    "stanford_cars": Dataset(
        "Stanford Cars",
        classes=196,  # [DATA]
        forget=(
            "2009 Spyker C8 Coupe",
            "2010 Dodge Ram Pickup 3500 Crew Cab",
            "2011 Ford Ranger SuperCab",
        ),  # [CODE]
        images=(42, 42, 42),  # [DATA, inferred]
        templates=("a photo of a {}.",),  # [CODE]
        reference={  # [DATA]
            "RN50": _percent(55.76, 26.19, 40.48, 52.38, 55.85),
            "ViT-B/16": _percent(65.53, 42.86, 54.76, 80.95, 65.56),
        },
        folders=("stanford_cars",),  # [CODE]
        spellings={  # [CODE] CoOp moves the year of the data set's class_names to the front
            "2009 Spyker C8 Coupe": "Spyker C8 Coupe 2009",
            "2010 Dodge Ram Pickup 3500 Crew Cab": "Dodge Ram Pickup 3500 Crew Cab 2010",
            "2011 Ford Ranger SuperCab": "Ford Ranger SuperCab 2011",
        },
        year_last=True,
    ),
    "caltech101": Dataset(
        "Caltech101",
        classes=100,  # [DATA]; [CODE] CoOp leaves out BACKGROUND_Google and Faces_easy
        forget=("euphonium", "minaret", "platypus"),  # [CODE]
        images=(19, 23, 10),  # [DATA, inferred]
        templates=("a photo of a {}.",),  # [CODE]
        reference={  # [DATA]
            "RN50": _percent(85.72, 78.95, 82.61, 90.00, 85.74),
            "ViT-B/16": _percent(93.31, 100.0, 91.30, 100.0, 93.29),
        },
        folders=("caltech-101",),  # [CODE]
        inside="101_ObjectCategories",  # [CODE]
        left_out=("BACKGROUND_Google", "Faces_easy"),  # [CODE]
    ),
    "oxford_flowers": Dataset(
        "Oxford Flowers",
        classes=102,  # [DATA]
        forget=("gazania", "tree mallow", "trumpet creeper"),  # [CODE]
        images=(23, 17, 17),  # [DATA, inferred]
        templates=("a photo of a {}, a type of flower.",),  # [CODE]
        reference={  # [DATA]
            "RN50": _percent(66.06, 95.65, 100.0, 58.82, 65.90),
            "ViT-B/16": _percent(70.77, 100.0, 76.47, 58.82, 70.69),
        },
        folders=("oxford_flowers", "flowers102", "102flowers"),  # [CODE] folder, heading, archive
    ),
}


def find_datasets(root: str | os.PathLike[str]) -> dict[str, Path]:
    """The data sets that lie under a folder: name in `DATASETS` to the folder of class folders.

    A data set's folder goes by the names in `Dataset.folders`. Where it holds the class folders one
    level down, as the data set is distributed (`stanford_dogs/Images`), that level is given. What
    is in there is read by `clipproj.audit.load_images`; nothing is opened here.

    Raises:
        ValueError: for no such folder, or two folders of one data set.
    """
    root = Path(root)
    if not root.is_dir():
        raise Refusal("find_datasets", "root", f"must be a folder, got {root}")
    names = {_key(folder): name for name, one in DATASETS.items() for folder in one.folders}
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        name = names.get(_key(path.name))
        if name is None or not path.is_dir():
            continue
        if name in found:
            raise Refusal(
                "find_datasets",
                "root",
                f"must hold each data set once, got {found[name].name!r} and "
                f"{path.name!r} for {name}",
            )
        found[name] = path
    for name, path in found.items():
        level = path / DATASETS[name].inside
        found[name] = level if level.is_dir() else path
    return found


@dataclass(frozen=True)
class Accuracies:
    """What the score is of, as shares in [0, 1]; NaN where nothing was measured.

    Args:
        forget: on test images of the forgotten class, all classes of its data set competing.
        keep: on those of the other classes of its data set.
        others: on all test images of each other data set, by its name.
    """

    forget: float
    keep: float
    others: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, value in {"forget": self.forget, "keep": self.keep, **self.others}.items():
            if not (math.isnan(value) or 0 <= value <= 1):
                raise Refusal("Accuracies", name, f"must be a share in [0, 1], got {value}")


@dataclass(frozen=True)
class Score:
    """Lip's score of one forgotten class and its terms; lower is better, 0 is perfect.

    Args:
        value: the sum of the terms over 5, or NaN.
        forget: AF / BF of the class, what is left of it; above 1 where it gained.
        keep, others: the share that was lost, 0 for a gain.
        reason: why `value` is NaN, or "".
    """

    value: float
    forget: float
    keep: float
    others: Mapping[str, float]
    reason: str = ""


def score(before: Accuracies, after: Accuracies) -> Score:
    """`(AF/BF + sum of max(0, (B - A) / B)) / 5`, the sum over the class's own data set without the
    class and over three other data sets. [CODE compute_avg_gain]

    The value is NaN, with a reason, where an accuracy was not measured, where one was 0 before (of
    nothing no share can be left or lost; the authors' code counts another data set as unharmed
    then), and where there are not exactly three other data sets: with fewer, each term would
    weigh more than in the paper. The terms that exist are given all the same.

    Raises:
        ValueError: when before and after are not of the same other data sets.
    """
    if before.others.keys() != after.others.keys():
        raise Refusal(
            "score",
            "after",
            f"must be of the data sets {sorted(before.others)} as before is, got "
            f"{sorted(after.others)}",
        )
    pairs = {"the class": (before.forget, after.forget), "kept": (before.keep, after.keep)}
    pairs |= {name: (value, after.others[name]) for name, value in before.others.items()}
    reasons = []
    for name, (b, a) in pairs.items():
        if math.isnan(b) or math.isnan(a):
            reasons.append(f"{name}: not measured")
        elif b == 0:
            reasons.append(f"{name}: accuracy 0 before the edit")
    if len(before.others) != OTHERS:
        reasons.append(f"needs {OTHERS} other data sets, got {len(before.others)}")

    left = {name: a / b if b > 0 else math.nan for name, (b, a) in pairs.items()}
    forget = left.pop("the class")
    lost = {name: 1 - min(share, 1.0) if share >= 0 else math.nan for name, share in left.items()}
    keep = lost.pop("kept")
    value = math.nan if reasons else (forget + keep + sum(lost.values())) / (OTHERS + 2)
    return Score(value, forget, keep, lost, "; ".join(reasons))


def _key(name: str) -> str:
    """A name without what may differ: its spelling, spaces, hyphens, underscores."""
    return "".join(c for c in name_key(name) if c not in " -")


def _without_number(name: str) -> str:
    """`n02086079-Pekinese` as `Pekinese`; load_images leaves the hyphen as it is."""
    number, hyphen, rest = name.partition("-")
    wordnet = len(number) == 9 and number[0] == "n" and number[1:].isdigit()
    return rest if hyphen and wordnet else name
