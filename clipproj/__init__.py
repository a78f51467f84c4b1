"""Make a CLIP-like model forget a class: rank-k projector edits in closed form, fused kernels.

Operators, projectors, banks and edits of a model are loaded with the package; methods and audits
when they are first asked for, so that what serves features pays for nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipproj import ops
from clipproj._C import build_info, cpu_isa, set_cpu_isa
from clipproj._version import __version__
from clipproj.algebra import compose, union
from clipproj.bank import ProjectorBank
from clipproj.editing.attachment import AttachReceipt
from clipproj.editing.edit import edit, edits, undo
from clipproj.editing.log import Edit, RecordedEdit
from clipproj.editing.receipt import Receipt
from clipproj.editing.verify import Verdict, verify
from clipproj.models.heads import find_heads
from clipproj.models.lexicon import lexicon, lexicon_names
from clipproj.models.text import Embeddings, embed_classes, expand_names, generic_keep
from clipproj.projector import Projector, load
from clipproj.zeroshot import ZeroShotHead

if TYPE_CHECKING:  # what is loaded later, once more for tools that read the source
    from clipproj import audit, methods, reference
    from clipproj.audit.tune import text_proxies, tune
    from clipproj.certificates.certify import certificate
    from clipproj.methods.ccup import ccup
    from clipproj.methods.coreset import coreset
    from clipproj.methods.leace import from_leace
    from clipproj.methods.nullspace import nullspace
    from clipproj.methods.redirect import redirect
    from clipproj.methods.rotate import rotate, unrotate
    from clipproj.methods.selective import selective
    from clipproj.methods.subgroup import subgroup

__all__ = [
    "AttachReceipt",
    "Edit",
    "Embeddings",
    "Projector",
    "ProjectorBank",
    "Receipt",
    "RecordedEdit",
    "Verdict",
    "ZeroShotHead",
    "__version__",
    "audit",
    "build_info",
    "ccup",
    "certificate",
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
    "lexicon",
    "lexicon_names",
    "load",
    "methods",
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

_MODULES = ("audit", "methods", "reference")
_HOMES = {
    "ccup": "clipproj.methods.ccup",
    "certificate": "clipproj.certificates.certify",
    "coreset": "clipproj.methods.coreset",
    "from_leace": "clipproj.methods.leace",
    "nullspace": "clipproj.methods.nullspace",
    "redirect": "clipproj.methods.redirect",
    "rotate": "clipproj.methods.rotate",
    "selective": "clipproj.methods.selective",
    "subgroup": "clipproj.methods.subgroup",
    "text_proxies": "clipproj.audit.tune",
    "tune": "clipproj.audit.tune",
    "unrotate": "clipproj.methods.rotate",
}


def __getattr__(name: str) -> Any:
    """A name that is loaded later, when it is first asked for (PEP 562)."""
    if name not in _MODULES and name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, f"clipproj.{name}")
    # Whole packages, in the order in which they need each other: threads that enter one by two of
    # its modules each hold an import lock that the other waits for, which Python ends in an error.
    if home != "clipproj.reference":
        import_module("clipproj.methods")
    if name in _MODULES:
        return import_module(home)
    import_module(home.rpartition(".")[0])
    found = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
