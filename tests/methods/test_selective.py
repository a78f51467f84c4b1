"""A class forgotten in all domains, in some, or with their sign: synthetic and embedded model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clipproj import Embeddings, demo
from clipproj.audit import image_features, load_images
from clipproj.checkpoints.checkpoint import load_model
from clipproj.methods.domains import Cells
from clipproj.methods.prototypes import feature_prototypes
from clipproj.methods.selective import TEMPLATES, selective, selective_rows

D, NAMES, DOMAINS = 64, ("cat", "dog", "owl", "cow", "bee"), ("sketch", "stencil", "photo", "oil")
MONO, COLOUR = DOMAINS[:2], DOMAINS[2:]
GAIN = 0.5  # of the synthetic images


def parts():
    """Class and domain signals, and what all texts and all images share."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64))[0].T
    return basis[:5], basis[5:9], basis[9], basis[10]


def world(noise=0.02, count=20):
    """Served texts, cells of texts, and images as features, names and domains."""
    classes, domains, text, image = parts()
    g = torch.Generator().manual_seed(1)
    served = Embeddings(F.normalize(text + classes).float(), NAMES, ("a {}",), "model", "0" * 64)
    pairs = [(c, k) for k in range(4) for c in range(5)]
    rows = torch.stack([text + classes[c] + domains[k] for c, k in pairs])
    cells = Cells(rows, [NAMES[c] for c, _ in pairs], [DOMAINS[k] for _, k in pairs])
    pairs = pairs * count
    rows = torch.stack([2 * image + classes[c] + GAIN * domains[k] for c, k in pairs])
    rows = 7 * (rows + noise * torch.randn(rows.shape, generator=g, dtype=torch.float64))
    return served, cells, rows, [NAMES[c] for c, _ in pairs], [DOMAINS[k] for _, k in pairs]


def right(served, rows, names, domains, edit=None):
    """{(class is cat, domain is monochrome): share answered right}."""
    rows = rows if edit is None else edit(rows)
    hits = (rows @ served.tensor.double().T).argmax(1) == torch.tensor(
        [NAMES.index(name) for name in names]
    )
    cat = torch.tensor([name == "cat" for name in names])
    mono = torch.tensor([domain in MONO for domain in domains])
    return {
        (own, inside): float(hits[(cat == own) & (mono == inside)].double().mean())
        for own in (True, False)
        for inside in (True, False)
    }


def shown(rows, edit):
    """How much more cats than others in monochrome show their domain, before and after."""
    sign = parts()[1][:2].mean(0) - parts()[1][2:].mean(0)
    return (rows @ sign).mean(), (edit(rows) @ sign).mean()


def test_modes_forget_where_they_say():
    served, cells, *images = world()
    before = right(served, *images)
    assert min(before.values()) > 0.95
    gone = {
        mode: right(
            served, *images,
            selective_rows(
                served, cells, "cat", *((DOMAINS, ()) if mode == "global" else (MONO, COLOUR)),
                mode=mode, domain_gain=GAIN,
            ),
        )
        for mode in ("global", "domain", "complete")
    }  # fmt: skip
    for mode, after in gone.items():
        assert after[True, True] < 0.02, mode
        assert (after[True, False] < 0.02) if mode == "global" else (after[True, False] > 0.95)
        assert after[False, True] > 0.95
        assert after[False, False] > 0.95


def test_complete_takes_the_sign_of_the_domain_too_and_domain_leaves_it():
    served, cells, rows, names, domains = world()
    cats = torch.tensor([n == "cat" and d in MONO for n, d in zip(names, domains, strict=True)])
    for mode, low, high in (("domain", 0.9, 1.1), ("complete", -1.5, 0.1)):
        p = selective_rows(served, cells, "cat", MONO, COLOUR, mode=mode, domain_gain=GAIN)
        before, after = shown(rows[cats], p)
        assert low < after / before < high, mode


def test_the_reader_reads_what_its_equations_say_and_writes_the_class_alone():
    served, cells, *_ = world()
    p = selective_rows(served, cells, "cat", MONO, COLOUR, depth=1.3, domain_gain=0.4)
    assert p.rank == 1
    texts = served.tensor.double()
    own = cells.rows[cells.where(("cat",), None)].double()
    middle = own.mean(0)
    contrast = texts[0] - texts[1:].mean(0)
    others = cells.rows[cells.where(NAMES[1:], None)].double().mean(0)
    level = float((middle - others) @ contrast)
    read = p.read[0].double()

    def reads(domains):
        off = cells.rows[cells.where(("cat",), domains)].double().mean(0) - middle
        # the level of the class is what sets it apart; the shared direction is not read
        return float((middle + 0.4 * off) @ read) - float(others @ contrast) * slope

    slope = float(parts()[0][0] @ read / (parts()[0][0] @ contrast))
    assert reads(MONO) == pytest.approx(1.3 * level, abs=1e-5)
    assert reads(COLOUR) == pytest.approx(0, abs=1e-5)
    moved = (p.write.double() @ texts.T)[0]
    assert moved[0] - moved[1:].mean() == pytest.approx(1, abs=1e-6)
    assert moved[1:].max() - moved[1:].min() < 1e-6  # others stay among themselves as they were


