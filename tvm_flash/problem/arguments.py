"""The call of a kernel: its arguments in order, each with its shape, its dtype and what it is for.

One table. Definitions, launchers, manifests, operators, verification and tuning are made from it.
Sizes have names: B entries, H heads and Hk key/value heads, Sq queries, Sk keys, D and Dv columns;
block_q, block_k and head_dim_pad are of a kernel's tile (its manifest), copies of ``size_values``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .spec import AttentionSpec

TILE_SIZES = ("block_q", "block_k", "head_dim_pad")

# input: of the caller. saved: what the forward gave. output: written whole. workspace: of any
# content, or of zeros. updated: read and written in place. number: passed by value.
ROLES = ("input", "saved", "output", "workspace", "updated", "number")
WRITTEN = ("output", "workspace", "updated")


@dataclass(frozen=True)
class Up:
    """The size ``size`` rounded up to a multiple of the size ``block``; larger is allowed."""

    size: str
    block: str

    def __str__(self) -> str:
        return f"Up({self.size}, {self.block})"


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    shape: the names of its sizes; () for a number. dtype: "" where the table leaves it to the
    spec. dense: contiguous; all others have run-time strides, the last of which is 1. zeroed: it
    must hold zeros. optional: operators may be called without it. like: the argument that it has
    the strides of where kernels can write these. limits: least and most that launchers accept.
    absent: what operators take for a number that the spec has not; None: every spec has it.
    """

    name: str
    shape: tuple[str | Up, ...]
    role: str
    dtype: str = ""
    dense: bool = False
    zeroed: bool = False
    optional: bool = False
    like: str = ""
    limits: tuple[float, float] | None = None
    absent: float | None = None

    @property
    def is_tensor(self) -> bool:
        return self.role != "number"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a manifest; ``dense`` and ``zeroed`` are in it where they are true."""
        fields = {"name": self.name, "dtype": self.dtype, "role": self.role}
        shape = {"shape": [str(size) for size in self.shape]} if self.is_tensor else {}
        flags = {name: True for name in ("dense", "zeroed") if getattr(self, name)}
        return {**fields, **shape, **flags}


def _rows(name: str, role: str, width: str, like: str = "") -> Argument:
    """An argument (B, Sq, H, width): a row for each query."""
    return Argument(name, ("B", "Sq", "H", width), role, like=like)


def _keys(name: str, role: str, width: str, like: str = "") -> Argument:
    """An argument (B, Sk, Hk, width): a row for each key."""
    return Argument(name, ("B", "Sk", "Hk", width), role, like=like)


def _statistic(name: str, role: str, optional: bool = False) -> Argument:
    """An argument (B, H, Sq) float32: a number for each row."""
    return Argument(name, ("B", "H", "Sq"), role, "float32", dense=True, optional=optional)


_INPUTS = (_rows("q", "input", "D"), _keys("k", "input", "D"), _keys("v", "input", "Dv"))
_SUMS = ("copies", "B", "H", Up("Sq", "block_q"), "head_dim_pad")

_FORWARD = (
    *_INPUTS,
    _rows("out", "output", "Dv"),
    _statistic("lse", "output"),
    _statistic("lse_low", "output", optional=True),
)
_BACKWARD = (
    *_INPUTS,
    _rows("out", "saved", "Dv"),
    _rows("dout", "input", "Dv"),
    _statistic("lse", "saved"),
    _statistic("lse_low", "saved", optional=True),
    _statistic("dlse", "input", optional=True),
    _rows("dq", "output", "D", like="q"),
    _keys("dk", "output", "D", like="k"),
    _keys("dv", "output", "Dv", like="v"),
    _statistic("delta", "workspace"),
    Argument("dq_acc", _SUMS, "workspace", "float32", dense=True, zeroed=True),
)
# By direction (a name in artifact.DIRECTIONS). The deterministic one sums dQ in registers.
TABLE = {
    "forward": _FORWARD,
    "backward": _BACKWARD,
    "backward_deterministic": tuple(a for a in _BACKWARD if a.name != "dq_acc"),
}
# Names of what the caller zeroes.
ZEROED = tuple(a.name for a in _BACKWARD if a.zeroed)
# Positions and window ends are added in int32.
MAX_WINDOW = 2**30
# The cap, its inverse and a score of 2^-26 or more over the cap are normal float32 numbers: GPUs
# flush others to zero.
SOFTCAP_LIMITS = (2.0**-126, 2.0**100)
# A scale that float32 has no finite number for would make NaN of a dot product of 0.
MAX_SCALE = (2 - 2.0**-23) * 2.0**127


def _end(name: str) -> Argument:
    return Argument(name, (), "number", "int32", limits=(0, MAX_WINDOW), absent=-1)


# Numbers with an ``absent`` belong to the specs whose field of that name is true.
NUMBERS = (
    Argument("softmax_scale", (), "number", "float32", limits=(-MAX_SCALE, MAX_SCALE)),
    _end("window_left"),
    _end("window_right"),
    Argument("softcap", (), "number", "float32", limits=SOFTCAP_LIMITS, absent=0.0),
)


def numbers_of(spec: AttentionSpec) -> tuple[Argument, ...]:
    """The numbers of a call of ``spec``, in the order of ``NUMBERS``."""
    return tuple(a for a in NUMBERS if a.absent is None or getattr(spec, a.name))


def arguments(spec: AttentionSpec, direction: str) -> tuple[Argument, ...]:
    """What the kernel of ``spec`` in ``direction`` is called with, in order.

    Those of ``TABLE`` that the spec has, its captured tables, its numbers.
    """
    forward = direction == "forward"
    statistics = spec.forward_statistics if forward else spec.saved_statistics
    absent = {"lse", "lse_low"}.difference(statistics)
    own = [replace(a, dtype=a.dtype or spec.dtype) for a in TABLE[direction]]
    return (*(a for a in own if a.name not in absent), *_tables(spec), *numbers_of(spec))


def _tables(spec: AttentionSpec) -> list[Argument]:
    tables = []
    for n, kind in enumerate(spec.table_types):
        shape = tuple(f"table{n}_dim{axis}" for axis in range(kind.ndim))
        if spec.alibi and n == 0:
            shape = ("B", "H")  # a slope for each
        tables.append(Argument(f"table{n}", shape, "input", kind.dtype))
    return tables


def missing_sizes(direction: str, meta: Mapping[str, int]) -> list[str]:
    """The sizes of a kernel's tile that its workspaces need and ``meta`` does not give."""
    sizes = [size for argument in TABLE[direction] for size in argument.shape]
    needed = {size.block for size in sizes if isinstance(size, Up)}
    needed |= {"block_k"} if "copies" in sizes else set()
    needed |= {"head_dim_pad"} & {size for size in sizes if isinstance(size, str)}
    return [name for name in TILE_SIZES if name in needed and name not in meta]


