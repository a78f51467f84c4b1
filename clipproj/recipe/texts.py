"""From names to texts: what a model makes of what is forgotten, of what stays, of other names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from clipproj.audit.gate import FEW_WITH_IMAGES, GENERAL_PROMPTS
from clipproj.checkpoints.checkpoint import Loaded
from clipproj.methods import empty_text, prompts
from clipproj.methods.inputs import without
from clipproj.models.lexicon import TEMPLATE, lexicon
from clipproj.models.text import Embeddings, embed_classes, generic_keep
from clipproj.models.words import on_both
from clipproj.recipe.names import Names
from clipproj.recipe.record import Recipe
from clipproj.refusal import Refusal

Progress = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


def silent(stage: str, done: int, total: int) -> None:
    """The `Progress` that tells nobody."""


@dataclass
class Embedder:
    """A loaded model as what makes texts of names, and says how far it is.

    Args:
        truncate: cut prompts that the model would not read to their end; else they are refused.
        more: how many prompts methods may ask for beside the names' own; None: any number.
    """

    loaded: Loaded
    say: Progress = silent
    truncate: bool = False
    more: int | None = None

    def __call__(
        self, names: Sequence[str], templates: Sequence[str] | None = None, stage: str = "texts"
    ) -> Embeddings:
        """A text for each name. Raises as `embed_classes`."""
        return embed_classes(
            self.loaded.model,
            self.loaded.tokenizer,
            names,
            templates,
            model_name=self.loaded.name,
            truncate=self.truncate,
            progress=lambda done, total: self.say(stage, done, total),
        )

    def generic(
        self,
        forget: Embeddings,
        templates: Sequence[str],
        stage: str,
        truncate: bool | None = None,
    ) -> Embeddings:
        """Names in general, less what forget means too; truncate None: as for all texts.

        Raises as `generic_keep`.
        """
        return generic_keep(
            self.loaded.model,
            self.loaded.tokenizer,
            forget,
            templates=templates,
            truncate=self.truncate if truncate is None else truncate,
            progress=lambda done, total: self.say(stage, done, total),
        )

    def lexicon(self, forget: Embeddings) -> Embeddings:
        """Names in general, in the template of forget, less what forget means too.

        Raises as `lexicon`; Refusal where forget has several templates.
        """
        if len(forget.templates) > 1:
            why = "must be one where no names are kept, as names in general are embedded in one"
            raise Refusal("embed", "templates", f"{why}, got {len(forget.templates)}")
        texts = lexicon(
            self.loaded.model,
            self.loaded.tokenizer,
            forget.templates[0],
            model_name=self.loaded.name,
            truncate=self.truncate,
            progress=lambda done, total: self.say("names in general", done, total),
        )
        return without(texts, forget)

    def prompts(self, names: Sequence[str], templates: Sequence[str]) -> Embeddings:
        """A row for each prompt of the names, doubles left out."""
        return self(prompts(names, templates), ["{}"], "prompts")

    def empty(self) -> Tensor:
        """[d] unit text of the empty prompt, float32 on the CPU."""
        return empty_text(self.loaded.model, self.loaded.tokenizer)[0].float().cpu()

    def for_method(self, names: Sequence[str], templates: Sequence[str]) -> Embeddings:
        """Texts that a method asks for. Refusal of more prompts than are left."""
        if self.more is not None:
            asked = len(names) * len(templates)
            if asked > self.more:
                why = f"must need at most {self.more} more prompts, got {asked}"
                raise Refusal("embed", "method", why)
            self.more -= asked
        return self(names, templates, "texts in domains")


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts that an edit is made of and measured on.

    Attributes:
        forget, keep: what is forgotten, in all forms, and what stays.
        keep_from: "given", "images" (the other classes of those) or "generic" (names in
            general).
        classes: the texts that compete for the images.
        forget_classes: what is forgotten, a row for each of `Names.forget`.
        general: names in general, where few images tell what else the model knows; else None.
    """

    forget: Embeddings
    keep: Embeddings
    keep_from: str
    classes: Embeddings
    forget_classes: Embeddings
    general: Embeddings | None = None

    @property
    def closed(self) -> bool:
        """Whether the kept names are all that compete, not names in general."""
        return self.keep_from != "generic"


def embed(
    recipe: Recipe, names: Names, embedder: Embedder, classes: Sequence[str] | None = None
) -> Texts:
    """The texts of all names.

    Args:
        classes: the classes that there are images of; None without images.

    Raises as `embed_classes`, `lexicon` and `generic_keep`.
    """
    every = names.forget if classes is None else tuple(classes)
    if recipe.keep:  # images are told from all that is kept, whether it has a folder or not
        every = tuple(dict.fromkeys([*every, *(names.keep or ())]))
    everything = dict.fromkeys([*every, *names.forms, *names.forget, *(names.keep or ())])
    # some thousand names in general are embedded in one template; the forgotten get the same
    one = (TEMPLATE,) if names.keep is None else None
    texts = embedder(tuple(everything), tuple(recipe.templates) or one)
    forget, forget_classes = texts.select(names.forms), texts.select(names.forget)
    general = None
    if names.keep is None:
        keep_from = "generic"
        keep = embedder.lexicon(forget)
        if again := on_both(names.earlier, keep.names):
            keep = keep.drop(again)
    else:
        keep_from, keep = "given" if recipe.keep else "images", texts.select(names.keep)
        if len(set(classes or ()) - set(forget_classes.names)) < FEW_WITH_IMAGES:
            general = embedder.generic(
                forget,
                GENERAL_PROMPTS,
                "general texts",
                truncate=True,  # they are only measured on
            )
    return Texts(forget, keep, keep_from, texts.select(every), forget_classes, general)
