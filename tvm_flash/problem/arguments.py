"""The call of a kernel: its arguments in order, each with its shape, its dtype and what it is for.

One table. Definitions, launchers, manifests, operators, verification and tuning are made from it.
Sizes have names: B entries, H heads and Hk key/value heads, Sq queries, Sk keys, D and Dv columns;
block_q, block_k, block_v (columns of v) and head_dim_pad are of a kernel's tile (its manifest),
copies of ``size_values``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .argument import ROLES, WRITTEN, Argument, Padded, Past, Up
from .argument_tables import TABLES
from .lengths import MAX_SEQLEN, is_forward
from .linear import LINEAR_NUMBERS, linear_table
from .row_softmax import softmax_tables
from .sequences import KINDS
from .spec import BLOCK_LISTS, AttentionSpec

__all__ = ["NUMBERS", "ROLES", "TABLE", "TABLES", "WRITTEN", "Argument", "Past", "Up"]

TILE_SIZES = ("block_q", "block_k", "block_v", "head_dim_pad")


def names(found: Sequence[Argument], *roles: str) -> tuple[str, ...]:
    """The names of those arguments that have one of ``roles``, in order."""
    return tuple(a.name for a in found if a.role in roles)


def values_before(found: Sequence[Argument]) -> tuple[str, ...]:
    """The names of those written arguments that hold values before."""
    return tuple(a.name for a in found if a.holds_values)


# Dense sequences, as most callers have them.
TABLE = TABLES["dense"]
TABLE |= {"linear": linear_table(KINDS["dense"].shapes), **softmax_tables()}
# Names of memory that kernels use among themselves, of which nobody else reads anything.
WORKSPACES = tuple(dict.fromkeys(n for t in TABLE.values() for n in names(t, "workspace")))
# Positions and window ends are added in int32.
MAX_WINDOW = 2**30
# The cap, its inverse and a score of 2^-26 or more over the cap are normal float32 numbers: GPUs
# flush others to zero.
SOFTCAP_LIMITS = (2.0**-126, 2.0**100)
# A scale that float32 has no finite number for would make NaN of a dot product of 0.
MAX_SCALE = (2 - 2.0**-23) * 2.0**127
# The largest float32 below 1: some weight is kept.
MAX_DROPOUT = 1 - 2.0**-24


def _end(name: str) -> Argument:
    return Argument(name, (), "number", "int32", limits=(0, MAX_WINDOW), absent=-1)


# Numbers with an ``absent`` belong to the specs whose field of that name is true.
NUMBERS = (
    Argument("softmax_scale", (), "number", "float32", limits=(-MAX_SCALE, MAX_SCALE)),
    _end("window_left"),
    _end("window_right"),
    Argument("softcap", (), "number", "float32", limits=SOFTCAP_LIMITS, absent=0.0),
    Argument("dropout", (), "number", "float32", limits=(0.0, MAX_DROPOUT), absent=0.0),
)


# Keys that no entry exceeds: of the kinds of sequences whose tensors do not say it.
LONGEST = Argument("max_seqlen_k", (), "number", "int32", limits=(0, MAX_SEQLEN))


# Whether a pair that is rotated is (2 i, 2 i + 1), or (i, i + rotary_dim / 2).
INTERLEAVED = Argument("interleaved", (), "number", "int32", limits=(0, 1))
# The numbers of directions that compute no scores.
_OTHER_NUMBERS = {
    "append": (INTERLEAVED,),
    "linear": LINEAR_NUMBERS,
    **dict.fromkeys(softmax_tables(), ()),
}


def numbers_of(spec: AttentionSpec, direction: str = "forward") -> tuple[Argument, ...]:
    """The numbers of a call of ``spec``, in the order of ``NUMBERS``."""
    if direction in _OTHER_NUMBERS:
        return _OTHER_NUMBERS[direction]
    own = tuple(a for a in NUMBERS if a.absent is None or getattr(spec, a.name))
    return own if spec.sequences == "dense" else (*own, LONGEST)


# What a kind of softmax takes besides the scores: an input has the name of its kind.
SOFTMAX_INPUTS = ("sink",)
# What draws the weights that dropout drops.
RNG = "rng"


def arguments(spec: AttentionSpec, direction: str) -> tuple[Argument, ...]:
    """What the kernel of ``spec`` in ``direction`` is called with, in order.

    Those of ``TABLES`` that the spec has, its captured tables, its numbers.
    """
    forward = is_forward(direction)
    statistics = spec.forward_statistics if forward else spec.saved_statistics
    absent = {"lse", "lse_low"}.difference(statistics)
    for name in {*SOFTMAX_INPUTS} - {spec.softmax}:
        absent |= {name, f"d{name}"}
    if not spec.dropout:
        absent |= {RNG}
    if not spec.row_statistics:
        absent |= {"dlse", "delta"}
    own = [replace(a, dtype=a.dtype or spec.dtype) for a in TABLES[spec.sequences][direction]]
    tables, numbers = _tables(spec), numbers_of(spec, direction)
    if direction in ("tables", "tables_deterministic"):
        of_learned = [tables[n] for n in spec.learned]
        tables += [_sums(f"d{a.name}", a, "output", "float32") for a in of_learned]
        if direction != "tables":
            largest = Argument("largest", ("learned",), "workspace", "int32", True, True)
            fixed = [_sums(f"fixed{n}", tables[n], "workspace", "int64") for n in spec.learned]
            tables += [largest, *fixed]
    return (*(a for a in own if a.name not in absent), *tables, *numbers)


def _sums(name: str, table: Argument, role: str, dtype: str) -> Argument:
    """Sums for each element of a captured table, in copies that are to be added."""
    return Argument(name, ("parts", *table.shape), role, dtype, dense=True, zeroed=True)


def direction_reasons(spec: AttentionSpec, direction: str) -> list[str]:
    """Why ``spec`` has no kernels of ``direction`` (empty: it has, or none is called so)."""
    if not any(direction in table for table in TABLES.values()):
        return []
    own = own_directions(spec)
    if own and direction not in own:
        return [f"{spec.name}: its directions are {', '.join(own)}, not {direction!r}"]
    if not own and direction in OWN_DIRECTIONS:
        return [f"{spec.name}: direction {direction!r} is of {OWN_DIRECTIONS[direction]}"]
    if spec.block_mask and direction == "forward_split":
        return [f"{spec.name}: the keys of listed blocks are not divided"]
    if direction in TABLES[spec.sequences]:
        return []
    if direction == "append":
        return [f"{spec.name}: keys in pages alone are appended to, of sequences='paged'"]
    return [f"{spec.name}: attention over keys in pages has no gradient"]


# Directions of specs that have no others, and of which specs.
OWN_DIRECTIONS = {
    "linear": "specs with computes='linear'",
    **dict.fromkeys(softmax_tables(), "specs with computes='softmax'"),
    **dict.fromkeys(("tables", "tables_deterministic"), "specs with learned tables"),
}
# Those of what a spec computes besides attention: the forward, and a backward of its own.
_COMPUTED = {"linear": ("linear",), "softmax": tuple(softmax_tables())}


def own_directions(spec: AttentionSpec) -> tuple[str, ...]:
    """The only directions that ``spec`` has; empty where it has attention's."""
    if spec.computes != "attention":
        return _COMPUTED[spec.computes]
    return ("tables", "tables_deterministic") if spec.learned else ()


