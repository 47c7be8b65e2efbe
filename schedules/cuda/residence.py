"""What an SM can hold: the registers and the shared memory of a config's blocks."""

from __future__ import annotations

from ...problem.spec import AttentionSpec
from .arch import CudaArch, crowded_reasons
from .backward_config import BackwardConfig
from .forward import ForwardConfig

# CUDA C++ Programming Guide, "technical specifications per compute capability": of a thread, and of
# an SM; a warp takes registers by 256, so a thread by 8.
MOST_REGISTERS, REGISTERS_PER_SM, REGISTER_UNIT = 255, 64 * 1024, 8
# Beside sums and fragments, at least: softmax_scale, row statistics and addresses. ptxas needed 56
# to 83 more for the defaults; what it cannot fit shows as a spill.
LEAST_REST = 24


def residence_reasons(
    config: ForwardConfig | BackwardConfig, spec: AttentionSpec, arch: CudaArch
) -> list[str]:
    """Why an SM of ``arch`` cannot hold the blocks of ``config`` (empty: it can)."""
    blocks, threads = max(config.min_blocks, 1), 32 * config.num_warps
    share = REGISTERS_PER_SM // (threads * blocks) // REGISTER_UNIT * REGISTER_UNIT
    limit = getattr(config, "most_registers", min(MOST_REGISTERS, share))
    needed = config.registers(spec) + LEAST_REST
    checks = [
        (needed > limit, f"it needs {needed} registers or more, a thread may have {limit}"),
        (
            threads * blocks > arch.threads_per_sm,
            f"{blocks} blocks have {threads * blocks} threads, "
            f"an SM of {arch.name} has {arch.threads_per_sm}",
        ),
    ]
    own = [text for wrong, text in checks if wrong]
    return [*own, *crowded_reasons(arch, blocks, config.shared_bytes(spec))]
