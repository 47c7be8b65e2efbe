"""Rows into pages, keys rotated on the way: an operator that writes in place, and its kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..problem.arguments import INTERLEAVED, TABLES
from ..problem.spec import AttentionSpec
from ..runtime.kernels import resolve
from .checks import NAMES
from .library import define, register_update
from .observers import is_plain_call
from .placement import place_of, readable_rows
from .schemas import schema

_append = define(schema("append", TABLES["paged"]["append"], (INTERLEAVED,)))


class Angles(NamedTuple):
    """cos and sin (positions, rotary_dim / 2) of a rotation, and which columns make a pair.

    float32, or in the dtype of the keys as ``rounded``; None where there are none.
    """

    interleaved: bool = False
    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    rounded_cos: torch.Tensor | None = None
    rounded_sin: torch.Tensor | None = None

    @classmethod
    def of(cls, cos, sin, interleaved: bool, dtype: torch.dtype) -> Angles:
        """Tables of any floating dtype for rows of ``dtype``."""
        cos, sin = (x if x.stride(1) == 1 else x.contiguous() for x in (cos, sin))
        if cos.dtype == sin.dtype == dtype != torch.float32:
            return cls(interleaved, rounded_cos=cos, rounded_sin=sin)
        return cls(interleaved, cos.float(), sin.float())


class Places(NamedTuple):
    """Where packed rows lie, and where they go: problem.sequences.PagedSequences.

    starts, ends: of the rows of each entry. first: the position that its first row goes to. past:
    the first that none may go to. All (B,) int32. table: the pages of each entry (B, most) int32.
    """

    starts: torch.Tensor
    ends: torch.Tensor
    first: torch.Tensor
    past: torch.Tensor
    table: torch.Tensor

    @classmethod
    def one_by_one(cls, cu_seqlens: torch.Tensor) -> Places:
        """Places of rows that go where they lie: to one page, of which each entry has its own."""
        starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
        return cls(starts, ends, starts, ends, starts.new_zeros((starts.shape[0], 1)))


def append(k, v, k_pages, v_pages, places: Places, rotary_seqlens, angles: Angles) -> None:
    """Write rows of k (total, Hk, D), rotated, and v (total, Hv, Dv), of any Hv, into their pages.

    k_pages (pages, page_size, Hk, D), v_pages alike, of any strides. rotary_seqlens (B,) int32: the
    position of an entry's first row in the tables of ``angles``; a row outside them is not rotated.
    Rows of no entry, and those whose place lies outside the pages, are left out. Checked before:
    shapes, dtypes and devices. Raises UnsupportedSpec where there is no kernel.
    """
    call = (k, v, rotary_seqlens, k_pages, v_pages, *places, *angles)
    others = [x for x in (v, rotary_seqlens, *places, *angles[1:]) if x is not None]
    if torch.compiler.is_compiling() or not is_plain_call(k, k_pages, v_pages, others):
        _append(*call)
    else:
        _run(*call)


def rotated(x, places: Places, rotary_seqlens, angles: Angles, head_dim_v: int, out=None):
    """Packed rows of x (total, H, D), rotated as ``append`` does it: into ``out``, or new memory.

    places: ``Places.one_by_one``. Rows of no entry are left out. head_dim_v: of the kernel.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    x = x.resolve_neg()
    # No values: a column of x would do, but for its width.
    none = x.as_strided((x.shape[0], 0, head_dim_v), (0, 0, 1))
    append(x, none, out[None], none[None], places, rotary_seqlens, angles)
    return out


def _run(
    k, v, rotary_seqlens, k_pages, v_pages, starts, ends, first, past, table, interleaved: int,
    cos=None, sin=None, rounded_cos=None, rounded_sin=None,
) -> None:  # fmt: skip
    """The operator: arguments in its order, the kernel's in that of the table."""
    if not (k.shape[0] and table.numel() and k_pages.shape[0] and k_pages.shape[1]):
        return
    spec = _spec(k.dtype, k.shape[2], v.shape[2])
    kernel = resolve(spec, "append", *place_of(k))
    if cos is None:
        cos = sin = _nothing(torch.float32, k.device)
    if rounded_cos is None:
        rounded_cos = rounded_sin = _nothing(k.dtype, k.device)
    written = readable_rows(k_pages), readable_rows(v_pages)
    numbers = [x.contiguous() for x in (rotary_seqlens, starts, ends, first, past, table)]
    k, v = readable_rows(k), readable_rows(v)
    memory = [x.untyped_storage().data_ptr() for x in written if x.numel()]
    if k.untyped_storage().data_ptr() in memory or v.untyped_storage().data_ptr() in memory:
        k, v = k.clone(), v.clone()  # rows of the cache itself, which may be written before read
    kernel.function(
        k, v, cos, sin, rounded_cos, rounded_sin, numbers[0], *written, *numbers[1:],
        int(interleaved),
    )  # fmt: skip
    for target, source in zip((k_pages, v_pages), written, strict=True):
        if target is not source:
            # As kernels write: whatever autograd would say of it, the other pages are written.
            with torch.inference_mode():
                target.copy_(source)
        torch.autograd.graph.increment_version(target)


@lru_cache(maxsize=256)
def _spec(dtype: torch.dtype, head_dim: int, head_dim_v: int) -> AttentionSpec:
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    return AttentionSpec(dtype=NAMES[dtype], sequences="paged", **widths)


@lru_cache(maxsize=64)
def _nothing(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A table of no angles."""
    with torch.inference_mode(False):
        return torch.empty((0, 0), dtype=dtype, device=device)


register_update(_append, _run)
