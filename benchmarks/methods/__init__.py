"""Published methods to compare with: one file each, by what its paper and its code say.

    edit = METHODS["lip"](task)      # a clipproj.Projector, or rows -> rows with `side` and `rank`

A task is a `clipproj.audit.task.Task`. None of these is part of the package. Each works on the
output of a tower, where its paper trains inside it, and each file says what that changes. Where a
paper gives no setting for that, or one that does worse here, the setting was chosen on the embedded
model by what the method then does, in its favour; the files say which ones.

Lip, PBU and JiT learn a d x d map of picture features, from the identity: the same as training the
last projection of the image tower. PBU and JiT need pictures of the class; their `-synthetic` forms
make them up from the text as Lip does. TIA edits the text tower and sees no picture. LEACE is the
oracle: it is told the label of every picture.
"""

from __future__ import annotations

from functools import partial

from . import jit, leace, lip, pbu, tia

METHODS = {
    "lip": lip.make,
    "pbu": pbu.make,
    "pbu-synthetic": partial(pbu.make, synthetic=True),
    "jit": jit.make,
    "jit-synthetic": partial(jit.make, synthetic=True),
    "tia": tia.make,
    "leace": leace.make,
}

__all__ = ["METHODS"]
