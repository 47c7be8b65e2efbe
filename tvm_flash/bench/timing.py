"""Interleaved timing: each round times every contender once, so that drift hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Clock = Callable[[], float]


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
    """How long to sample: at least ``min_rounds``, then until ``seconds`` or ``max_rounds``.

    steady: while a spread is wider, rounds go on until ``budget`` seconds are over.
    shortest: seconds that a sample lasts at least; a shorter call is repeated within its sample.
    """

    min_rounds: int = 5
    max_rounds: int = 30
    seconds: float = 2.0
    steady: float = math.inf
    budget: float = 0.0
    shortest: float = 0.0

    def ends(self, samples: Mapping[str, list[float]], rounds: int, elapsed: float) -> bool:
        """Whether ``rounds`` rounds, which took ``elapsed`` seconds, are enough."""
        if rounds < self.min_rounds or (rounds < self.max_rounds and elapsed <= self.seconds):
            return False
        return elapsed > self.budget or widest(map(Timing.of, samples.values())) <= self.steady


def widest(timings) -> float:
    """The largest spread."""
    return max(timing.spread for timing in timings)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    patience: Patience,
    *,
    warm: Mapping[str, float] | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Timing of every call in ``calls``, after one untimed warm-up each.

    warm: seconds of a call of each that was warmed up already.
    """
    warm = warm or {name: _seconds(call, 1, clock) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(patience.shortest / warm[name])) for name in calls}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started, turn = clock(), 0
    while not turn or not patience.ends(samples, turn, clock() - started):
        for name in _rotated(list(calls), turn):
            samples[name].append(_seconds(calls[name], repeats[name], clock))
        turn += 1
    return {name: Timing.of(values) for name, values in samples.items()}


def _rotated(names: list[str], turn: int) -> list[str]:
    # Who runs second finds the caches and the clock as the first left them: take turns.
    start = turn % len(names)
    return names[start:] + names[:start]


def _seconds(call: Callable[[], object], repeats: int, clock: Clock) -> float:
    started = clock()
    for _ in range(repeats):
        call()
    return (clock() - started) / repeats
