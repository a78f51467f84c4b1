"""From names to an edit that was judged and verified: what every command and the service do alike.

    names -> texts -> projector -> edit -> judgement -> receipt

`Recipe` says what is asked for, `resolve` which names are meant by it, `embed` makes texts of them,
`project` the projector, `forget` the edit of a model with all that is measured.
"""

from clipproj.recipe.names import Names, check_known, resolve, without_earlier
from clipproj.recipe.project import make, project, scaled
from clipproj.recipe.record import Recipe, check
from clipproj.recipe.run import Outcome, Ready, forget, image_rows, judged_edit, prepare
from clipproj.recipe.texts import Embedder, Progress, Texts, embed, silent

__all__ = [
    "Embedder",
    "Names",
    "Outcome",
    "Progress",
    "Ready",
    "Recipe",
    "Texts",
    "check",
    "check_known",
    "embed",
    "forget",
    "image_rows",
    "judged_edit",
    "make",
    "prepare",
    "project",
    "resolve",
    "scaled",
    "silent",
    "without_earlier",
]
