"""A model of the forwards for sm_90a: how busy a steady round keeps the tensor cores of an SM.

Prints the table of docs/hopper.md. Nothing is timed: counts are of machine code made here, rates of
NVIDIA's documents (tvm_flash/tune/gpu.py), and what is not modelled stands in that page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm_flash.codegen.cuda import kernel_sources
from tvm_flash.codegen.nvcc import assemble, compile_ptx
from tvm_flash.codegen.sass.flow import steady_round
from tvm_flash.codegen.sass.listing import Instruction, disassemble
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS, SCHEDULERS
from tvm_flash.schedules.cuda.hopper.defaults import FORWARD
from tvm_flash.schedules.cuda.hopper.wgmma import GROUP_ROWS
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.tune.gpu import GPUS, SPECIAL

ARCH, GPU = ARCHS["sm_90a"], GPUS["sm_90"]
# Multiply-adds of an SM in a clock, and of a product m64nNk16 for each of its N columns.
_RATE, _OF_A_COLUMN = GPU.tensor_flop // 2, 64 * 16
# Clocks of a scheduler for an instruction of its special function unit: 32 lanes.
_SPECIAL = 32 * SCHEDULERS // SPECIAL
# Clocks from the wait for S to its weights in which nothing issues: four shuffles, one after the
# other, the first exponentials, a barrier of the warp. Assumed; other groups issue meanwhile.
LATENCY = 150
ROUNDS = 200
# Clocks that are none.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Round:
    """Clocks of one warp group while it is alone: the products of S and of O on the tensor cores,
    the weights between the two waits, the rest behind the second wait."""

    scores: float
    output: float
    weights: float
    rest: float


def main() -> None:
    """Print a row for the first default of each row of the table, without a mask."""
    print("| head_dim, head_dim_v up to | tile | S, O: tensor | weights | rest | one group | all |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for depth, depth_v in FORWARD:
        spec = AttentionSpec(dtype="bfloat16", head_dim=depth, head_dim_v=depth_v)
        ((_, program),) = cuda_programs(spec, "forward", (ARCH,))
        (source,) = kernel_sources(program)
        cubin = assemble(compile_ptx(source), source.name, ARCH.name)
        own = measured(disassemble(cubin.code, source.name))
        block_q, block_k = program.config["block_q"], program.config["block_k"]
        alone, together = busy(own, 1), busy(own, block_q // GROUP_ROWS)
        clocks = f"{own.scores:.0f}, {own.output:.0f} | {own.weights:.0f} | {own.rest:.0f}"
        tile = f"{depth}, {depth_v} | {block_q} x {block_k}"
        print(f"| {tile} | {clocks} | {alone:.2f} | {together:.2f} |")


def measured(code: list[Instruction]) -> Round:
    """A steady round of the main loop, from counts of its instructions."""
    executed = steady_round(code)
    products = [at for at in executed if at.starts("HGMMA")]
    from_registers = [at for at in products if at.operands.split(",")[1].strip()[0] == "R"]
    clocks = {id(at): _columns(at) * _OF_A_COLUMN / _RATE for at in products}
    output = sum(clocks[id(at)] for at in from_registers)
    first, last = _waits(executed)
    start = next(n for n, at in enumerate(executed) if at.starts("HGMMA"))
    return Round(
        sum(clocks.values()) - output, output, _issue(executed[first:last]),
        _issue([*executed[last:], *executed[:start]]) + len(products),
    )  # fmt: skip


def _waits(executed: list[Instruction]) -> tuple[int, int]:
    """Where S is waited for, and where O is."""
    waits = [n for n, at in enumerate(executed) if at.opcode.startswith("WARPGROUP.DEPBAR")]
    return waits[0], waits[-1]


def _columns(product: Instruction) -> int:
    """N of HGMMA.64xNx16."""
    return int(product.opcode.split(".")[1].split("x")[1])


def _issue(part: list[Instruction]) -> float:
    """Clocks of a scheduler that has one warp of the group."""
    special = sum(at.starts("MUFU") for at in part)
    return max(len(part), special * _SPECIAL)


@dataclass
class Sm:
    """An SM at ``clock``: when its tensor cores are ``free``, and their ``work`` so far, clocks."""

    clock: float = 0.0
    free: float = 0.0
    work: float = 0.0

    def multiply(self, clocks: float) -> float:
        """When products that are asked for now have landed: one after the other, in this order."""
        self.free = max(self.free, self.clock) + clocks
        self.work += clocks
        return self.free


def group(own: Round, sm: Sm, late: float) -> Iterator[tuple[float, float]]:
    """What a warp group does: (clocks to issue, 0) or (0, the clock that it waits for)."""
    yield late, 0
    while True:
        scores, output = sm.multiply(own.scores), sm.multiply(own.output)
        yield 0, scores
        yield own.weights, 0
        yield 0, max(output, sm.clock + LATENCY)
        yield own.rest, 0


def busy(own: Round, groups: int) -> float:
    """Share of the tensor cores' time, of ``groups`` groups that share them and the schedulers.

    What several groups issue at once takes each of them as many times as long.
    """
    sm = Sm()
    running = [group(own, sm, own.weights * n / groups) for n in range(groups)]
    steps = [next(one) for one in running]
    while sm.work < ROUNDS * (own.scores + own.output):
        for n, (issue, until) in enumerate(steps):
            if issue <= _NOTHING and until <= sm.clock:
                steps[n] = next(running[n])
        issuing = sum(issue > _NOTHING for issue, _ in steps)
        times = [
            issue * issuing if issue > _NOTHING else until - sm.clock for issue, until in steps
        ]
        passed = max(min(times), 0.0)
        steps = [
            (issue - passed / issuing if issue > _NOTHING else 0.0, until) for issue, until in steps
        ]
        sm.clock += passed
    return sm.work / max(sm.free, sm.clock)


if __name__ == "__main__":
    main()
