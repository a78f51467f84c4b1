"""Published methods to compare with: one file each, by what its paper and its code say.

    clipproj compare --also benchmarks/methods
    edit = METHODS["lip"].make(task)     # a clipproj.Projector, or a callable with `side`, `rank`

None of these is part of the package. Each works on the output of a tower, where its paper trains
inside it, and its file says what that changes. Where a paper gives no setting for that, or one that
does worse here, the setting was chosen on the embedded model by its own images: in favour of the
method wherever it is measured on those. The files say which settings.

Lip, PBU and JiT learn a d x d map of image features, from the identity: the same as training the
last projection of the image tower. PBU and JiT need images of the class; their synthetic forms
make features up from its text as Lip does. TIA edits the text tower and sees no image. LEACE is
the oracle: it is told the label of every image.
"""

from __future__ import annotations

from functools import partial

from clipproj.compare.method import ComparedMethod
from clipproj.methods.leace import make as leace

from . import jit, lip, pbu, tia

METHODS = {
    "lip": ComparedMethod(
        "Lip (2407.07485): answers smoothed around 64 made-up features", lip.make, learns=True
    ),
    "pbu": ComparedMethod(
        "PBU (2403.16246): cross-entropy climbed on the class's images", pbu.make, learns=True
    ),
    "pbu, synthetic": ComparedMethod(
        "PBU on 64 made-up features", partial(pbu.make, synthetic=True), learns=True
    ),
    "jit": ComparedMethod(
        "JiT (2402.01401): answers smoothed around the class's images", jit.make, learns=True
    ),
    "jit, synthetic": ComparedMethod(
        "JiT on 64 made-up features", partial(jit.make, synthetic=True), learns=True
    ),
    "tia": ComparedMethod(
        "TIA (TMLR 2025): the class's text sent to the empty prompt's", tia.make, needs=("empty",)
    ),
    "tia, texts as left": ComparedMethod(
        "TIA, its texts not normalised again, as no service does",
        partial(tia.make, renormalize=False),
        needs=("empty",),
    ),
    "leace": ComparedMethod("LEACE (2306.03819), told every label: the oracle", leace, learns=True),
}

__all__ = ["METHODS"]
