"""What a kernel's main loop is predicted to take: clocks, tensor utilisation, what limits it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...codegen.sass.listing import Instruction
from ...schedules.cuda.arch import SCHEDULERS, CudaArch
from ..gpu import gpu_of
from .rates import ASSUMPTIONS, Assumptions, Rates, rates_of
from .simulator import POLICIES, simulate
from .steps import FLOAT32, INTEGER, MEMORY, SPECIAL, TENSOR, Step, classes, multiply_adds, steps_of

# Runs for each policy, with blocks that start differently far apart.
SEEDS = 3


@dataclass(frozen=True)
class LoopPrediction:
    """A steady round of the main loop, of all blocks that an SM holds: predicted, not measured.

    clocks: until every block has done a round, the mean of all runs. share: of the tensor peak in
    the data sheet, the mean; least, most: of a run. parts: clocks for which each part of the SM is
    busy meanwhile, so that the greatest is a lower bound. instructions: of a warp, by class.
    blocks, warps: of the SM, of a block.
    """

    clocks: float
    share: float
    least: float
    most: float
    parts: dict[str, float]
    instructions: dict[str, int]
    blocks: int
    warps: int

    @property
    def bound(self) -> str:
        """The part that is busy longest."""
        return max(self.parts, key=lambda part: self.parts[part])

    @property
    def busy(self) -> float:
        """For which share of the time that part is."""
        return self.parts[self.bound] / self.clocks

    def to_json(self) -> dict[str, Any]:
        return {
            "clocks": round(self.clocks, 1),
            "tensor_share": [round(share, 3) for share in (self.share, self.least, self.most)],
            "parts": {part: round(clocks, 1) for part, clocks in self.parts.items()},
            "instructions": self.instructions,
            "blocks": self.blocks,
            "warps": self.warps,
        }


def predict_loop(
    code: Sequence[Instruction],
    arch: CudaArch,
    warps: int,
    blocks: int,
    assumptions: Assumptions = ASSUMPTIONS["base"],
    seeds: int = SEEDS,
) -> LoopPrediction:
    """Simulate ``code``, a round of the main loop (``codegen.sass.flow.steady_round``), on an SM.

    warps: of a block; blocks: of the SM. Every policy of the simulator runs with ``seeds`` seeds.
    Raises UnsupportedSpec for an architecture without numbers and for products other than those of
    mma.sync, ValueError for a round that is empty or blocks without warps.
    """
    if not code or warps < 1 or blocks < 1 or seeds < 1:
        raise ValueError(
            f"{len(code)} instructions, {warps=}, {blocks=}, {seeds=}: each must be 1+"
        )
    rates = rates_of(arch, assumptions)
    steps = steps_of(code, rates)
    parts = busy_parts(steps, rates, warps * blocks)
    # A run counts some rounds of each warp; that others are slower just then does not make the SM
    # faster than its busiest part.
    runs = [
        max(simulate(steps, warps, blocks, rates, policy, seed), *parts.values())
        for policy in POLICIES
        for seed in range(seeds)
    ]
    work = 2 * sum(map(multiply_adds, code)) * warps * blocks / gpu_of(arch).tensor_flop
    shares = [work / clocks for clocks in runs]
    return LoopPrediction(
        clocks=sum(runs) / len(runs),
        share=sum(shares) / len(shares),
        least=min(shares),
        most=max(shares),
        parts=parts,
        instructions=classes(code),
        blocks=blocks,
        warps=warps,
    )


def busy_parts(steps: Sequence[Step], rates: Rates, warps: int) -> dict[str, float]:
    """Clocks for which each part of an SM with ``warps`` warps is busy with a round of each.

    Of the parts that a quarter has of its own, those of the quarter with most warps.
    """
    most = -(-warps // SCHEDULERS)

    def busy(part: int) -> float:
        return sum(step.busy for step in steps if step.part == part)

    return {
        "tensor": busy(TENSOR) * most,
        "special": busy(SPECIAL) * most,
        "float32": busy(FLOAT32) * most,
        "integer": busy(INTEGER) * most,
        "shared": busy(MEMORY) * warps,
        "issue": float(len(steps) * most),
        "l2": sum(step.l2_bytes for step in steps) * warps / rates.l2_bytes,
    }
