"""The projector: a rank-k update of feature rows, as a module with its strength and its history."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipproj import files, ops
from clipproj._factors import (
    Factors,
    LinearFactors,
    check_orthonormal,
    factor,
    from_base64,
    gram_of,
    move_buffers,
    to_base64,
)
from clipproj._provenance import plain_json
from clipproj._tensors import as_tensor, check_plain, is_sharded, shard_by_shard, whole
from clipproj.refusal import Refusal

TOWERS = ("image", "text")


class Projector(nn.Module):
    """`z' = z - s (z R^T - c) W` for rows z, with read R, write W, offset c and strength s.

    With `gram = R W^T` it is one-sided: rows with `z R^T <= c`, on the harmless side of every
    half-space, keep their bits, and others are brought there by the least change in the metric of
    what is kept,

        z' = z - s a W,    a = argmin_{a >= 0} 1/2 a gram a^T - a (z R^T - c).

    It is not linear: no weight can hold it; `linear()` is its sibling that folds.

    Factors stay float32 whatever `.half()` or `.to(dtype)` do to the module around them: rounding
    them to bfloat16 leaves about 1.7 times more of the erased direction. float64 features are
    projected in float64.

    Numpy's float32, float64 and float16 arrays are taken wherever tensors are; rows that come as an
    array are given back as one.

    Args:
        read: [k, d], 0 <= k <= d, what is measured in a row.
        write: [k, d], what is taken out for it; None when the projector is symmetric (W is R, with
            orthonormal rows), and then one matrix is stored.
        offset: [k], subtracted from the measurements (affine edits such as LEACE), or None.
        strength: 0 leaves rows alone, 1 projects. Symmetric and one-sided projectors take [0, 2]
            (2 reflects); others [0, 1], up to 2 with a warning: they lengthen rows.
        gram: [k, k], k <= 256, of a one-sided projector: `read @ write.T`, symmetric, positive
            definite, with a diagonal of 1; write None stands for read, whose rows are unit then,
            not orthonormal. None: linear.
        side: the tower whose features it edits, "image" or "text". The other one needs `.T`.
        provenance: where it comes from, as plain JSON: method, parameters, model, head_hash, and
            forget and keep, each with the class names; kept in files and state dicts.
        forget: [m, d], unit texts of the names that it forgets, for `clipproj.certificate`; kept in
            files and state dicts, no part of the edit. None: not known.

    Raises:
        TypeError, ValueError: for factors that are not tensors, of other shapes, or not finite in
            float32; for a symmetric read whose rows are not orthonormal; for a strength out of
            range; for a gram that is not read @ write.T or nearly singular; for a provenance that
            is no JSON.

    Example:
        >>> p = clipproj.Projector(torch.tensor([[1.0, 0.0]]))
        >>> p(torch.tensor([[3.0, 4.0]])), p.scaled(0.5)(torch.tensor([[3.0, 4.0]]))
        (tensor([[0., 4.]]), tensor([[1.5000, 4.0000]]))
    """

    read: Tensor
    offset: Tensor | None
    gram: Tensor | None
    strength: Tensor
    forget: Tensor | None
    _write: Tensor | None

    def __init__(
        self,
        read: Tensor | np.ndarray,
        write: Tensor | np.ndarray | None = None,
        offset: Tensor | np.ndarray | None = None,
        strength: float | Tensor | np.ndarray = 1.0,
        *,
        gram: Tensor | np.ndarray | None = None,
        side: str = "image",
        provenance: Mapping[str, Any] | None = None,
        forget: Tensor | np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if side not in TOWERS:
            raise Refusal("Projector", "side", f'must be "image" or "text", got {side!r}')
        read = factor("read", read)
        if read.ndim != 2 or read.shape[1] < 1 or read.shape[0] > read.shape[1]:
            raise Refusal(
                "Projector",
                "read",
                f"must be [k, d] with 0 <= k <= d and d >= 1, got {list(read.shape)}",
            )
        write = None if write is None else factor("write", write)
        if write is not None and write.shape != read.shape:
            raise Refusal(
                "Projector",
                "write",
                f"must be {list(read.shape)} as read is, got {list(write.shape)}",
            )
        offset = None if offset is None else factor("offset", offset)
        if offset is not None and offset.shape != read.shape[:1]:
            raise Refusal(
                "Projector", "offset", f"must be [{read.shape[0]}], got {list(offset.shape)}"
            )
        if gram is not None:
            gram = gram_of(read, read if write is None else write, gram)
        elif write is None:
            check_orthonormal(read)
        forget = None if forget is None else factor("forget", forget)
        if forget is not None and (forget.ndim != 2 or forget.shape[1] != read.shape[1]):
            raise Refusal(
                "Projector", "forget", f"must be [m, {read.shape[1]}], got {list(forget.shape)}"
            )
        self.side = side
        self.provenance = plain_json(provenance)
        self.register_buffer("read", read)
        self.register_buffer("_write", write)
        self.register_buffer("offset", offset)
        self.register_buffer("gram", gram)
        # No part of the edit: in state dicts it is part of the extra state, where one is loaded
        # into a projector that does not know it.
        self.register_buffer("forget", forget, persistent=False)
        with torch.inference_mode(False):
            number = torch.tensor(self._checked(strength), device=read.device, dtype=torch.float32)
        self.register_buffer("strength", number)

    @property
    def write(self) -> Tensor:
        """[k, d]; the very tensor `read` when the projector is symmetric."""
        return self.read if self._write is None else self._write

    @property
    def symmetric(self) -> bool:
        """Whether read and write are one matrix."""
        return self._write is None

    @property
    def one_sided(self) -> bool:
        """Whether rows on the harmless side stay as they are: it has a gram matrix."""
        return self.gram is not None

    @property
    def form(self) -> str:
        """ "one-sided" with a gram matrix, "affine" with an offset, else "symmetric" or "oblique"
        (read and write differ).
        """
        if self.one_sided:
            return "one-sided"
        if self.offset is not None:
            return "affine"
        return "symmetric" if self.symmetric else "oblique"

    @property
    def rank(self) -> int:
        """k, the number of directions."""
        return self.read.shape[0]

    @property
    def dim(self) -> int:
        """d, the width of the features."""
        return self.read.shape[1]

    def forward(
        self,
        x: Tensor | np.ndarray,
        strength: float | Tensor | np.ndarray | None = None,
        normalize: bool = False,
        *,
        out: Tensor | None = None,
    ) -> Tensor | np.ndarray:
        """The edited rows, in the shape and dtype of x.

        Args:
            x: [..., d], float32, bfloat16 or float16, on the CPU also float64. An array is edited
                where the projector is. A DTensor is one again, if it is sharded by rows.
            strength: replaces the projector's own; a number, a 0-dim tensor, or a tensor with one
                value per row, [...] or flattened. Numbers are checked, tensors are not: they may
                live on a device that must not be waited for.
            normalize: also divide each row by its length, in the same pass.
            out: where to write the rows, as `clipproj.ops.project_out` takes it; x itself edits in
                place. It is returned. A new tensor without it.

        Raises:
            TypeError, ValueError: for x that is no tensor, nested, or of another width; for a
                strength that is out of range, or of another shape than x's leading dims; for a
                DTensor in pieces, or with a strength for each row; for an `out` for an array or a
                DTensor.
            RuntimeError: for an `out` that cannot be written, or where autograd would follow x.
        """
        if type(x) is not Tensor and (isinstance(x, np.ndarray) or is_sharded(x)):
            if out is not None:
                got = type(x).__name__
                raise TypeError(f"Projector: out must be None for a {got}, got one")
            if is_sharded(x):
                return self._sharded(x, strength, normalize)
            x = as_tensor("Projector", "x", x, self.read.device)
            return self(x, strength, normalize).numpy(force=True)
        operands = self.operands(x, strength)
        if out is not None:
            return ops.project_out(x, **operands, normalize=normalize, out=out)
        return ops.project(x, **operands, normalize=normalize)

    def edit_features(
        self, z: Tensor, strength: float | Tensor | None = None, normalize: bool = False
    ) -> Tensor:
        """The edited rows of features z [..., d] of any length, as a model gives them.

        The half-spaces of a one-sided projector are measured on unit rows: rows are divided by
        their length for it, and multiplied by it again unless `normalize` is asked for. Others are
        called as they are. Takes and raises what calling it does.
        """
        if not self.one_sided:
            return self(z, strength, normalize)
        unit, length = unit_rows(z)
        edited = self(unit, strength, normalize)
        if normalize:
            return edited
        harmless = (edited == unit).all(dim=-1, keepdim=True)  # these keep their bits
        return torch.where(harmless, z, edited * length)

    def as_measured(self, z: Tensor) -> Tensor:
        """Features z [..., d] as the operators take them: divided by their length, which thresholds
        are for, by a one-sided projector; else as they are.
        """
        return unit_rows(z)[0] if self.one_sided else z

    def _sharded(
        self, x: Any, strength: float | Tensor | np.ndarray | None, normalize: bool
    ) -> Any:
        """A DTensor's rows. A projector that is distributed itself is taken whole."""
        if isinstance(strength, Tensor | np.ndarray) and strength.ndim:
            got = list(strength.shape)
            raise TypeError(f"Projector: strength must be 0-dim for a DTensor, got {got}")
        self._check_width("Projector", x)  # of all of it, not of this process's part

        def edit(rows: Tensor) -> Tensor:
            return ops.project(rows, **self.operands(rows, strength), normalize=normalize)

        return shard_by_shard("Projector", edit, x)

    def operands(self, x: Tensor, strength: float | Tensor | np.ndarray | None = None) -> Factors:
        """read, write, offset, strength, and gram of a one-sided one, as operators take them for x.

        Takes and raises what calling the projector does.
        """
        self._check_rows("Projector", x)
        factors = self.factors(x.dtype)
        if isinstance(strength, Tensor):
            if strength.ndim > 1 and strength.shape != x.shape[:-1]:
                raise Refusal(
                    "Projector",
                    "strength",
                    f"must be 0-dim, [n] or {list(x.shape[:-1])} as the rows "
                    f"of x are, got {list(strength.shape)}",
                )
            per_row = strength.flatten() if strength.ndim else strength
            factors["strength"] = whole(per_row).to(factors["read"].dtype)
        elif strength is not None:
            if isinstance(strength, np.ndarray):
                return self.operands(x, as_tensor("Projector", "strength", strength, x.device))
            value = self._checked(strength)
            factors["strength"] = torch.full_like(factors["strength"], value)
        return factors

    def factors(self, dtype: torch.dtype = torch.float32) -> Factors:
        """read, write, offset, strength, and gram of a one-sided one, for features of `dtype`.

        float64 for float64, else float32; write stays the same tensor as read when symmetric.
        """
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        read = whole(self.read).to(wide)
        factors: Factors = {
            "read": read,
            "write": read if self._write is None else whole(self._write).to(wide),
            "offset": None if self.offset is None else whole(self.offset).to(wide),
            "strength": whole(self.strength).to(wide),
        }
        if self.gram is not None:
            factors["gram"] = whole(self.gram).to(wide)
        return factors

    def linear_factors(self, op: str, dtype: torch.dtype = torch.float32) -> LinearFactors:
        """What `ops.fold_` takes: `factors` of a linear projector.

        Refusal, in the name of `op`, for a one-sided one, with what works instead.
        """
        if self.one_sided:
            raise Refusal(
                op,
                "projector",
                "must be linear, got a one-sided one, which changes some rows alone and no weight "
                "can hold; use projector.linear(), or apply it to rows: the projector itself, "
                "clipproj.plugins.attach, a ProjectorBank, ops.linear or ops.logits",
            )
        f = self.factors(dtype)
        return {
            "read": f["read"],
            "write": f["write"],
            "offset": f["offset"],
            "strength": f["strength"],
        }

    def linear(self) -> Projector:
        """The linear sibling of a one-sided projector, which folds: every row is brought onto the
        half-spaces' borders through 0, `z' = z - s (z R^T) (R W^T)^-1 W`. A linear one itself.

        Every row is turned, those too that were harmless, so it costs the rest more.
        """
        if self.gram is None:
            return self
        f = self.factors(torch.float64)
        write = torch.linalg.solve(f["read"] @ f["write"].T, f["write"])
        parameters = self.provenance.get("parameters", {}) | {"one_sided": False}
        history = self.provenance | {"parameters": parameters}
        with warnings.catch_warnings():  # of a strength above 1, which this one may have
            warnings.simplefilter("ignore")
            return Projector(
                f["read"],
                write,
                strength=self.strength,
                side=self.side,
                provenance=history,
                forget=self.forget,
            )

    @property
    def T(self) -> Projector:
        """The same change of similarity, made on the other tower: read and write swapped.

        <P^T x, t> = <x, P t>. Raises ValueError for a projector with an offset and for a one-sided
        one, which have no such counterpart.
        """
        if self.one_sided:
            raise Refusal(
                "T",
                "projector",
                "must be linear, got a one-sided one: what it takes out of a row depends on the "
                "row, so no edit of the other tower has the same scores; use projector.linear()",
            )
        if self.offset is not None:
            raise Refusal("T", "projector", "must have no offset, got an affine one")
        other = "text" if self.side == "image" else "image"
        swapped = None if self._write is None else self.read
        return self._like(self.write, swapped, strength=self.strength, side=other)

    def for_tower(self, tower: str, op: str = "for_tower") -> Projector:
        """The form that edits the features of `tower`: itself, or `.T` on the other one.

        ValueError, in the name of `op`, for a tower that is neither "image" nor "text", and for a
        projector with an offset on the other one.
        """
        if tower not in TOWERS:
            raise Refusal(op, "tower", f'must be "image" or "text", got {tower!r}')
        if tower == self.side:
            return self
        if self.one_sided:
            raise Refusal(
                op,
                "projector",
                f"must be linear on the {tower} tower, got a one-sided one for {self.side} "
                "features; use projector.linear()",
            )
        if self.offset is not None:
            raise Refusal(
                op,
                "projector",
                f"must have no offset on the {tower} tower, got an affine one for "
                f"{self.side} features",
            )
        return self.T

    def require_model(
        self,
        op: str,
        *heads: str | None,
        argument: str = "projector",
        model: str = "this model",
        otherwise: str = "",
    ) -> None:
        """ValueError, in the name of `op`, for a projector that comes from another model.

        Args:
            heads: what the model's embedding space was or is called (`head_hash`); the projector
                must come from one of these. What is not known, here or there, is not held
                against it.
            argument, model: what the error calls the two.
            otherwise: how its sentence ends, such as the way past it.
        """
        source, known = self.provenance.get("head_hash"), [head for head in heads if head]
        if source is not None and known and source not in known:
            raise Refusal(
                op,
                argument,
                f"must come from {model} (head {known[0][:12]}), got one of "
                f"{self.provenance.get('model') or 'another'} (head {source[:12]}){otherwise}",
            )

    def scaled(self, strength: float | Tensor) -> Projector:
        """The same projector with another strength of its own: `p.scaled(s)(x)` is `p(x, s)`."""
        return self._like(self.read, self._write, self.offset, strength)

    def _like(
        self,
        read: Tensor,
        write: Tensor | None,
        offset: Tensor | None = None,
        strength: float | Tensor = 1.0,
        side: str | None = None,
    ) -> Projector:
        return Projector(
            read,
            write,
            offset,
            strength,
            gram=self.gram,
            side=side or self.side,
            provenance=self.provenance,
            forget=self.forget,
        )

    def dense(self) -> Tensor:
        """[d, d] float32 matrix P of the linear part: `z' = z @ p.dense() + p.shift()`.

        ValueError for a one-sided projector, which has none.
        """
        f = self.linear_factors("dense", torch.float64)
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.read.device)
        return (eye - f["strength"] * f["read"].T @ f["write"]).float()

    def shift(self) -> Tensor:
        """[d] float32 constant of the edit, s c W; zeros without an offset. Raises as `dense`."""
        f = self.linear_factors("shift", torch.float64)
        offset = f["read"].new_zeros(self.rank) if f["offset"] is None else f["offset"]
        return (f["strength"] * offset @ f["write"]).float()

    def residual(self, x: Tensor | np.ndarray) -> Tensor:
        """How much of each row of x [..., d] lies along what is erased: [...] float64.

        The part of a row inside span(read), relative to the row's length: in [0, 1], 0 for zero
        rows. Measures x as it is. Features that a symmetric projector has edited at strength 1 give
        rounding errors; CCUP leaves what its weights leave. With an offset, where a projection does
        not aim at 0, it is the distance to the offset's place instead, in units of the length. Of
        a one-sided projector only what exceeds the half-spaces counts, so that harmless rows and
        edited ones give 0, but for what the solver leaves.
        """
        x = as_tensor("residual", "x", x, self.read.device)
        self._check_rows("residual", x)
        rows = x.detach().double()
        f = self.factors(torch.float64)
        measured = rows @ f["read"].T
        if f["offset"] is not None:
            measured = measured - f["offset"]
        if self.one_sided:
            measured = measured.clamp_min(0)
        # z R^T (R R^T)^{-1} R: right whatever the lengths and angles of read's rows
        inside = measured @ torch.linalg.pinv(f["read"]).T
        return inside.norm(dim=-1) / rows.norm(dim=-1).clamp_min(torch.finfo(rows.dtype).tiny)

    def content_hash(self) -> str:
        """SHA-256 hex over side, factors and strength: equal hashes mean the same edit."""
        text = f"projector side={self.side} symmetric={self.symmetric}"
        factors = [self.read, self._write, self.offset, self.strength]
        factors += [self.gram] if self.one_sided else []  # what others were called they still are
        return files.sha256(*factors, text=text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write factors and provenance to a safetensors file, atomically.

        Raises OSError; ValueError for a strength that was set out of range.
        """
        version = files.FORMAT if self.one_sided else 1
        files.write(path, "projector", *self.parts(), version=version)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a file keeps of it, for `from_parts`: tensors by name, and JSON.

        Raises ValueError for a strength that was set out of range.
        """
        self._checked(self.strength, warn=False)
        factors = {"read": self.read, "write": self._write, "offset": self.offset}
        factors |= {"gram": self.gram, "forget": self.forget}
        tensors = {name: t for name, t in factors.items() if t is not None}
        meta: dict[str, Any] = {
            "side": self.side,
            "provenance": self.provenance,
            "hash": self.content_hash(),
        }
        return tensors | {"strength": self.strength}, meta

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Projector:
        """The projector whose `parts` these are. ValueError when they are none, or its hash is
        another."""
        projector = stored(tensors, meta["side"], meta["provenance"])
        if projector.content_hash() != meta["hash"]:
            raise Refusal(
                "load",
                "parts",
                f"must be of projector {meta['hash'][:12]}, got others of "
                f"{projector.content_hash()[:12]}",
            )
        return projector

    def get_extra_state(self) -> Tensor:
        """Side, provenance and hash, for `state_dict`: as bytes, which every format can hold."""
        digest = None if self.read.is_meta else self.content_hash()
        state = {"side": self.side, "provenance": self.provenance, "hash": digest}
        if self.forget is not None and not self.forget.is_meta:
            state["forget"] = to_base64(self.forget)
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """What `load_state_dict` calls last. ValueError for other factors than were saved, or a
        provenance that is none."""
        meta = json.loads(bytes(state.tolist()))
        self.side, self.provenance = meta["side"], _stored_history(meta["provenance"])
        kept = meta.get("forget")
        self.forget = from_base64(kept, self.dim).to(self.read.device) if kept else None
        if meta["hash"] is not None and self.content_hash() != meta["hash"]:
            raise Refusal(
                "load_state_dict",
                "state_dict",
                "must hold a projector's factors as they were saved, "
                "got others: cast, or of another form (symmetric, oblique, affine, one-sided)",
            )

    def _check_rows(self, op: str, x: Tensor) -> None:
        if type(x) is not Tensor or x.is_nested:
            check_plain(op, x)
        self._check_width(op, x)

    def _check_width(self, op: str, x: Tensor) -> None:
        if x.ndim == 0 or x.shape[-1] != self.dim:
            raise Refusal(op, "x", f"must be [..., {self.dim}], got {list(x.shape)}")

    def _checked(self, strength: float | Tensor | np.ndarray, warn: bool = True) -> float:
        """The number, if it is one that this projector may have."""
        strength = as_tensor("Projector", "strength", strength)
        if isinstance(strength, Tensor) and (strength.ndim or strength.is_complex()):
            got = f"{strength.dtype} {list(strength.shape)}"
            raise Refusal("Projector", "strength", f"must be a number or 0-dim, got {got}")
        if not isinstance(strength, Real | Tensor):
            got = type(strength).__name__
            raise TypeError(f"Projector: strength must be a number or a tensor, got {got}")
        number = float(strength)
        shrinks = self.one_sided or (self.symmetric and self.offset is None)
        if not 0 <= number <= 2:
            limit = "[0, 2]" if shrinks else "[0, 1] (at most 2)"
            raise Refusal("Projector", "strength", f"must be in {limit}, got {number:g}")
        if number > 1 and not shrinks and warn and not torch.compiler.is_compiling():
            what = "read and write differ" if self.offset is None else "it has an offset"
            text = f"Projector: strength {number:g} above 1 can lengthen rows, because {what}"
            warnings.warn(text, stacklevel=3)
        return number

    def _apply(self, fn: Any, recurse: bool = True) -> Projector:
        move_buffers(self, fn)
        return self

    def extra_repr(self) -> str:
        text = f"dim={self.dim}, rank={self.rank}, {self.form}, side={self.side!r}"
        text += "" if self.strength.is_meta else f", strength={float(self.strength):g}"
        names = self.provenance.get("forget", {}).get("names")
        return f"{text}, forget={names}" if names else text


def unit_rows(z: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of z [..., d] divided by their lengths, and these, [..., 1]; `which` [..., 1] says of
    which rows, the others are as they were with a length of 1."""
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    length = length.clamp_min(torch.finfo(z.dtype).tiny)
    if which is not None:
        length = torch.where(which, length, 1)
    return z / length, length


def stored(tensors: Mapping[str, Tensor], side: str, provenance: Any) -> Projector:
    """A projector from what a file holds. ValueError for anything that makes none."""
    factors: list[Any] = [tensors.get(name) for name in ("read", "write", "offset", "strength")]
    rest: dict[str, Any] = {name: tensors.get(name) for name in ("gram", "forget")}
    with warnings.catch_warnings():  # whoever built it has been warned about its strength
        warnings.simplefilter("ignore")
        try:
            history = _stored_history(provenance)
            return Projector(*factors, **rest, side=side, provenance=history)
        except TypeError as error:
            raise Refusal("load", "path", f"must hold a projector: {error}") from error


def _stored_history(provenance: Any) -> dict[str, Any]:
    try:
        return plain_json(provenance)
    except TypeError as error:
        raise Refusal("load", "path", f"must hold a projector's provenance: {error}") from error


def load(path: str | os.PathLike[str]) -> Projector:
    """Read a projector that `Projector.save` wrote, factors bit for bit.

    Raises FileNotFoundError, or ValueError when the file is damaged, foreign, not a projector, or
    of a newer format.

    Example:
        >>> clipproj.nullspace(texts.select(["cat"]), texts.drop(["cat"])).save("cat.safetensors")
        >>> p = clipproj.load("cat.safetensors")
        >>> p.provenance["forget"]["names"]
        ['cat']
    """
    artefact = files.read(path, "projector")
    return Projector.from_parts(artefact.tensors, artefact.meta)
