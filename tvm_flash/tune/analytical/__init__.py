"""Predicted seconds from documents and arithmetic alone: analytical models of CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Callable

from ...schedules.space import Point
from ..trial import SearchTask

__all__ = ["predictor"]


def predictor(task: SearchTask) -> Callable[[Point], float]:
    """Predicted seconds of a point of ``task.space``; nothing is compiled or run.

    Raises UnsupportedSpec for a target or schedule that no model knows.
    """
    from ...schedules.cuda.arch import ARCHS

    if task.target in ARCHS:
        from ..gpu import gpu_of
        from .estimated import cuda_seconds

        arch = ARCHS[task.target]
        gpu_of(arch)
        return lambda point: cuda_seconds(task.spec, task.space.config(point), arch, task.sizes)
    from ...schedules.target import cpu_target
    from .cpu import cpu_seconds, refuse_unknown

    target = cpu_target(task.target)
    refuse_unknown(task.space.start, target)
    return lambda point: cpu_seconds(
        task.spec, task.space.config(point), target, task.sizes, task.threads
    )
