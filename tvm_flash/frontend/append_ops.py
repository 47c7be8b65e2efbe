"""Rows into pages, keys rotated on the way: an operator that writes in place, and its kernel."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ..problem.arguments import INTERLEAVED, TABLES, arguments
from ..problem.spec import AttentionSpec
from ..runtime.kernels import resolve
from .checks import NAMES
from .library import define, register_update
from .observers import is_plain_call
from .placement import has_readable_rows, place_of
from .recording import named
from .schemas import schema

_append = define(schema("append", TABLES["paged"]["append"], (INTERLEAVED,)))


class Angles(NamedTuple):
    """cos and sin (positions, rotary_dim / 2) of a rotation, and which columns make a pair.

    float32, or in the dtype of the keys as ``rounded``; None where there are none.
    """

    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    rounded_cos: torch.Tensor | None = None
    rounded_sin: torch.Tensor | None = None
    interleaved: bool = False

    @classmethod
    def of(cls, cos, sin, interleaved: bool, dtype: torch.dtype) -> Angles:
        """Tables of any floating dtype for rows of ``dtype``."""
        cos, sin = (x if x.stride(1) == 1 else x.contiguous() for x in (cos, sin))
        if cos.dtype == dtype != torch.float32 and sin.dtype == dtype:
            return cls(None, None, cos, sin, interleaved)
        return cls(cos.float(), sin.float(), None, None, interleaved)


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


def append(k, v, k_pages, v_pages, places: Places, rotary_seqlens, angles: Angles) -> None:
    """Write rows of k (total, Hk, D), rotated, and v (total, Hv, Dv), of any Hv, into their pages.

    k_pages (pages, page_size, Hk, D), v_pages alike, of any strides. rotary_seqlens (B,) int32: the
    position of an entry's first row in the tables of ``angles``; a row outside them is not rotated.
    Rows of no entry, and those whose place lies outside the pages, are left out. Checked before:
    shapes, dtypes and devices. Raises UnsupportedSpec where there is no kernel.
    """
    *tables, interleaved = angles
    call = (k, v, rotary_seqlens, k_pages, v_pages, *places, int(interleaved), *tables)
    others = [v, rotary_seqlens, *places, *(x for x in tables if x is not None)]
    if torch.compiler.is_compiling() or not is_plain_call(k, k_pages, v_pages, others):
        _append(*call)
    else:
        _run(*call)


def rotated(x, cu_seqlens, rotary_seqlens, angles: Angles, head_dim_v=None, out=None):
    """Packed rows of x (total, H, D), rotated as ``append`` does it: into ``out``, or new memory.

    Rows of no entry are left out. head_dim_v: of the kernel that does it, default that of x.
    """
    out = x.new_empty(x.shape) if out is None else out
    none = x.new_empty((x.shape[0], 0, x.shape[2] if head_dim_v is None else head_dim_v))
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    # One page, of which each entry has its own rows.
    places = Places(starts, ends, starts, ends, starts.new_zeros((starts.shape[0], 1)))
    append(x, none, out[None], none[None], places, rotary_seqlens, angles)
    return out


def _run(*inputs) -> None:
    given = named(_append, inputs)
    k, v, names = given["k_new"], given["v_new"], ("k_pages", "v_pages")
    pages = [given[name] for name in names]
    if k.numel() + v.numel() == 0 or given["page_table"].numel() * pages[0][..., 0, 0].numel() == 0:
        return
    function, order = _kernel(k.dtype, k.shape[2], v.shape[2], *place_of(k))
    nothing = {"cos": torch.float32, "sin": torch.float32}
    written = [_readable(x) for x in pages]
    given |= {"k_new": _readable(k), "v_new": _readable(v)}
    given |= dict(zip(names, written, strict=True))
    function(*[
        k.new_empty((0, 0), dtype=nothing.get(name)) if given[name] is None
        else given[name].contiguous() if dense else given[name]
        for name, dense in order
    ])  # fmt: skip
    for target, source in zip(pages, written, strict=True):
        if target is not source:
            target.copy_(source)
        torch.autograd.graph.increment_version(target)


@lru_cache(maxsize=256)
def _spec(dtype: torch.dtype, head_dim: int, head_dim_v: int) -> tuple[AttentionSpec, tuple]:
    """The spec of an append kernel; name of each of its arguments, and whether it is dense."""
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    spec = AttentionSpec(dtype=NAMES[dtype], sequences="paged", **widths)
    return spec, tuple((a.name, a.dense) for a in arguments(spec, "append"))


def _kernel(dtype, head_dim: int, head_dim_v: int, device: str, capability) -> tuple:
    spec, order = _spec(dtype, head_dim, head_dim_v)
    return resolve(spec, "append", device, capability).function, order


def _readable(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself where kernels can read and write its rows, else a copy."""
    return x if has_readable_rows(x) else x.clone(memory_format=torch.contiguous_format)


register_update(_append, _run)
