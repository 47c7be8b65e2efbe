"""Interleaved timing: each round times every contender once, so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median of ``rounds`` and the middle half's width over it."""

    median: float
    spread: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summary of at least one sample."""
        median = statistics.median(seconds)
        if len(seconds) < 4:
            return cls(median, (max(seconds) - min(seconds)) / median, len(seconds))
        low, _, high = statistics.quantiles(seconds, n=4)
        return cls(median, (high - low) / median, len(seconds))


@dataclass(frozen=True)
class Patience:
    """How long to sample: at least ``min_rounds``, then until ``seconds`` or ``max_rounds``."""

    min_rounds: int = 5
    max_rounds: int = 30
    seconds: float = 2.0


def interleaved(calls: Mapping[str, Callable[[], object]], patience: Patience) -> dict[str, Timing]:
    """Timing of every call in ``calls``, after one untimed warm-up each."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    started = time.perf_counter()
    for turn in range(patience.max_rounds):
        for name in _rotated(list(calls), turn):
            samples[name].append(_seconds(calls[name]))
        enough = turn + 1 >= patience.min_rounds
        if enough and time.perf_counter() - started > patience.seconds:
            break
    return {name: Timing.of(values) for name, values in samples.items()}


def _rotated(names: list[str], turn: int) -> list[str]:
    # Who runs second finds the caches and the clock as the first left them: take turns.
    start = turn % len(names)
    return names[start:] + names[:start]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
