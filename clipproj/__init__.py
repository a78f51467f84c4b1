"""Make a CLIP-like model forget a class: rank-k projector edits in closed form, fused kernels."""

from clipproj import ops
from clipproj._C import build_info, cpu_isa, set_cpu_isa
from clipproj._version import __version__
from clipproj.algebra import compose, union
from clipproj.heads import find_heads
from clipproj.methods import ccup, from_leace, nullspace
from clipproj.projector import Projector, load
from clipproj.text import Embeddings, embed_classes, generic_keep
