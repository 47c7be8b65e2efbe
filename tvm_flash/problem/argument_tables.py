"""The arguments of kernels of attention by kind of sequences and by direction."""

from __future__ import annotations

from .argument import Argument
from .sequences import KINDS, Shapes
from .sequences.shapes import entry_numbers

_SINK = Argument("sink", ("H",), "input", "float32", dense=True, optional=True)
_RNG = Argument("rng", (2,), "input", "int64", dense=True, optional=True)


class _Kind:
    """The arguments of a kind of sequences, by what their rows are."""

    def __init__(self, shapes: Shapes):
        self._shapes = shapes
        self.own = shapes.own

    def rows(self, name: str, role: str, width: str, like: str = "") -> Argument:
        """A row for each query and head."""
        return Argument(name, (*self._shapes.queries, "H", width), role, like=like)

    def keys(self, name: str, role: str, width: str, like: str = "") -> Argument:
        """A row for each key and key/value head."""
        return Argument(name, (*self._shapes.keys, "Hk", width), role, like=like)

    def statistic(self, name: str, role: str, optional: bool = False) -> Argument:
        """A number for each query and head."""
        shape = self._shapes.statistic
        return Argument(name, shape, role, "float32", dense=True, optional=optional)

    def part(self, name: str, *columns: str) -> Argument:
        """What each part of the keys has for each query and head."""
        shape = ("splits", *self._shapes.statistic, *columns)
        return Argument(name, shape, "workspace", "float32", dense=True)

    def sums(self, name: str) -> Argument:
        """A row of float32 for each query and head, in copies that are added."""
        shape = ("copies", *self._shapes.sums, "head_dim_pad")
        return Argument(name, shape, "workspace", "float32", dense=True, zeroed=True)

    @property
    def inputs(self) -> tuple[Argument, ...]:
        """q, k and v."""
        return (
            self.rows("q", "input", "D"),
            self.keys("k", "input", "D"),
            self.keys("v", "input", "Dv"),
        )


def _forward(kind: _Kind, *parts: Argument) -> tuple[Argument, ...]:
    return (
        *kind.inputs,
        kind.rows("out", "output", "Dv"),
        kind.statistic("lse", "output"),
        kind.statistic("lse_low", "output", optional=True),
        *parts,
        *kind.own,
        _SINK,
        _RNG,
    )


def _backward(kind: _Kind) -> tuple[Argument, ...]:
    return (
        *kind.inputs,
        kind.rows("out", "saved", "Dv"),
        kind.rows("dout", "input", "Dv"),
        kind.statistic("lse", "saved"),
        kind.statistic("lse_low", "saved", optional=True),
        kind.statistic("dlse", "input", optional=True),
        kind.rows("dq", "output", "D", like="q"),
        kind.keys("dk", "output", "D", like="k"),
        kind.keys("dv", "output", "Dv", like="v"),
        Argument("dsink", ("H",), "output", "float32", dense=True, optional=True),
        kind.statistic("delta", "workspace"),
        kind.sums("dq_acc"),
        *kind.own,
        _SINK,
        _RNG,
    )


# What the gradients of captured tables are computed of.
_OF_TABLES = ("q", "k", "v", "out", "dout", "lse", "lse_low", "dlse", "delta")


def _table(shapes: Shapes) -> dict[str, tuple[Argument, ...]]:
    """The arguments of a kind of sequences by direction (a name in artifact.DIRECTIONS)."""
    kind = _Kind(shapes)
    # The states of a row by part of the keys.
    parts = kind.part("part_out", "head_dim_pad"), kind.part("part_m"), kind.part("part_l")
    backward = _backward(kind)
    tables = (*(a for a in backward if a.name in _OF_TABLES), *kind.own, _RNG)
    return {
        "forward": _forward(kind),
        "forward_split": _forward(kind, *parts),
        "backward": backward,
        # It sums dQ in registers.
        "backward_deterministic": tuple(a for a in backward if a.name != "dq_acc"),
        **dict.fromkeys(("tables", "tables_deterministic"), tables),
    }


def _append_table(shapes: Shapes) -> tuple[Argument, ...]:
    """The arguments of rows that are written into pages, keys rotated by their positions.

    Row i of entry b is row starts_q[b] + i of k_new and v_new; it goes to position starts_k[b] + i,
    and its angles stand in row rotary_seqlens[b] + i of cos and sin, or of others in the dtype of
    the keys; without columns nothing is rotated. v has heads of its own, also none.
    """
    keys, values = (*shapes.keys, "Hk", "D"), (*shapes.keys, "Hv", "Dv")
    exact, rounded = ("angles", "pairs"), ("rounded_angles", "rounded_pairs")
    return (
        Argument("k_new", (*shapes.queries, *keys[-2:]), "input"),
        Argument("v_new", (*shapes.queries, *values[-2:]), "input"),
        Argument("cos", exact, "input", "float32", optional=True),
        Argument("sin", exact, "input", "float32", optional=True),
        Argument("rounded_cos", rounded, "input", optional=True),
        Argument("rounded_sin", rounded, "input", optional=True),
        entry_numbers("rotary_seqlens"),
        Argument("k_pages", keys, "updated"),
        Argument("v_pages", values, "updated"),
        *shapes.own,
    )


# By kind of sequences, then by direction. Pages may be others' too: no gradient goes into them.
TABLES = {name: _table(kind.shapes) for name, kind in KINDS.items()}
TABLES["paged"] = {
    "forward": TABLES["paged"]["forward"],
    "forward_split": TABLES["paged"]["forward_split"],
    "append": _append_table(KINDS["paged"].shapes),
}
