"""Clocks of a CPU micro-kernel: multiply-adds against latency, ports, and where operands lie."""

from __future__ import annotations

from dataclasses import dataclass

from .core import AMX_LOAD, AMX_PRODUCT, AMX_STORE, Core

# Clocks to enter and leave a micro-kernel: its loop is a branch that ends unforeseen, and the last
# sums wait for their latency.
CALL = 16
# Of a cache that data shall stay in, the part that they may fill: other data pass through too.
FILL = 0.75
# Compare, add and branch of a loop, fused to two micro-operations.
_LOOP = 2
_WORD, _LINE = 4, 64


@dataclass(frozen=True)
class Micro:
    """A micro-kernel: rows x vectors of sums, ``vector`` lanes each. unit: fma, dot or amx.

    fresh: sums start at zero, not at what memory holds. unroll: steps in one iteration.
    """

    rows: int
    lanes: int
    vector: int
    unit: str = "fma"
    fresh: bool = False
    unroll: int = 1

    @property
    def vectors(self) -> int:
        """Registers of a row."""
        return self.lanes // self.vector


def rate_of(core: Core, reused: int) -> float:
    """Bytes a clock at which operands arrive that are read again after ``reused`` other bytes."""
    if reused <= FILL * core.l1:
        return core.loads * 4 * 16  # never the limit: the ports are
    return core.l2_rate if reused <= FILL * core.l2 else core.l3_rate


def product(core: Core, micro: Micro, depth: int, count: float, reused: int) -> float:
    """Clocks of ``count`` micro-kernels over ``depth`` words each.

    reused: bytes between two uses of the vector operand: what the cache must hold to keep it.
    """
    if micro.unit == "amx":
        return count * _amx(micro, depth)
    return count * (depth * _step(core, micro, reused) + _edge(core, micro) + CALL)


def _step(core: Core, micro: Micro, reused: int) -> float:
    """Clocks of one step of the reduction, the slowest of what it needs."""
    sums = micro.rows * micro.vectors
    dot = micro.unit == "dot"
    ports, latency = (core.dot, core.dot_latency) if dot else (core.fma, core.fma_latency)
    loads = micro.vectors + micro.rows
    # One vector to a row: the broadcast is an operand of the multiply-add.
    separate = loads if micro.vectors > 1 else micro.vectors
    return max(
        sums / ports,
        loads / core.loads,
        (sums + separate + _LOOP / micro.unroll) / core.issue,
        latency,
        micro.lanes * _WORD / rate_of(core, reused),
    )


def _edge(core: Core, micro: Micro) -> float:
    """Clocks that load the sums and store them."""
    sums = micro.rows * micro.vectors
    return (0 if micro.fresh else sums / core.loads) + sums / core.stores


def _amx(micro: Micro, depth: int) -> float:
    """32 x 32 sums in four tiles; each 16 words of the depth are four products and four loads."""
    steps = -(-depth // 16)
    sums = 4 * AMX_STORE + (0 if micro.fresh else 4 * AMX_LOAD)
    return steps * max(4 * AMX_PRODUCT, 4 * AMX_LOAD) + sums + CALL
