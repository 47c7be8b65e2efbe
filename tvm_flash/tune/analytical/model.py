"""Predicted seconds of GPU kernels: an SM's parts, the blocks it holds, waves over all SMs."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ...codegen.report import blocks_per_sm
from ...schedules.cuda.arch import CudaArch
from .gpu import (
    BARRIER,
    INTEGER,
    L2_BYTES,
    L2_LATENCY,
    LAUNCH,
    SCHEDULERS,
    SHARED_BYTES,
    SPECIAL,
    Gpu,
)
from .work import Amounts, KernelWork


@dataclass(frozen=True)
class Prediction:
    """One launch: seconds; resident blocks of an SM and what limits them; clocks by part.

    clocks: of one SM for all blocks, evenly spread, were each part alone busy.
    """

    seconds: float
    resident: int
    limit: str
    clocks: dict[str, float]

    @property
    def bound(self) -> str:
        """The part with most work."""
        return max(self.clocks, key=lambda part: self.clocks[part])


def predict(work: KernelWork, arch: CudaArch, gpu: Gpu) -> Prediction:
    """Seconds of one launch on ``gpu``. Raises ValueError for a block that no SM can hold."""
    fits, limit = blocks_per_sm(arch, work.registers, 32 * work.warps, work.shared_bytes)
    if fits < 1:
        raise ValueError(f"no block of {work.warps} warps fits an SM of {arch.name}: {limit}")
    # A grid that does not fill the SMs is spread over them.
    resident = min(fits, max(1, -(-len(work.tiles) // gpu.multiprocessors)))
    slots = gpu.multiprocessors * resident
    makespan = _makespan([_duration(work, n, resident, gpu) for n in work.tiles], slots)
    total = work.base * len(work.tiles) + work.tile * sum(work.tiles)
    shares = clocks(total * (1 / gpu.multiprocessors), gpu)
    dram = total.l2 / gpu.dram if not any(work.tiles) else 0.0
    seconds = max(makespan / gpu.hertz, shares["l2"] / gpu.hertz, dram) + LAUNCH
    return Prediction(seconds, fits, limit, shares)


def total_seconds(predictions: Sequence[Prediction]) -> float:
    """Launches run one after the other."""
    return sum(prediction.seconds for prediction in predictions)


def clocks(work: Amounts, gpu: Gpu) -> dict[str, float]:
    """Clocks that each part of one SM takes for ``work``."""
    return {
        "tensor": work.tensor / (gpu.tensor_flop * gpu.mma_share),
        "special": work.special / SPECIAL,
        "float32": work.float32 / gpu.float32,
        "integer": work.integer / INTEGER,
        "shared": work.shared / SHARED_BYTES,
        "issue": work.issued / SCHEDULERS,
        "l2": work.l2 / L2_BYTES,
    }


def _duration(work: KernelWork, tiles: int, resident: int, gpu: Gpu) -> float:
    """Clocks of one block that visits ``tiles`` tiles beside its like.

    Resident blocks share the parts. What one warp does is a chain: a scheduler with one warp waits
    for each part in turn, with w warps it fills all but 1/w of those waits with other warps' work.
    """
    warps = resident * work.warps / SCHEDULERS
    exposed = 1 / max(warps, 1)
    base, tile = (_combined(clocks(part, gpu), exposed) for part in (work.base, work.tile))
    own = resident * tile
    meetings = work.tile.barriers * BARRIER * exposed
    each = own + _arrival(work, own) + meetings
    return resident * base + L2_LATENCY + tiles * each


def _arrival(work: KernelWork, own: float) -> float:
    """Clocks of a tile in which a block waits for data: a latency, less what passes meanwhile."""
    if not work.overlap:
        return 0.0
    # Half a tile is the one-stage forward's, which waits for V and for K, each behind the other's
    # product; all other kernels wait once.
    waits = 2 if work.overlap == 0.5 else 1
    return waits * max(0.0, L2_LATENCY - work.overlap * own)


def _combined(parts: dict[str, float], exposed: float) -> float:
    longest = max(parts.values())
    return longest + exposed * (sum(parts.values()) - longest)


def _makespan(durations: Sequence[float], slots: int) -> float:
    """Clocks until the last block ends, each starting as a slot falls free."""
    free = [0.0] * min(slots, max(len(durations), 1))
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)
