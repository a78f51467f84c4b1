"""Other names of a forgotten class: finds that are planted, and finds that are chance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from clipproj import demo, nullspace
from clipproj.audit.paraphrase import Attack, ParaphraseResult, paraphrase
from clipproj.audit.samples import Samples
from clipproj.audit.stats import plain, share
from clipproj.audit.synonyms import LANGUAGES, known_words, misspellings
from clipproj.audit.text_attack import (
    ALL,
    HALVES,
    AttackedClass,
    AttackScores,
    _aurocs,
    _goal,
    _root,
)
from clipproj.models.text import Embeddings
from clipproj.projector import Projector
from clipproj.report.page import Page
from clipproj.report.sections import paraphrase as section

pytest.importorskip("inflect")

NAMES = ("cat", "dog", "car", "bus")
TEMPLATES = ("a photo of a {}.", "a {}")
DIM = 48
HIDDEN, BLANK = 4, 5  # axes: what cats also look like, and what all prompts share


class Tower:
    """Prompts as sums of word vectors: words it knows have an axis of their own, others noise."""

    def __init__(self, **known: Tensor) -> None:
        eye = torch.eye(DIM)
        self.known = {name: eye[i] for i, name in enumerate(NAMES)} | known

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([self.one(prompt) for prompt in prompts])

    def one(self, prompt: str) -> Tensor:
        row = torch.eye(DIM)[BLANK].clone()
        for word in re.findall(r"\w+", prompt):
            if word in self.known:
                row = row + self.known[word]
            elif len(word) > 1 and word not in ("photo", "of"):  # a word it never saw
                seed = torch.Generator().manual_seed(sum(map(ord, word)))
                row = row + F.normalize(torch.randn(DIM, generator=seed), dim=0)
        return 3 * row


def samples(tower: Tower, count: int = 20, noise: float = 0.05) -> Samples:
    rows = torch.stack([F.normalize(tower([t.replace("{}", n) for t in TEMPLATES])).mean(0)
                        for n in NAMES])  # fmt: skip
    classes = Embeddings(F.normalize(rows), NAMES, TEMPLATES, "made up")
    labels = torch.arange(len(NAMES)).repeat_interleave(count)
    features = classes.tensor[labels] + noise * torch.randn(len(labels), DIM)
    features[labels == 0, HIDDEN] += 0.8
    return Samples(5 * features, labels, classes)


def run(tower: Tower, one: Samples, edit: Any = None, **options: Any) -> ParaphraseResult:
    usual = {"vocabulary": ["tree"], "templates": ["the {}"]}
    edit = edit or nullspace(one.classes.select(["cat"]), one.classes.drop(["cat"]), "mean")
    return paraphrase(one, edit, ["cat"], tower, **usual | options)


def kind(result: ParaphraseResult, which: str) -> Attack:
    return next(attack for attack in result.attacks if attack.kind == which)


@pytest.fixture(scope="module")
def planted() -> tuple[Tower, Samples, ParaphraseResult]:
    """A synonym, a search word and a translation with a direction that the edit does not know."""
    torch.manual_seed(0)
    eye = torch.eye(DIM)
    tower = Tower(
        kitty=eye[HIDDEN], meow=eye[HIDDEN] - 0.2 * eye[1], tabby=eye[0],
        cats=eye[0], gato=eye[0],
        tree=eye[7],
    )  # fmt: skip
    one = samples(tower)
    words = {"Cat": ["kitty"], "CAT_": ["Dog_"]}  # a rival is no synonym
    return tower, one, run(tower, one, synonyms=words, vocabulary=["tree", "meow"])


def test_a_planted_synonym_finds_the_class_again(planted: tuple) -> None:
    _, _, result = planted
    (own,) = result.own
    assert (own.before.answered, own.after.answered) == (1, 0)
    synonym = kind(result, "synonym")
    assert synonym.strongest.text == "kitty"
    assert synonym.tried == len({"kitty", *known_words("cat").synonyms})
    assert synonym.strongest.after.answered == synonym.held_out.answered == 1
    assert synonym.held_out.answered.n == 20
    assert synonym.strongest.after.taken == 0
    assert synonym.strongest.after.auroc == 1
    plural = kind(result, "plural")
    assert (plural.strongest.text, plural.tried) == ("cats", 1)
    assert (plural.unedited.answered, plural.held_out.answered) == (1, 0)


def test_a_text_that_wins_everything_is_not_the_strongest() -> None:
    def three(*values: float) -> Tensor:
        return torch.tensor([values] * 3, dtype=torch.float64)

    scores = AttackScores(
        answered=three(1.0, 0.6, 0.6), taken=three(1.0, 0.1, 0.1), auroc=three(0.9, 0.7, 0.8)
    )
    assert scores.best(ALL, [0, 1, 2]) == (2, 0)  # of two that win alike, the better detector


def test_search_finds_a_planted_word_and_tells_what_it_found_before(planted: tuple) -> None:
    _, _, result = planted
    search = kind(result, "prompt search")
    assert "meow" in search.strongest.text
    assert search.held_out.answered == 1
    assert search.held_out.auroc == 1
    assert search.tried == 5 + 5  # each word plainly, then in one template
    assert not re.search(r"\bcat\b", search.strongest.text)  # its own name is no find


def test_only_translations_that_the_model_knows_are_attacks(planted: tuple) -> None:
    _, _, result = planted
    translation = kind(result, "translation")
    assert translation.tried == 1
    assert translation.strongest.text == "gato"
    assert translation.strongest.before.auroc >= result.level
    assert translation.strongest.after.answered == 0
    assert {one.text for one in result.unknown} == {*known_words("cat").translations} - {"gato"}
    assert all(one.before.auroc < result.level for one in result.unknown)


def test_a_maximum_over_many_chance_texts_is_not_held_up() -> None:
    tower = Tower()
    one = samples(tower, count=12)
    one = replace(one, features=torch.randn(48, DIM))  # images of nothing
    words = [f"word{i}" for i in range(300)]
    tower.known |= {word: torch.randn(DIM) for word in words}
    search = kind(run(tower, one, lambda rows: rows, vocabulary=words), "prompt search")
    assert search.detector.after.auroc > 0.7
    assert search.held_out.auroc < search.detector.after.auroc - 0.1
    assert search.held_out.auroc.low < 0.5
    assert search.held_out == search.unedited  # an edit that does nothing


def test_vectors_find_what_the_name_no_longer_finds() -> None:
    tower = Tower(fur=torch.eye(DIM)[HIDDEN])
    one = samples(tower, noise=0.02)
    result = run(tower, one, vocabulary=["fur"])  # the edit leaves all of what is hidden
    assert result.own[0].after.answered == 0
    for which in ("any vector", "mix of texts"):
        found = kind(result, which)
        assert found.held_out.answered > 0.9
        assert found.held_out.taken == 0
        assert found.held_out.auroc > 0.99
        assert found.tried == 0


def test_vectors_stay_in_the_span_of_the_texts() -> None:
    one = samples(Tower())
    target = AttackedClass(one, lambda rows: rows, "cat")
    seen: list[Tensor] = []
    target._measure = lambda model, tests: seen.extend(w for _, _, w in tests)
    span = torch.randn(3, DIM)
    target.fitted(target.models[1], span)
    basis = torch.linalg.qr(span.T.double())[0]
    outside = [v.double() - basis @ (basis.T @ v.double()) for v in seen]
    assert len(seen) == 2
    assert max(float(v.norm()) for v in outside) < 1e-5
    seen.clear()
    target.fitted(target.models[1], None)
    assert min(float((v.double() - basis @ (basis.T @ v.double())).norm()) for v in seen) > 0.1


def test_a_mix_of_texts_is_a_ridge_on_their_weights() -> None:
    texts, half = torch.randn(5, DIM).double(), torch.randn(DIM, 3 * DIM).double()
    covariance, gap = half @ half.T, torch.randn(DIM).double()
    root = _root(texts)
    torch.testing.assert_close(root @ root, texts.T @ texts / 5)
    ridge = 0.5 * (root @ covariance @ root).diagonal().mean()
    inner = texts @ covariance @ texts.T / 5 + ridge * torch.eye(5)
    weights = torch.linalg.solve(inner, texts @ gap)
    torch.testing.assert_close(_goal(root, covariance, gap), F.normalize(weights @ texts, dim=0))


def test_vectors_of_images_of_nothing_find_nothing() -> None:
    one = replace(samples(Tower()), features=torch.randn(80, DIM))
    vector = kind(run(Tower(), one), "any vector")
    assert abs(vector.held_out.auroc - 0.5) < 0.2
    assert vector.held_out.answered - vector.held_out.taken < 0.3


def test_an_edit_of_the_texts_edits_every_text_tried(planted: tuple) -> None:
    tower, one, _ = planted
    edit = nullspace(one.classes.select(["cat"]), one.classes.drop(["cat"]), "mean", side="text")
    result = run(tower, one, edit, synonyms={"cat": ["kitty", "tabby"]})
    target = AttackedClass(one, edit, "cat")
    torch.testing.assert_close(target.models[0].images, target.models[1].images)
    row = F.normalize(tower(["tabby"]))
    assert (edit(row) - row).norm() > 0.1
    torch.testing.assert_close(target.models[1].unit(row), F.normalize(edit(row)))
    kept = share(one.edited(edit).correct()[one.of(["cat"])])
    assert result.own[0].after.answered == kept
    assert kind(result, "synonym").strongest.text == "kitty"


def test_a_text_equal_to_a_rival_wins_nothing() -> None:
    one = samples(Tower())
    dog, aside = one.texts[1], torch.eye(DIM)[20]
    one = replace(one, features=2 * (dog + 0.1 * aside).repeat(80, 1))  # all look like dogs
    target = AttackedClass(one, lambda rows: rows, "cat")
    for more in (0.0, 5e-6):  # as rounded in another batch; a cosine larger by 5e-7
        row = F.normalize(dog + more * aside, dim=0)
        assert target.text("dog", row).before.answered == 0
        assert target.scores(target.models[0], row[None]).answered[ALL] == 0
    assert target.text("more", F.normalize(dog + 0.01 * aside, dim=0)).before.answered == 1


def test_aurocs_are_those_of_scikit_learn_ties_and_all() -> None:
    scores = torch.randint(0, 6, (50, 4)).float()
    mine = torch.rand(50) < 0.3
    want = [roc_auc_score(mine, scores[:, i]) for i in range(4)]
    assert _aurocs(scores, mine).tolist() == pytest.approx(want)


def test_halves_are_even_and_the_best_is_of_those_allowed() -> None:
    one = samples(Tower(), count=9)
    target = AttackedClass(one, lambda rows: rows, "cat")
    for label in range(4):
        assert sorted(int((target.half[one.labels == label] == h).sum()) for h in HALVES) == [4, 5]
    scores = target.scores(target.models[0], one.texts)
    assert scores.best(ALL, [0, 1, 2, 3]) == (0, 0)
    assert 0 not in scores.best(ALL, [1, 3])


def test_a_class_with_few_images_is_not_cross_fitted(planted: tuple) -> None:
    tower, one, _ = planted
    few = one.take(torch.cat([torch.arange(3), torch.arange(20, 80)]))
    result = run(tower, few)
    for which in ("synonym", "any vector", "mix of texts"):
        assert math.isnan(kind(result, which).held_out.answered)
    assert kind(result, "synonym").strongest.after.answered.n == 3
    lead = section.page(result).lead
    assert "that takes 4 of the class" in lead
    assert "half of the images finds" not in lead
    assert "n/a" not in lead


def test_a_class_that_no_attack_can_be_judged_on_is_told_and_not_refused(planted: tuple) -> None:
    tower, one, _ = planted
    for some, why in (
        (one.take(one.labels > 0), "“cat” was not attacked: there is no image of it."),
        (one.take(one.labels < 1), "there is no image of another class."),
    ):
        result = run(tower, some)
        assert result.attacks == ()
        assert section.page(result).lead.endswith(why)
        json.dumps(plain(result), allow_nan=False)


def test_page_tells_the_numbers_and_json_holds_them(planted: tuple) -> None:
    tower, one, result = planted
    page = section.page(result)
    assert isinstance(page, Page)
    assert (
        "“cat” finds 100.0\u00a0% of its 20 images before the edit and 0.0\u00a0% after"
        in page.lead
    )
    assert "“kitty” (synonym), finds 100.0\u00a0%" in page.lead
    assert "turned round" not in section.page(run(tower, one, lambda rows: rows)).lead
    assert [row[0] for row in page.tables[0].rows].count("cat: prompt search") == 1
    assert json.loads(json.dumps(plain(result), allow_nan=False))["own"][0]["text"] == "cat"
    turned = Projector(F.normalize(torch.eye(DIM)[[0]] - torch.eye(DIM)[[1]] / 9), strength=2.0)
    assert "turned round, it still finds them" in section.page(run(tower, one, turned)).lead


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"synonyms": {"cow": ["moo"]}}, "synonyms must belong to one of the names"),
        ({"synonyms": {"cat": [" "]}}, "must not be blank"),
        ({"vocabulary": []}, "vocabulary must hold at least one"),
        ({"templates": ["no place"]}, r"must hold \{\} exactly once"),
        ({"level": 1.5}, r"level must be in \[0, 1\]"),
    ],
)
def test_paraphrase_refuses(change: dict, text: str, planted: tuple) -> None:
    tower, one, _ = planted
    with pytest.raises(ValueError, match=text):
        run(tower, one, **change)


def test_paraphrase_refuses_samples_and_towers_that_do_not_fit(planted: tuple) -> None:
    tower, one, _ = planted
    with pytest.raises(ValueError, match="close: 'cat'"):
        paraphrase(one, lambda rows: rows, ["cta"], tower)
    with pytest.raises(ValueError, match="forget must be some of the 4 classes, got 4"):
        paraphrase(one, lambda rows: rows, NAMES, tower)
    with pytest.raises(ValueError, match=r"embed must give rows \[4, 48\], got \[4, 3\]"):
        run(lambda prompts: torch.zeros(len(prompts), 3), one, vocabulary=NAMES[:3])
    with pytest.raises(ValueError, match=r"not zero, got another for 'a photo of a cat\.'"):
        run(lambda prompts: torch.zeros(len(prompts), DIM), one)


def test_the_table_of_words_is_whole() -> None:
    for name in demo.class_names():
        words = known_words(name)
        assert len(words.translations) == len(LANGUAGES), name
        assert words.broader, name
        assert len(words.synonyms) >= 2, name
        assert name not in (*words.synonyms, *words.broader)
    assert known_words("CAT") == known_words("cat")
    assert known_words("Ice_Cream") == known_words("ice cream")
    assert not known_words("no such thing").synonyms


def test_misspellings_are_distinct_and_none_is_the_name() -> None:
    found = misspellings("cat")
    assert {"at", "catt", "act", "c a t", "c47"} <= {*found}
    assert len({*found}) == len(found)
    assert "cat" not in found
    assert all(len(one) > 1 for one in misspellings("ox"))
    long = "".join(chr(97 + i % 23) for i in range(300))
    assert len(misspellings(long)) == 3 * 16 + 2
    assert {long[1:], " ".join(long)} <= {*misspellings(long)}
