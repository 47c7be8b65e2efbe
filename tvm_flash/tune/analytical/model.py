"""Predicted seconds of GPU kernels: an SM's parts, the blocks it holds, waves over all SMs."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from ...codegen.report import blocks_per_sm
from ...schedules.cuda.arch import SCHEDULERS, CudaArch
from ..gpu import (
    BARRIER,
    INTEGER,
    L2_BYTES,
    L2_LATENCY,
    LAUNCH,
    SHARED_BYTES,
    SPECIAL,
    Gpu,
)
from ..simulation.prediction import LoopPrediction, predict_loop
from ..simulation.steps import multiply_adds
from .work import Amounts, KernelWork


@dataclass(frozen=True)
class Prediction:
    """One launch: seconds; resident blocks of an SM and what limits them; clocks by part.

    clocks: of one SM for all blocks, evenly spread, were each part alone busy. loop: a round of the
    main loop (None: it was not simulated, or there is none).
    """

    seconds: float
    resident: int
    limit: str
    clocks: dict[str, float]
    loop: LoopPrediction | None = None

    @property
    def bound(self) -> str:
        """The part with most work: in the main loop, where that was simulated."""
        return self.loop.bound if self.loop else max(self.clocks, key=lambda p: self.clocks[p])


def predict(work: KernelWork, arch: CudaArch, gpu: Gpu) -> Prediction:
    """Seconds of one launch on ``gpu``.

    Raises ValueError for a block that no SM can hold, UnsupportedSpec for a main loop of products
    other than those of mma.sync.
    """
    fits, limit = blocks_per_sm(arch, work.registers, 32 * work.warps, work.shared_bytes)
    if fits < 1:
        raise ValueError(f"no block of {work.warps} warps fits an SM of {arch.name}: {limit}")
    # A grid that does not fill the SMs is spread over them.
    resident = min(fits, max(1, -(-len(work.tiles) // gpu.multiprocessors)))
    slots = gpu.multiprocessors * resident
    loop = predict_loop(work.round, arch, work.warps, resident) if work.round else None
    each = _tile_of(loop, work) if loop else _estimated_tile(work, resident, gpu)
    once = resident * _combined(clocks(work.base, gpu), _exposed(work, resident)) + L2_LATENCY
    makespan = _makespan([once + n * each for n in work.tiles], slots)
    total = work.base * len(work.tiles) + work.tile * sum(work.tiles)
    shares = clocks(total * (1 / gpu.multiprocessors), gpu)
    dram = total.l2 / gpu.dram if not any(work.tiles) else 0.0
    seconds = max(makespan / gpu.hertz, shares["l2"] / gpu.hertz, dram) + LAUNCH
    return Prediction(seconds, fits, limit, shares, loop)


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


def _tile_of(loop: LoopPrediction, work: KernelWork) -> float:
    """Clocks of a tile: of as many simulated rounds as make its products."""
    rounds = work.tile.tensor / (2 * work.warps * sum(map(multiply_adds, work.round)))
    return rounds * loop.clocks


def _estimated_tile(work: KernelWork, resident: int, gpu: Gpu) -> float:
    """Clocks of a tile of one block beside its like.

    Resident blocks share the parts. What one warp does is a chain: a scheduler with one warp waits
    for each part in turn, with w warps it fills all but 1/w of those waits with other warps' work.
    """
    exposed = _exposed(work, resident)
    own = resident * _combined(clocks(work.tile, gpu), exposed)
    meetings = work.tile.barriers * BARRIER * exposed
    return own + _arrival(work, own) + meetings


def _exposed(work: KernelWork, resident: int) -> float:
    return 1 / max(resident * work.warps / SCHEDULERS, 1)


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
