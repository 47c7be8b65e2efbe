"""Predicted seconds of a CPU config: clocks of its tasks, handed out to threads."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from ...errors import UnsupportedSpec
from ...problem.spec import AttentionSpec
from ...schedules.cpu.backward import BackwardConfig
from ...schedules.cpu.forward import ForwardConfig
from ...schedules.cpu.split_forward import SplitForwardConfig
from ...schedules.target import CpuTarget
from ..trial import Sizes
from .core import Core, core_of
from .cpu_backward import backward_tasks
from .cpu_forward import forward_tasks
from .cpu_split import split_tasks

Config = ForwardConfig | SplitForwardConfig | BackwardConfig
# Clocks to hand a task to a thread: an assumption.
_TASK = 2000

_TASKS: dict[type, Callable[[Core, AttentionSpec, Config, Sizes, int], Sequence[float]]] = {
    ForwardConfig: forward_tasks,
    SplitForwardConfig: split_tasks,
    BackwardConfig: backward_tasks,
}


def cpu_seconds(
    spec: AttentionSpec, config: Config, target: CpuTarget, sizes: Sizes, threads: int = 1
) -> float:
    """Predicted seconds of one call; nothing is compiled."""
    core = core_of(target)
    tasks = _TASKS[type(config)](core, spec, config, sizes, threads)
    return makespan([_TASK + task for task in tasks], threads) / core.hertz


def refuse_unknown(config: object, target: CpuTarget) -> None:
    """Raise UnsupportedSpec where ``cpu_seconds`` has no model of the schedule or the target."""
    core_of(target)
    if type(config) not in _TASKS:
        raise UnsupportedSpec(f"no analytical model of a schedule with {type(config).__name__}")


def makespan(tasks: Sequence[float], workers: int) -> float:
    """When the last of ``tasks`` ends, each taken in order by the worker that is free first."""
    if workers == 1:
        return sum(tasks)
    free = [0.0] * workers
    for task in tasks:
        heapq.heapreplace(free, free[0] + task)
    return max(free)