def _tables(spec: AttentionSpec) -> list[Argument]:
    tables = []
    for n, kind in enumerate(spec.table_types):
        shape = tuple(f"table{n}_dim{axis}" for axis in range(kind.ndim))
        if spec.alibi and n == 0:
            shape = ("B", "H")  # a slope for each
        if kind == BLOCK_LISTS[0] and n >= len(spec.table_types) - len(BLOCK_LISTS):
            shape = ("B", "H", shape[2])  # a list for each block of each
        tables.append(Argument(f"table{n}", shape, "input", kind.dtype, is_table=True))
    return tables


def missing_sizes(direction: str, meta: Mapping[str, int]) -> list[str]:
    """The sizes of a kernel's tile that its workspaces need and ``meta`` does not give."""
    table = next(own[direction] for own in TABLES.values() if direction in own)
    sizes = [size for argument in table for size in argument.shape]
    needed = {size.block for size in sizes if isinstance(size, Padded)}
    needed |= {"block_k"} if "copies" in sizes else set()
    needed |= {"head_dim_pad"} & {size for size in sizes if isinstance(size, str)}
    return [name for name in TILE_SIZES if name in needed and name not in meta]


def call_sizes(query: Sequence[Any], value: Sequence[Any]) -> tuple:
    """B, H, Hk, Sq, Sk of the shapes q (B, Sq, H, D) and v (B, Sk, Hk, Dv)."""
    return query[0], query[2], value[2], query[1], value[1]


