"""The cores a measurement runs on, and how much of them other programs took meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """torch on ``threads`` threads, this process on as many cores; gives their numbers.

    Threads that exist already move too, processes started inside inherit. None where the system
    does not pin.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    allowed = allowed_cores()
    cores = chosen_cores(allowed, threads) if allowed else None
    try:
        _move(cores)
        yield cores
    finally:
        torch.set_num_threads(before)
        _move(allowed)


def allowed_cores() -> list[int] | None:
    """Numbers of the cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def chosen_cores(allowed: list[int], threads: int) -> list[int]:
    """``threads`` of ``allowed``, the last ones (the first serves most interrupts).

    Two hardware threads of one core share its vector units: one of each core comes first.
    """
    seen: set[str] = set()
    first, second = [], []
    for core in reversed(allowed):
        siblings = _siblings(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return (first + second)[:threads]


def _siblings(core: int) -> str:
    """A name that the hardware threads of one core share."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return path.read_text(encoding="ascii").strip() if path.is_file() else str(core)


def _move(cores: list[int] | None) -> None:
    if cores is None:
        return
    for task in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
        try:
            os.sched_setaffinity(int(task), cores)
        except ProcessLookupError:
            continue  # a thread that has ended


@dataclass(frozen=True)
class Usage:
    """Seconds so far: of the clock, of ``cores`` being busy, of this process and its children."""

    clock: float
    busy: float | None
    own: float

    @classmethod
    def now(cls, cores: list[int] | None) -> Usage:
        """What the system counts for ``cores``."""
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return cls(time.perf_counter(), _busy_seconds(cores), own)

    def others_since(self, start: Usage, cores: list[int] | None) -> float | None:
        """Share of the cores' time that other programs, or other guests of the host, took."""
        if self.busy is None or start.busy is None or not cores:
            return None
        others = (self.busy - start.busy) - (self.own - start.own)
        return min(1.0, max(0.0, others / ((self.clock - start.clock) * len(cores))))


def _busy_seconds(cores: list[int] | None, path: Path = Path("/proc/stat")) -> float | None:
    """user, nice, system, irq, softirq and steal time of ``cores`` (proc(5))."""
    if cores is None or not path.is_file():
        return None
    names = {f"cpu{core}" for core in cores}
    lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    ticks = sum(
        int(words[field])
        for words in lines
        if words and words[0] in names
        for field in (1, 2, 3, 6, 7, 8)
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def load_average() -> list[float] | None:
    """Over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
