"""Which searches a request means, refused with reasons before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UnsupportedSpec
from ..problem.lengths import buckets_of
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import CudaArch
from ..schedules.target import CpuTarget, cpu_target, host_target
from .directions import DIRECTIONS
from .sizes import sizes_of
from .trial import SearchTask


def find_target(name: str, *, remote: bool = False) -> CpuTarget:
    """The CPU target called ``name``; "llvm" is this machine.

    Raises UnsupportedSpec for an unknown one, and unless ``remote`` for one of other machines.
    """
    host = host_target()
    target = host if name == "llvm" else cpu_target(name)
    if target != host and not remote:
        raise UnsupportedSpec(
            f"target {name!r} cannot be measured here, this machine is {host.name}: tune it there, "
            "or on a device behind --rpc HOST:PORT"
        )
    return target


def tasks(
    specs: Sequence[AttentionSpec],
    target: CpuTarget,
    directions: Sequence[str] = DIRECTIONS,
    buckets: Sequence[str] = buckets_of("forward"),
    *,
    seqlen: int | None = None,
    threads: int = 1,
) -> list[SearchTask]:
    """One search for each of ``specs``, direction and bucket (``decode``: forward only).

    Raises UnsupportedSpec with the reasons of every one that no schedule serves; ValueError for a
    ``seqlen`` of another bucket.
    """
    found, refused = [], {}
    for spec in dict.fromkeys(specs):
        for direction in directions:
            for bucket in (b for b in buckets_of(direction) if b in buckets):
                task = _task(spec, direction, bucket, target, seqlen, threads)
                reasons = task.space.refuse(task.space.start)
                refused.update({f"{spec.name} {direction}: {reason}": None for reason in reasons})
                found.append(task)
    if refused:
        raise UnsupportedSpec(refused)
    if not found:
        raise ValueError(f"{directions=} and {buckets=} have no kernel in common")
    return found


def recorded_config(folder: Path, target: CpuTarget | CudaArch, task: SearchTask) -> Any:
    """The config that a build takes from the logs in ``folder`` for ``task``, or None."""
    if isinstance(target, CudaArch):
        from ..schedules.cuda.kernels import SCHEDULES
    else:
        from ..schedules.select import SCHEDULES

    return SCHEDULES.measured(task.spec, task.direction, target, task.bucket, [folder]).config


def recorded(folder: Path, target: CpuTarget | CudaArch, task: SearchTask) -> Callable[[], Any]:
    """``recorded_config`` to ask again: other searches may write meanwhile."""
    return partial(recorded_config, folder, target, task)


def _task(
    spec: AttentionSpec,
    direction: str,
    bucket: str,
    target: CpuTarget,
    seqlen: int | None,
    threads: int,
) -> SearchTask:
    from ..schedules.select import space_of

    sizes = sizes_of(direction, bucket, seqlen)
    space = space_of(spec, direction, target, bucket)
    return SearchTask(space, spec, direction, target.name, sizes, threads)
