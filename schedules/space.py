"""Spaces that tuning searches: named knobs with their values, and what rules a point out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..problem.spec import AttentionSpec

Value = int | str | bool
# Four times the largest register file: beyond it LLVM spills everything and takes minutes.
_MOST_REGISTERS = 128
# One value of each knob, in the order of the space's knobs.
Point = tuple[Value, ...]


@dataclass(frozen=True)
class Knob:
    """A field of a config that may vary: what it means, and the values worth trying."""

    name: str
    values: tuple[Value, ...]
    meaning: str


def vector_registers(rows: int, lanes: int, vector: int) -> int:
    """Registers of a micro-kernel: sums, a row of one operand, a broadcast of the other."""
    return (rows + 1) * (lanes // vector) + 1


def block_reasons(
    spec: AttentionSpec, block_q: int, block_k: int, merged: str | None = None
) -> list[str]:
    """Why tiles of these sizes do not divide the blocks that calls of ``spec`` list.

    merged: "block_q" or "block_k", of which tiles of several whole blocks are as good.
    """
    blocks = spec.block_mask or (block_q, block_k)
    sizes = zip(
        ("block_q", "block_k"), ("queries", "keys"), (block_q, block_k), blocks, strict=True
    )
    return [
        f"{name}={own} must divide the {whole} {kind} of a block of block_mask"
        + ", or be a multiple of them" * (name == merged)
        for name, kind, own, whole in sizes
        if whole % own and (name != merged or own % whole)
    ]


def register_reasons(filled: int) -> list[str]:
    """Why a micro-kernel of so many vector registers is not compiled (empty: it is)."""
    if filled <= _MOST_REGISTERS:
        return []
    return [f"its micro-kernel fills {filled} vector registers, the limit is {_MOST_REGISTERS}"]


@dataclass(frozen=True)
class Space:
    """The configs that differ from ``start`` in ``knobs`` alone.

    name: the schedule's. start: the config of a build without records;
    its values count among those of the knobs. refuse(config) gives the reasons why a config cannot
    serve the problem (none: it can), without compiling anything.
    """

    name: str
    knobs: tuple[Knob, ...]
    start: Any
    refuse: Callable[[Any], Sequence[str]]

    @staticmethod
    def around(start: Any, knobs: Sequence[Knob], refuse: Callable[[Any], Sequence[str]]) -> Space:
        """The space of ``knobs``, whose values are widened to those of ``start``."""
        own = [getattr(start, knob.name) for knob in knobs]
        widened = tuple(
            replace(knob, values=tuple(sorted({*knob.values, value})))
            for knob, value in zip(knobs, own, strict=True)
        )
        return Space(start.schedule, widened, start, refuse)

    def restricted(self, values: Mapping[str, Sequence[Value]]) -> Space:
        """The same with only ``values`` (by knob) for some knobs; [one value] fixes a knob."""
        unknown = values.keys() - {knob.name for knob in self.knobs}
        if unknown:
            names = ", ".join(knob.name for knob in self.knobs)
            raise ValueError(f"{', '.join(sorted(unknown))}: {self.name} has knobs {names}")
        kept = tuple(
            replace(knob, values=tuple(values.get(knob.name, knob.values))) for knob in self.knobs
        )
        return replace(self, knobs=kept)

    @property
    def size(self) -> int:
        """Points, valid or not."""
        return math.prod(len(knob.values) for knob in self.knobs)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All valid points in the order of a grid: the last knob varies fastest."""
        return tuple(self._valid())

    def config(self, point: Point) -> Any:
        """The config at ``point``."""
        names = (knob.name for knob in self.knobs)
        return replace(self.start, **dict(zip(names, point, strict=True)))

    def point(self, config: Any) -> Point:
        """The values of ``config``, which need not be among those of the knobs."""
        return tuple(getattr(config, knob.name) for knob in self.knobs)

    def __contains__(self, point: Point) -> bool:
        return (
            len(point) == len(self.knobs)
            and all(value in knob.values for knob, value in zip(self.knobs, point, strict=True))
            and not self.reasons(point)
        )

    def reasons(self, point: Point) -> Sequence[str]:
        """Why the config at ``point`` cannot serve (empty: it can)."""
        return self.refuse(self.config(point))

    def _valid(self) -> Iterator[Point]:
        for point in itertools.product(*(knob.values for knob in self.knobs)):
            if not self.reasons(point):
                yield point