def test_text_side_changes_the_same_scores():
    served, cells, rows, *_ = world()
    image = selective_rows(served, cells, "cat", MONO, COLOUR)
    text = selective_rows(served, cells, "cat", MONO, COLOUR, side="text")
    texts = served.tensor.double()
    torch.testing.assert_close(image(rows) @ texts.T, rows @ text(texts).T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["domain", "complete"])
def test_subspace_leaves_kept_cells_of_the_class_and_erases_the_rest_of_the_others(mode):
    served, cells, *_ = world()
    p = selective_rows(served, cells, "cat", MONO, COLOUR, mode=mode, form="subspace")
    assert p.symmetric
    kept = cells.rows[cells.where(("cat",), COLOUR)]
    torch.testing.assert_close(p(kept), kept, atol=1e-6, rtol=0)
    gone = cells.rows[cells.where(("cat",), MONO)]
    # nothing of a forgotten cell is left but what lies in the span of the kept ones
    basis = torch.linalg.qr(kept.double().T)[0].T
    left = p(gone).double()
    assert (left - left @ basis.T @ basis).norm(dim=1).max() < 1e-6
    assert (p(gone) - gone).norm(dim=1).min() > 0.4
    if mode == "complete":
        dogs = cells.rows[cells.where(("dog",), MONO)]
        plain = selective_rows(served, cells, "cat", MONO, COLOUR, form="subspace")
        assert p.rank > plain.rank
        assert (p(dogs) - dogs).norm(dim=1).min() > (plain(dogs) - dogs).norm(dim=1).max()


def test_subspace_erases_cells_prototypes_and_class_everywhere_in_mode_global():
    served, cells, *images = world()
    prototypes = feature_prototypes(*images)
    mine = prototypes.rows[prototypes.where(("cat",), None)]
    p = selective_rows(
        served, cells, "cat", DOMAINS, mode="global", form="subspace", prototypes=prototypes
    )
    for rows in (cells.rows[cells.where(("cat",), None)], served.tensor[:1], mine):
        assert p(rows).abs().max() < 2e-3  # what tol drops
    one = selective_rows(served, cells, "cat", DOMAINS, mode="global", form="subspace", rank=1)
    assert one.rank == 1


def test_prototypes_measure_how_much_images_show_the_domain():
    served, cells, *images = world()
    p = selective_rows(served, cells, "cat", MONO, COLOUR, prototypes=feature_prototypes(*images))
    assert p.provenance["parameters"]["domain_gain"] == pytest.approx(GAIN, abs=0.02)
    assert p.provenance["forget"]["names"] == ["cat"]
    assert p.provenance["parameters"]["prototypes"] == 20


