"""What an SM does in a clock and how long results take: the numbers of the simulation."""

from __future__ import annotations

from dataclasses import dataclass

from ...schedules.cuda.arch import SCHEDULERS, WARP, CudaArch
from ..gpu import INTEGER, SPECIAL, gpu_of

# Clocks from issue to result. sm_80's, for the others assumed. Published are, of A100 and H100, 23
# to 30 for shared memory and 200 to 260 for a hit in L2 (Luo et al., "Benchmarking and dissecting
# the NVIDIA Hopper GPU architecture", 2024), and of V100, a generation earlier, the same for shared
# memory and about 20 for shuffles and special functions (Jia et al. 2018, section 4). Within these
# limits they were chosen with FlashAttention-2's forward at head_dim 128 in view, whose speed is
# published (docs/analytical-models.md). "l2" is a copy or load beside others; up to COPY_SPREAD is
# added at random for what misses or queues, an assumption.
LATENCIES = {"ldmatrix": 31, "shared": 25, "shuffle": 24, "special": 22, "local": 33, "l2": 320}
COPY_SPREAD = 200
# Where a result is announced by a counter and no latency is published: an assumption.
OTHER = 20
# Clocks from issue until an access reaches shared memory, a special function its unit; from the end
# of an access until its operands have been read, of one to L2: assumptions.
TO_MEMORY, TO_SPECIAL, OPERANDS_READ, LINE_READ = 6, 2, 6, 8
# Accesses of a scheduler that may wait for shared memory before it must stop issuing them, and
# special functions that may wait for theirs: assumptions.
MEMORY_QUEUE, SPECIAL_QUEUE = 8, 2
# Lines that a reduction in L2 costs, which reads and writes what it adds to.
REDUCTION = 2


@dataclass(frozen=True)
class Assumptions:
    """What is least certain of a simulation, so that its effect can be seen.

    latencies: factor on all of LATENCIES. l2_bytes: of an SM and clock (A100: 47.4 at most, the
    whitepaper's 5120 over 108 SMs). barrier: clocks from the last warp's arrival until all go on.
    """

    latencies: float = 1.0
    l2_bytes: float = 40.0
    barrier: int = 8


# A comparison of two kernels that does not hold under all of these should not be believed.
ASSUMPTIONS = {
    "base": Assumptions(),
    "latencies x 1.5": Assumptions(latencies=1.5),
    "L2 28 B/clock": Assumptions(l2_bytes=28.0),
    "barrier 30 clocks": Assumptions(barrier=30),
}


@dataclass(frozen=True)
class Rates:
    """Clocks that a warp's instruction takes of one of an SM's quarters, and what all four share.

    product: of one HMMA for each multiply-add of the warp (1/256 on sm_80). float32, integer,
    special: of one instruction of 32 lanes. The rest as in ``Assumptions``, latencies in clocks.
    """

    product: float
    float32: float
    integer: float
    special: float
    l2_bytes: float
    barrier: int
    latencies: dict[str, int]


def rates_of(arch: CudaArch, assumptions: Assumptions = ASSUMPTIONS["base"]) -> Rates:
    """The rates of ``arch``, by the data sheet of the GPU that stands for it in ``tune/gpu``.

    Raises UnsupportedSpec for an architecture whose mma.sync is not published.
    """
    gpu = gpu_of(arch)
    lanes = WARP * SCHEDULERS
    return Rates(
        product=2 * SCHEDULERS / (gpu.tensor_flop * gpu.mma_share),
        float32=lanes / gpu.float32,
        integer=lanes / INTEGER,
        special=lanes / SPECIAL,
        l2_bytes=assumptions.l2_bytes,
        barrier=assumptions.barrier,
        latencies={n: round(c * assumptions.latencies) for n, c in LATENCIES.items()},
    )
