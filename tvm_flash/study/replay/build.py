"""The points of a table compiled and checked, in worker processes."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...errors import TvmFlashError
from ...problem.spec import AttentionSpec
from ...schedules.space import Point
from ...tune.trial import SearchTask
from ...workers import Failure, Workers

Built = dict[str, Any]


def build_all(
    task: SearchTask, points: Sequence[Point], cache: Path, jobs: int, timeout: float
) -> Iterator[tuple[Point, Built]]:
    """Each of ``points`` with what became of it, as they finish, ``jobs`` at a time.

    cache: folder of the kernels. A candidate that kills its process or takes longer than
    ``timeout`` seconds is a crash or a timeout; the others go on.
    """
    workers = Workers(build, jobs, partial(_prepare, str(cache), task.threads))
    items = [(task.spec, task.direction, task.space.config(point)) for point in points]
    try:
        for index, built in workers.map(items, timeout):
            if isinstance(built, Failure):
                spent = timeout if built.outcome == "timeout" else 0.0
                built = _outcome(built.outcome, spent)
            yield points[index], built
    finally:
        workers.close()


def build(spec: AttentionSpec, direction: str, config: Any) -> Built:
    """Compile ``config`` and hold it to the error rule; run in a process that may die of it.

    Seconds are the processor's, of this process and the linker's: they do not grow when the machine
    has other work.
    """
    from ...codegen import jit
    from ...verify.library import verify_library

    started = _processor_seconds()
    try:
        path = jit.artifact_for(spec, direction, config)
    except (TvmFlashError, ValueError):
        return _outcome("invalid", _processor_seconds() - started)
    compiled = _processor_seconds()
    (kernel,) = verify_library(path).kernels
    numbers = (kernel.worst.error, kernel.worst.allowed) if kernel.worst else (None, None)
    error, allowed = (_short(x) if x is not None and math.isfinite(x) else None for x in numbers)
    return _outcome(
        "ok" if kernel.ok else "wrong",
        compiled - started,
        _processor_seconds() - compiled,
        error=error,
        allowed=allowed,
        path=str(path),
    )


def _prepare(cache: str, threads: int) -> None:
    os.environ["TVM_FLASH_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    # Imported once, so that no point pays for it.
    from ...codegen import build  # noqa: F401
    from ...verify import library  # noqa: F401


def _processor_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _outcome(outcome: str, compiling: float, checking: float = 0.0, **more: Any) -> Built:
    return {
        "outcome": outcome,
        "error": None,
        "allowed": None,
        "compile_seconds": round(compiling, 3),
        "check_seconds": round(checking, 3),
        **more,
    }


def _short(number: float) -> float:
    return float(f"{number:.4g}")
