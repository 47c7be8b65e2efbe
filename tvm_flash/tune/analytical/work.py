"""What a GPU kernel does, in the units that an SM's parts work through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ...codegen.sass.listing import Instruction


@dataclass(frozen=True)
class Amounts:
    """Work of some blocks of a kernel.

    tensor: FLOP of 16-bit products, TF32's counted twice, which take twice as long. special, float,
    integer: lanes. shared: bytes through shared memory's banks, conflicts included. issued: warp
    instructions. l2: bytes between SM and L2. barriers: times that a block met.
    """

    tensor: float = 0.0
    special: float = 0.0
    float32: float = 0.0
    integer: float = 0.0
    shared: float = 0.0
    issued: float = 0.0
    l2: float = 0.0
    barriers: float = 0.0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __mul__(self, factor: float) -> Amounts:
        return Amounts(*(a * factor for a in self.values()))

    def values(self) -> tuple[float, ...]:
        """The amounts in the order of the fields."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def to_json(self) -> dict[str, float]:
        return {f.name: round(getattr(self, f.name), 1) for f in fields(self)}


@dataclass(frozen=True)
class KernelWork:
    """One launch: what each block does once, and for each tile that it visits.

    tiles: visited tiles by block, in the order of launch. warps: of a block. registers: of a
    thread. shared_bytes: of a block. overlap: the part of a tile's time in which the next tile's
    data is on its way (0: nothing is awaited). round: a steady round of the main loop in machine
    code, which is simulated for a tile's time (empty: the time is estimated from the amounts).
    """

    base: Amounts
    tile: Amounts
    tiles: Sequence[int]
    warps: int
    registers: int
    shared_bytes: int
    overlap: float = 0.0
    round: Sequence[Instruction] = ()


def solved(runs: Sequence[tuple[int, int, Amounts]]) -> tuple[Amounts, Amounts]:
    """(of a block, of a tile) from two runs, each (blocks, tiles, what they did together).

    A kernel without tiles does all of its work once a block. Where a narrow window gives every
    block as many tiles in both runs, they cannot be told apart: all is the tiles'.
    """
    (blocks, tiles, first), (blocks2, tiles2, second) = runs
    if not tiles:
        return first * (1 / blocks), Amounts()
    determinant = blocks * tiles2 - blocks2 * tiles
    if not determinant:
        return Amounts(), first * (1 / tiles)
    base = (first * tiles2 + second * -tiles) * (1 / determinant)
    tile = (second * blocks + first * -blocks2) * (1 / determinant)
    return base, tile
