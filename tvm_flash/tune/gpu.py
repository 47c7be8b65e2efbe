"""What GPUs can do in a clock, from their vendor's documents: the rates of the analytical model."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedSpec
from ..schedules.cuda.arch import CudaArch


@dataclass(frozen=True)
class Gpu:
    """One GPU that stands for its architecture.

    hertz: boost clock. Of an SM and clock: tensor_flop, FLOP of dense 16-bit products with float32
    sums; mma_share, what part of it mma.sync reaches; float32: lanes of add, mul and fma. dram:
    bytes/s. source: where the numbers stand.
    """

    name: str
    arch: str
    multiprocessors: int
    hertz: float
    tensor_flop: int
    float32: int
    dram: float
    source: str
    mma_share: float = 1.0

    @property
    def tensor_peak(self) -> float:
        """FLOP/s of the whole GPU, as the data sheet has it."""
        return self.multiprocessors * self.hertz * self.tensor_flop


# Lanes or bytes of an SM and clock that are the same for all of them. CUDA C++ Programming Guide,
# "arithmetic instructions", throughput of native instructions, compute capability 7.5 to 9.0: 16
# results of ex2, rcp and lg2; 64 of integer and logical operations and comparisons, of conversions
# and shuffles 64 or fewer; "shared memory": 32 banks of 4 bytes; 4 warp schedulers that issue one
# instruction each (``arch.SCHEDULERS``). Assumed of 12.0.
SPECIAL, INTEGER, SHARED_BYTES = 16, 64, 128
# A100 whitepaper: L2 gives 5120 bytes a clock, over 108 SMs. Of the others nothing is published:
# the same share is assumed.
L2_BYTES = 5120 / 108
# Clocks. Measured on A100 and H100 by others: a hit in L2 takes 200 to 260 clocks, shared memory 23
# to 30 (Luo et al., "Benchmarking and dissecting the NVIDIA Hopper GPU architecture", 2024). That a
# barrier costs its warps about a round through shared memory is an assumption.
L2_LATENCY, BARRIER = 250, 30
# Seconds from one kernel's end to the next one's first instruction in a stream: an assumption, the
# same for all configs of a direction.
LAUNCH = 3e-6

GPUS = {
    gpu.arch: gpu
    for gpu in (
        Gpu(
            "T4", "sm_75", 40, 1.59e9, 1024, 64, 320e9,
            "NVIDIA T4 data sheet: 65 TFLOP/s, 320 GB/s",
        ),
        Gpu(
            "A100-SXM4-80GB", "sm_80", 108, 1.41e9, 2048, 64, 2039e9,
            "NVIDIA A100 data sheet and whitepaper: 312 TFLOP/s, 2039 GB/s",
        ),
        Gpu(
            "A10", "sm_86", 72, 1.695e9, 1024, 128, 600e9,
            "NVIDIA A10 data sheet: 125 TFLOP/s, 600 GB/s",
        ),
        Gpu(
            "L40S", "sm_89", 142, 2.52e9, 1024, 128, 864e9,
            "NVIDIA L40S data sheet: 362 TFLOP/s, 864 GB/s",
        ),
        # Luo et al. 2024: mma.sync reaches 62.9 % of the H100's peak on average; wgmma all of it.
        Gpu(
            "H100-SXM5-80GB", "sm_90", 132, 1.83e9, 4096, 128, 3352e9,
            "NVIDIA H100 whitepaper: 989 TFLOP/s dense, 3352 GB/s", mma_share=0.629,
        ),
        Gpu(
            "RTX 5090", "sm_120", 170, 2.407e9, 512, 128, 1792e9,
            "NVIDIA RTX Blackwell whitepaper: 209.5 TFLOP/s with float32 sums, 1792 GB/s",
        ),
    )
}  # fmt: skip


def gpu_of(arch: CudaArch) -> Gpu:
    """The GPU that stands for ``arch``. Raises UnsupportedSpec without its numbers."""
    if arch.name not in GPUS:
        raise UnsupportedSpec(
            f"no analytical model of {arch.name}: what its products reach is not published, or its "
            f"kernels are of warp groups; known are {', '.join(GPUS)}"
        )
    return GPUS[arch.name]
