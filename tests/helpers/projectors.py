"""Projectors of every kind, rows for them, and the formula by hand."""

import torch

from clipproj import Projector, reference

D = 24


def basis(k, d=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(k, d, generator=g, dtype=torch.float64).T)[0].T


def symmetric(k=3, **options):
    return Projector(basis(k), **options)


def oblique(k=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    return Projector(torch.randn(k, D, generator=g), torch.randn(k, D, generator=g) / D)


def affine(k=3):
    p = oblique(k)
    return Projector(p.read, p.write, torch.linspace(-1, 1, k))


def one_sided(k=3, seed=2, strength=1.0):
    """Half-spaces at angles, in a metric of its own."""
    metric = torch.linspace(0.5, 1.5, D, dtype=torch.float64)
    read = basis(k, seed=seed) + 0.5 * basis(1, seed=seed + 1)
    read = read / (read.square() @ metric).sqrt()[:, None]
    write = read * metric
    return Projector(
        read, write, torch.linspace(-0.1, 0.1, k), strength, gram=read @ write.T, forget=read
    )


KINDS = [
    symmetric,
    oblique,
    affine,
    lambda: symmetric(strength=1.5),
    lambda: symmetric(0),
    one_sided,
    lambda: one_sided(1),
]


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(7)).to(dtype)


def by_hand(p, x, s=None):
    s = p.strength.double() if s is None else s
    c = 0 if p.offset is None else p.offset.double()
    taken = x.double() @ p.read.double().T - c
    if p.one_sided:
        taken = reference.solve(taken, p.gram.double())
    return x.double() - s * (taken @ p.write.double())


# What a bank holds, and names for rows: some of nobody, one of an empty projector.
MAKES = {
    "a": symmetric,
    "b": oblique,
    "c": affine,
    "d": lambda: one_sided(2, strength=1.5),
}
NAMES = ["a", None, "b", "c", "a", "d", None, "empty"]