def named_sizes(sizes: Sequence[Any]) -> dict[str, Any]:
    """B, H, Hk, Sq, Sk by their names."""
    return dict(zip(("B", "H", "Hk", "Sq", "Sk"), sizes, strict=True))


def given_sizes(found: Sequence[Argument], given: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that ``given`` tensors have, by name, as their arguments' shapes name them."""
    tensors = ((a, given.get(a.name)) for a in found if a.is_tensor)
    return _sizes((a.shape, x.shape) for a, x in tensors if x is not None)


def sizes_of_shapes(
    found: Sequence[Argument], shapes: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """As ``given_sizes``, of the ``shapes`` of tensors."""
    return _sizes((a.shape, shapes[a.name]) for a in found if a.name in shapes)


def _sizes(pairs) -> dict[str, Any]:
    """Extents by the names of sizes, of pairs of an argument's shape and a tensor's."""
    return {
        size: extent
        for shape, extents in pairs
        for size, extent in zip(shape, extents, strict=True)
        if isinstance(size, str)
    }


def size_values(
    spec: AttentionSpec,
    sizes: Sequence[Any] | Mapping[str, Any],
    meta: Mapping[str, int] | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """The sizes of a call by name; ``sizes`` are B, H, Hk, Sq, Sk, or named (max_seqlen_k too).

    meta: block_q, block_k and head_dim_pad of a kernel that has workspaces. threads: of a CPU. With
    C private copies of dQ, C key tiles of a head can run at once: as many as the threads need where
    heads of equal entries, or of the longest beside all others, cannot occupy them. On GPUs, where
    threads is 0, there is one. splits, parts of the keys, are 1 where ``sizes`` do not say more.
    """
    if not isinstance(sizes, Mapping):
        sizes = named_sizes(sizes)
    copies = 1
    if threads:
        longest = sizes["Sk"] if "Sk" in sizes else sizes["max_seqlen_k"]
        total = sizes["B"] * longest if "Sk" in sizes else max(sizes.get("total_k", 0), longest)
        key_tiles = -(-longest // meta["block_k"])
        wanted = -(-2 * threads * max(longest, 1) // max(total * sizes["Hk"], 1))
        copies = max(1, min(key_tiles, wanted))
    columns = columns_of(spec)
    return {"splits": 1, **sizes, **columns, "copies": copies, **(meta or {})}


def columns_of(spec: AttentionSpec) -> dict[str, int]:
    """The sizes that ``spec`` fixes, by name."""
    dims = {"D": spec.head_dim, "Dv": spec.head_dim_v}
    return dims | {f"{name}+1": size + 1 for name, size in dims.items()}


def shape_of(argument: Argument, values: Mapping[str, Any]) -> tuple:
    """The shape of ``argument`` for ``size_values``."""
    return tuple(
        size.of(values[size.size], values[size.block])
        if isinstance(size, Padded)
        else values.get(size, size)
        for size in argument.shape
    )
