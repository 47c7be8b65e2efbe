"""What tuning searches on GPUs: configs whose registers and shared memory an SM can hold."""

from __future__ import annotations

from ...problem.spec import AttentionSpec
from ..space import Space
from .arch import CudaArch
from .kernels import SCHEDULES


def cuda_space(spec: AttentionSpec, direction: str, arch: CudaArch) -> Space:
    """Configs for ``spec`` on ``arch`` around the default one; direction as in artifact.DIRECTIONS.

    Refused uncompiled: what the config's own ``reasons`` name, and more registers or shared memory
    than an SM has for ``min_blocks`` blocks. Of the ordered backward the key kernel is searched.
    Raises UnsupportedSpec where no config serves.
    """
    return SCHEDULES.space(spec, direction, arch)
