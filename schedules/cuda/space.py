"""What tuning searches on GPUs: configs whose registers and shared memory an SM can hold."""

from __future__ import annotations

from ...problem.spec import AttentionSpec
from ..space import Space
from .arch import CudaArch
from .backward_config import BACKWARD_KNOBS, BackwardConfig
from .defaults import backward_configs, forward_configs
from .forward import FORWARD_KNOBS, ForwardConfig

Config = ForwardConfig | BackwardConfig

# CUDA C++ Programming Guide, "technical specifications per compute capability": of a thread, and of
# an SM; a warp takes registers by 256, so a thread by 8.
MOST_REGISTERS, REGISTERS_PER_SM, REGISTER_UNIT = 255, 64 * 1024, 8
# Beside sums and fragments, at least: softmax_scale, row statistics and addresses. ptxas needed 56
# to 83 more for the defaults; what it cannot fit shows as a spill.
LEAST_REST = 24


def cuda_space(spec: AttentionSpec, direction: str, arch: CudaArch) -> Space:
    """Configs for ``spec`` on ``arch`` around the default one; direction as in artifact.DIRECTIONS.

    Refused uncompiled: what the config's own ``reasons`` name, and more registers or shared memory
    than an SM has for ``min_blocks`` blocks. Of the ordered backward the key kernel is searched.
    Raises UnsupportedSpec where no config serves.
    """
    if direction == "forward":
        start, knobs = forward_configs(spec, arch)[0], FORWARD_KNOBS
    else:
        start, knobs = backward_configs(spec, arch)[0], BACKWARD_KNOBS

    def refuse(config: Config) -> list[str]:
        return config.reasons(spec, arch) or residence_reasons(config, spec, arch)

    return Space.around(start, knobs, refuse)


def residence_reasons(config: Config, spec: AttentionSpec, arch: CudaArch) -> list[str]:
    """Why an SM of ``arch`` cannot hold the blocks of ``config`` (empty: it can)."""
    blocks, threads = max(config.min_blocks, 1), 32 * config.num_warps
    share = REGISTERS_PER_SM // (threads * blocks) // REGISTER_UNIT * REGISTER_UNIT
    limit = min(MOST_REGISTERS, share)
    needed, shared = config.registers(spec) + LEAST_REST, blocks * config.shared_bytes(spec)
    checks = [
        (needed > limit, f"it needs {needed} registers or more, a thread may have {limit}"),
        (
            shared > arch.shared_bytes_per_sm,
            f"{blocks} blocks need {shared} bytes of shared memory, "
            f"an SM of {arch.name} has {arch.shared_bytes_per_sm}",
        ),
        (
            threads * blocks > arch.threads_per_sm,
            f"{blocks} blocks have {threads * blocks} threads, "
            f"an SM of {arch.name} has {arch.threads_per_sm}",
        ),
    ]
    return [text for wrong, text in checks if wrong]
