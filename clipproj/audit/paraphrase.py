"""Whether another way of naming a forgotten class finds it again.

Each text takes the place of the class's own among the class texts and is judged by the images it
wins. A maximum over many texts is biased upward, so every search is also cross-fitted: chosen on
one half of the images and measured on the other, and run on the unedited model as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipproj.audit.groups import forgotten_classes
from clipproj.audit.registry import Audit, Embed
from clipproj.audit.samples import RowEdit, Samples
from clipproj.audit.synonyms import known_words, misspellings
from clipproj.audit.text_attack import ALL, HALVES, AttackedClass, AttackScore, Text
from clipproj.models.words import (
    expand_names,
    imagenet_names,
    name_key,
    openai_templates,
    strings,
    template_strings,
)
from clipproj.refusal import Refusal

Tried = list[list[list[int]]]  # [before, after][half 0, half 1, all]: rows of texts

OTHER_TEMPLATES = (
    "{}", "a {}", "the word {}", "i see a {}.", "this looks like a {}.", "an emoji of a {}.",
    "a {} in the wild.", "an image that someone took of a {}.", "{}, a kind of thing.",
)  # fmt: skip
_PLAIN = "a photo of a {}."  # how words of the vocabulary are first tried
_WORDS_ON = 8  # words of the vocabulary that are then tried in every template
_AT_ONCE = 512  # prompts embedded at once
VECTORS = ("mix of texts", "any vector")


@dataclass(frozen=True)
class Attack:
    """One kind of text, searched for the one that finds a forgotten class best.

    Args:
        name: the class.
        kind: of text: "synonym", "broader word", "plural", "template", "translation",
            "misspelling", "prompt search"; or of vector: "mix of texts", "any vector".
        tried: how many texts the maximum is over; 0 for a vector.
        strongest: the text with the highest `answered - taken` after the edit; None without any.
        detector: the text with the highest AUROC after the edit.
        held_out: after the edit: chosen on one half of the images, measured on the other, both
            ways. NaN with fewer than 4 images of the class.
        unedited: the same search on the unedited model.
    """

    name: str
    kind: str
    tried: int
    strongest: Text | None
    detector: Text | None
    held_out: AttackScore
    unedited: AttackScore


@dataclass(frozen=True)
class ParaphraseResult:
    """The attacks on each forgotten class.

    Args:
        forget: the forgotten names.
        own: for each the class's own text.
        attacks: each kind on each class.
        unknown: translations that the unedited model does not know (AUROC below `level`): no part
            of their attack.
        level: that AUROC.
    """

    forget: tuple[str, ...]
    own: tuple[Text, ...]
    attacks: tuple[Attack, ...]
    unknown: tuple[Text, ...]
    level: float


def paraphrase(
    samples: Samples,
    edit: RowEdit,
    forget: Sequence[str],
    embed: Embed,
    *,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    vocabulary: Iterable[str] | None = None,
    templates: Iterable[str] | None = None,
    level: float = 0.8,
) -> ParaphraseResult:
    """Attack an edit with other names of the forgotten classes, with prompts, and with vectors.

    A word is embedded as the classes are, over `samples.classes.templates`; templates are tried one
    by one. The search tries each word of the vocabulary in "a photo of a {}." and the best 8 in
    every template. Vectors are closed forms, the class text plus a ridge-regularised discriminant
    of the images: "mix of texts" a ridge on the weights of the vocabulary's texts, "any vector"
    with no such bound. An edit of the text tower also edits every text tried. A class
    without images, or with all there are, is not attacked.

    Args:
        samples: before the edit.
        forget: names among the classes, of which there are others as well.
        embed: prompts to rows [m, d] of the unedited text tower, of any length.
        synonyms: words for some of the forgotten names, besides the built-in ones.
        vocabulary: words to search besides the class names; None: ImageNet's (from open_clip).
        templates: strings with one {}; None: open_clip's 80 and a few of other form.
        level: AUROC on the unedited model from which a translation counts as known to it.

    Raises:
        TypeError, ValueError: for names that are no classes, synonyms of another name, blank words,
            templates without one {}, a level outside [0, 1], embedded rows of another shape, zero
            or not finite.
        ImportError: without inflect (plurals), or without open_clip for a None above.
    """
    op = "paraphrase"
    forget, _ = forgotten_classes(op, samples, forget)
    if not 0 <= level <= 1:
        raise Refusal(op, "level", f"must be in [0, 1], got {level}")
    expand_names(forget, synonyms=synonyms)  # refuses what it must
    extra = imagenet_names() if vocabulary is None else strings(op, "vocabulary", vocabulary)
    words = tuple(dict.fromkeys([*samples.names, *extra]))
    prompts = (*openai_templates(), *OTHER_TEMPLATES) if templates is None else tuple(templates)
    prompts = tuple(dict.fromkeys(template_strings(op, prompts, forget)))

    used = samples.classes.templates

    def named(phrases: Sequence[str]) -> Tensor:
        texts = [template.replace("{}", phrase) for phrase in phrases for template in used]
        return F.normalize(_rows(embed, texts, samples).unflatten(0, (-1, len(used))).mean(1))

    plain = _rows(embed, [_PLAIN.replace("{}", word) for word in words], samples)
    own, attacks, unknown = [], [], []
    for name in forget:
        target = AttackedClass(samples, edit, name)
        own.append(target.text(name, samples.classes.select([name]).tensor[0].cpu()))
        if not 0 < int(target.mine.sum()) < len(samples):
            continue  # no attack can be judged
        known, rivals = known_words(name), {name_key(n) for n in samples.names}
        given = {n: more for n, more in (synonyms or {}).items() if name_key(n) == name_key(name)}
        for kind, phrases in (
            ("synonym", (*known.synonyms, *expand_names([name], synonyms=given)[1:])),
            ("broader word", known.broader),
            ("plural", expand_names([name], plurals=True)),
            ("misspelling", misspellings(name)),
            ("translation", known.translations),
        ):
            phrases = [p for p in dict.fromkeys(phrases) if name_key(p) not in rivals]
            rows = named(phrases) if phrases else plain[:0]
            if kind == "translation":
                seen = target.scores(target.models[0], rows).auroc[ALL] >= level
                strange = (~seen).nonzero().flatten().tolist()
                unknown += [target.text(phrases[i], rows[i]) for i in strange]
                live = seen.nonzero().flatten().tolist()
                phrases, rows = [phrases[i] for i in live], rows[live]
            attacks.append(_attack(target, kind, phrases, rows))
        others = [t.replace("{}", name) for t in prompts if t not in used]
        rows = _rows(embed, others, samples) if others else plain[:0]
        attacks.append(_attack(target, "template", others, rows))
        attacks.append(_search(target, words, plain, prompts, embed, samples))
        for kind, span in zip(VECTORS, (plain, None), strict=True):
            unedited, held_out = (target.fitted(model, span) for model in target.models)
            attacks.append(Attack(name, kind, 0, None, None, held_out, unedited))
    return ParaphraseResult(forget, tuple(own), tuple(attacks), tuple(unknown), float(level))


def _attack(
    target: AttackedClass, kind: str, texts: Sequence[str], rows: Tensor, tried: Tried | None = None
) -> Attack:
    """The best of texts with rows [P, d]; `tried` says which rows each state and half may take."""
    every = [[list(range(len(texts)))] * 3] * 2 if tried is None else tried
    scores = [target.scores(model, rows) for model in target.models]
    found = [
        target.chosen(model, one, rows, [may[half] for half in HALVES])
        for model, one, may in zip(target.models, scores, every, strict=True)
    ]
    strongest = detector = None
    if texts:
        best = scores[1].best(ALL, every[1][ALL])
        strongest, detector = (target.text(texts[i], rows[i]) for i in best)
    tried_in_all = len(every[1][ALL])
    return Attack(target.name, kind, tried_in_all, strongest, detector, found[1], found[0])


def _search(
    target: AttackedClass,
    words: Sequence[str],
    plain: Tensor,
    prompts: Sequence[str],
    embed: Embed,
    samples: Samples,
) -> Attack:
    """Each word plainly, then the best in every template, as each half, and all, would choose."""
    rest = [i for i, word in enumerate(words) if name_key(word) != name_key(target.name)]
    texts = {_PLAIN.replace("{}", words[i]): None for i in rest}
    row = {text: i for i, text in enumerate(texts)}
    tried: Tried = []
    for model in target.models:
        scores = target.scores(model, plain[rest])
        tried.append([])
        for which in (*HALVES, ALL):
            best = set()
            for one in (scores.net, scores.auroc):
                best |= set(one[which].topk(min(_WORDS_ON, len(rest))).indices.tolist())
            more = [t.replace("{}", words[rest[i]]) for i in sorted(best) for t in prompts]
            tried[-1].append([*range(len(rest)), *(row.setdefault(t, len(row)) for t in more)])
            tried[-1][-1] = list(dict.fromkeys(tried[-1][-1]))
    new = list(row)[len(rest) :]
    rows = torch.cat([plain[rest], _rows(embed, new, samples)]) if new else plain[rest]
    return _attack(target, "prompt search", list(row), rows, tried)


def _rows(embed: Embed, texts: Sequence[str], samples: Samples) -> Tensor:
    """[m, d] float32 unit rows on the CPU, checked."""
    out = []
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        rows = embed(part)
        want = (len(part), samples.classes.dim)
        if not isinstance(rows, Tensor) or rows.shape != want:
            got = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise Refusal("paraphrase", "embed", f"must give rows {list(want)}, got {got}")
        rows = rows.detach().float().cpu()
        bad = (~rows.isfinite().all(dim=1) | (rows == 0).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise Refusal(
                "paraphrase",
                "embed",
                f"must give finite rows that are not zero, got another for {part[bad[0]]!r}",
            )
        out.append(F.normalize(rows))
    return torch.cat(out)


AUDIT = Audit(
    key="paraphrase",
    title="Other ways of naming the class",
    place=50,
    run=lambda given: paraphrase(*given.edit, given.embed, synonyms=given.synonyms),
    needs={"embed": "needs the model, features alone embed no prompt"},
)
