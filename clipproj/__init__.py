"""Make a CLIP-like model forget a class: rank-k projector edits in closed form, fused kernels."""

from clipproj import ops, reference
from clipproj._C import build_info, cpu_isa, set_cpu_isa
from clipproj._version import __version__
from clipproj.algebra import compose, union
from clipproj.audit.tune import text_proxies, tune
from clipproj.bank import ProjectorBank
from clipproj.editing.edit import Edit, edit, edits, undo
from clipproj.editing.log import RecordedEdit
from clipproj.editing.receipt import Receipt, Verdict, verify
from clipproj.methods import (
    ccup,
    coreset,
    from_leace,
    nullspace,
    redirect,
    rotate,
    selective,
    subgroup,
    unrotate,
)
from clipproj.models.heads import find_heads
from clipproj.models.text import Embeddings, embed_classes, expand_names, generic_keep
from clipproj.projector import Projector, load
from clipproj.zeroshot import ZeroShotHead

__all__ = [
    "Edit",
    "Embeddings",
    "Projector",
    "ProjectorBank",
    "Receipt",
    "RecordedEdit",
    "Verdict",
    "ZeroShotHead",
    "__version__",
    "build_info",
    "ccup",
    "compose",
    "coreset",
    "cpu_isa",
    "edit",
    "edits",
    "embed_classes",
    "expand_names",
    "find_heads",
    "from_leace",
    "generic_keep",
    "load",
    "nullspace",
    "ops",
    "redirect",
    "reference",
    "rotate",
    "selective",
    "set_cpu_isa",
    "subgroup",
    "text_proxies",
    "tune",
    "undo",
    "union",
    "unrotate",
    "verify",
]
