"""Clocks of a CPU micro-kernel: multiply-adds against latency, ports, and where operands lie."""

from __future__ import annotations

from dataclasses import dataclass

from ...schedules.space import vector_registers
from .core import AMX_LOAD, AMX_PRODUCT, AMX_STORE, Core

# Clocks to enter and leave a micro-kernel: addresses, and a loop that ends. An assumption.
CALL = 6
# The part of a cache that data may fill and stay in it: other data pass through too. How much is an
# assumption.
FILL = 0.75
# Compare, add and branch of a loop, fused to two micro-operations.
_LOOP = 2
_WORD = 4


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
    return count * (max(_parts(core, micro, depth, reused)) + _spills(core, micro, depth) + CALL)


def _parts(core: Core, micro: Micro, depth: int, reused: int) -> tuple[float, ...]:
    """Clocks of each part of the core, were it alone busy: the slowest decides.

    Sums are loaded and stored while other sums are multiplied: the core runs ahead.
    """
    sums, dot = micro.rows * micro.vectors, micro.unit == "dot"
    ports, latency = (core.dot, core.dot_latency) if dot else (core.fma, core.fma_latency)
    # One vector to a row: the broadcast is an operand of the multiply-add, not an instruction.
    apart = micro.vectors + (micro.rows if micro.vectors > 1 else 0)
    operations = depth * (sums + apart + _LOOP / micro.unroll)
    # Few sums wait for one another; the next micro-kernels in flight fill the gaps.
    in_flight = max(1.0, core.window / operations)
    return (
        depth * sums / ports,
        (depth * (micro.vectors + micro.rows) + (0 if micro.fresh else sums)) / core.loads,
        sums / core.stores,
        operations / core.issue,
        depth * latency / in_flight,
        depth * micro.lanes * _WORD / rate_of(core, reused),
    )


def _spills(core: Core, micro: Micro, depth: int) -> float:
    """Clocks of sums that the registers do not hold: stored and read again in every step."""
    needed = vector_registers(micro.rows, micro.lanes, micro.vector)
    return depth * micro.unroll * 2 * max(needed - core.registers, 0)


def _amx(micro: Micro, depth: int) -> float:
    """32 x 32 sums in four tiles; each 16 words of the depth are four products and four loads."""
    steps = -(-depth // 16)
    sums = 4 * AMX_STORE + (0 if micro.fresh else 4 * AMX_LOAD)
    return steps * max(4 * AMX_PRODUCT, 4 * AMX_LOAD) + sums + CALL