ERRORS = [
    ({"mode": "some"}, 'mode must be "global" or "domain" or "complete", got \'some\''),
    ({"form": "other"}, "form must be"),
    ({"side": "both"}, "side must be"),
    ({"domains": ()}, "domains must hold at least one string"),
    ({"domains": MONO, "keep_domains": MONO[1:]}, "domains must not name what keep_domains names"),
    ({"domains": ("oil", "oil")}, "domains must be distinct"),
    ({"keep_domains": ()}, 'at least one domain in mode "domain"'),
    ({"mode": "global"}, 'keep_domains must be empty in mode "global"'),
    ({"depth": 0.0}, "depth must be finite and above 0"),
    ({"domain_gain": float("nan")}, "domain_gain must be finite and above 0"),
    ({"strength": 2.5}, "strength must be in"),
    ({"rank": 0}, "rank must be at least 1"),
    ({"tol": 1.0}, "tol must be in"),
    ({"domains": ("sculpture",)}, "no row of 'cat' in 'sculpture'"),
    ({"prototypes": Cells(torch.ones(1, 3), ["cat"], ["oil"])}, "rows of width 64"),
    ({"prototypes": Cells(torch.ones(1, D), ["ant"], ["oil"])}, "classes and domains given"),
    ({"prototypes": Cells(torch.ones(1, D), ["cat"], ["oil"])}, "forgotten and of kept domains"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[text for _, text in ERRORS])
def test_errors(options, message):
    served, cells, *_ = world(count=1)
    usual = {"domains": MONO, "keep_domains": COLOUR}
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        selective_rows(served, cells, "cat", **usual | options)


def test_domains_that_texts_do_not_tell_apart_are_refused():
    served, cells, *_ = world(count=1)
    same = Cells(cells.rows[:5].repeat(4, 1), cells.names, cells.domains)
    for form in ("reader", "subspace"):
        with pytest.raises(ValueError, match="domains must differ from keep_domains"):
            selective_rows(served, same, "cat", MONO, COLOUR, form=form)


@pytest.fixture(scope="module")
def embedded():
    return load_model(None, None, "cpu")


@pytest.mark.parametrize("templates", [["a {}"], ["a {domain}"], ["{domain} {} {}"]])
def test_templates_need_both_placeholders(embedded, templates):
    with pytest.raises(ValueError, match=r"must hold \{domain\} and \{\} exactly once"):
        selective(
            embedded.model, embedded.tokenizer, "cat", MONO, COLOUR, keep=["dog"],
            templates=templates,
        )  # fmt: skip


def test_from_names_it_is_what_rows_make_and_progress_reaches_its_end(embedded):
    from clipproj import embed_classes

    told = []
    names, served = ["cat", "dog", "tree"], ["a {}", "the {}"]
    p = selective(
        embedded.model, embedded.tokenizer, "cat", ["stencil"], ["flat colour"], keep=names[1:],
        class_templates=served, progress=lambda *at: told.append(at),
    )  # fmt: skip
    total = len(names) * (len(served) + 2 * len(TEMPLATES))
    assert told[-1] == (total, total)
    assert [at for at, _ in told] == sorted(at for at, _ in told)
    tensors = [
        embed_classes(
            embedded.model, embedded.tokenizer, names, [t.replace("{domain}", d) for t in TEMPLATES]
        ).tensor
        for d in ("stencil", "flat colour")
    ]
    cells = Cells(torch.cat(tensors), names * 2, ["stencil"] * 3 + ["flat colour"] * 3)
    classes = embed_classes(embedded.model, embedded.tokenizer, names, served)
    q = selective_rows(classes, cells, "cat", ["stencil"], ["flat colour"])
    assert p.content_hash() == q.content_hash()
    assert p.provenance["parameters"]["templates"] == list(TEMPLATES)
    assert p.provenance["keep"]["names"] == ["dog", "tree"]


STYLES = {
    "line drawing": ("noto-mono", "symbola"),
    "stencil": ("fluent-emoji-high-contrast", "emojione-monotone"),
    "flat colour": ("twemoji", "fluent-emoji-flat", "fxemoji"),
    "shaded colour": ("noto", "noto-v1", "fluent-emoji", "emojione"),
    "outlined colour": ("streamline-emojis",),
}


def test_embedded_model_forgets_a_class_in_the_chosen_domains_and_keeps_it_elsewhere(embedded):
    from clipproj import embed_classes

    images = load_images(demo.images_dir())
    rows = image_features(embedded.model, embedded.preprocess, images)
    names = list(images.classes)
    classes = embed_classes(embedded.model, embedded.tokenizer, names)
    tensors = [
        embed_classes(
            embedded.model, embedded.tokenizer, names, [t.replace("{domain}", d) for t in TEMPLATES]
        ).tensor
        for d in STYLES
    ]
    labels = names * len(STYLES), [d for d in STYLES for _ in names]
    cells = Cells(torch.cat(tensors), *labels)
    styles = [path.stem.split("-", 1)[1] for path in images.paths]
    mono, colour = list(STYLES)[:2], list(STYLES)[2:]

    def of(domains):
        return torch.tensor([any(style in STYLES[d] for d in domains) for style in styles])

    for chosen, kept, depth in (
        (mono, colour, 1.1), (colour, mono, 1.1),
        (mono[:1], colour, 1.25), (mono[1:], colour, 1.25),
    ):  # fmt: skip
        before, after, n = torch.zeros(3), torch.zeros(3), torch.zeros(3)
        for c, name in enumerate(names):
            p = selective_rows(classes, cells, name, chosen, kept, depth=depth)
            own = images.labels == c
            for i, group in enumerate((own & of(chosen), own & of(kept), ~own)):
                n[i] += group.sum()
                for features, counts in ((rows, before), (p(rows), after)):
                    hits = (features[group] @ classes.tensor.T).argmax(1) == images.labels[group]
                    counts[i] += hits.sum()
        before, after = before / n, after / n
        assert before[0] > 0.7
        assert after[0] <= 0.05
        assert before[1] - after[1] <= 0.05
        assert before[2] - after[2] <= 0.05