def names(found: Sequence[Argument], *roles: str) -> tuple[str, ...]:
    """The names of those arguments that have one of ``roles``, in order."""
    return tuple(a.name for a in found if a.role in roles)


def call_sizes(query: Sequence[Any], value: Sequence[Any]) -> tuple:
    """B, H, Hk, Sq, Sk of the shapes q (B, Sq, H, D) and v (B, Sk, Hk, Dv)."""
    return query[0], query[2], value[2], query[1], value[1]


def named_sizes(sizes: Sequence[Any]) -> dict[str, Any]:
    """B, H, Hk, Sq, Sk by their names."""
    return dict(zip(("B", "H", "Hk", "Sq", "Sk"), sizes, strict=True))


def size_values(
    spec: AttentionSpec,
    sizes: Sequence[Any],
    meta: Mapping[str, int] | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """The sizes of a call by name; ``sizes`` are B, H, Hk, Sq, Sk.

    meta: block_q, block_k and head_dim_pad of a kernel that has workspaces. threads: of a CPU. With
    C private copies of dQ, C key tiles of a head can run at once: as many as the threads need where
    batch x heads cannot occupy them. On GPUs, where threads is 0, there is one.
    """
    batch, _, kv_heads, _, seqlen_k = sizes
    copies = 1
    if threads:
        key_tiles = -(-seqlen_k // meta["block_k"])
        copies = min(key_tiles, max(1, -(-2 * threads // (batch * kv_heads))))
    columns = {"D": spec.head_dim, "Dv": spec.head_dim_v}
    return {**named_sizes(sizes), **columns, "copies": copies, **(meta or {})}


def shape_of(argument: Argument, values: Mapping[str, Any]) -> tuple:
    """The shape of ``argument`` for ``size_values``."""
    return tuple(
        -(-values[size.size] // values[size.block]) * values[size.block]
        if isinstance(size, Up)
        else values[size]
        for size in argument.shape
    )
