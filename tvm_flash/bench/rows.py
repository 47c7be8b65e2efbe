"""One problem in one direction, timed: the row that every report is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..errors import TvmFlashError
from .contender import OURS, Prepared
from .contenders import EVERYBODY, contenders_for
from .device import DEVICES, Device
from .problems import Problem
from .timing import Patience, Timing, interleaved, reason, settle

DIRECTIONS = ("forward", "backward")

# Ours from another's result, over the largest value in that. Wide enough for honest rounding of
# gradients; a kernel that computes something else is far outside.
AGREEMENT = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}

# A first call that lasted less may have compiled; the second tells how long a call takes.
LONG_SECONDS = 10.0

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Row:
    """Timings of one problem in one direction.

    difference: largest absolute difference of a contender's results from those of the first that
    ran, which is ours wherever ours did. missing: why a contender has no timing. rates: those that
    compute nothing, and have neither operations nor a difference.
    """

    problem: Problem
    direction: str  # one of DIRECTIONS
    timings: dict[str, Timing]
    difference: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    rates: tuple[str, ...] = ()

    def ratio(self, other: str) -> float | None:
        """How many times faster than ``other`` we are; None if either was not run."""
        if other not in self.timings or OURS not in self.timings:
            return None
        return self.timings[other].median / self.timings[OURS].median

    def gflops(self, name: str) -> float:
        """GFLOP/s of a contender, counted as FlashAttention does."""
        return self.problem.flops(self.direction) / self.timings[name].median / 1e9

    def to_json(self) -> dict:
        """What a cell of the document says of timings."""
        others = [name for name in self.difference if name != OURS]
        return {
            "seconds": {name: timing.median for name, timing in self.timings.items()},
            "spread": {name: timing.spread for name, timing in self.timings.items()},
            "rounds": max((timing.rounds for timing in self.timings.values()), default=0),
            "gflops": {name: self.gflops(name) for name in self.timings if name not in self.rates},
            "ratio": {name: self.ratio(name) for name in self.timings if name != OURS},
            "max_difference": self.difference[others[0]] if others else None,
            # JSON has no infinity: null is a difference without bound.
            "difference": {n: d if math.isfinite(d) else None for n, d in self.difference.items()},
            "missing": self.missing,
        }


def measure(problem: Problem, patience: Patience) -> Iterator[Row]:
    """A forward row, then a backward row, of everybody that fits."""
    for direction in DIRECTIONS:
        yield timed(problem, direction, patience)


def timed(
    problem: Problem,
    direction: str,
    patience: Patience,
    names: Sequence[str] = EVERYBODY,
    device: str = "cpu",
    required: Sequence[str] = (OURS, "sdpa"),
) -> Row:
    """The contenders ``names`` side by side, on equal inputs.

    One that raises is missing, and the rest go on; of those ``required`` it is raised. Raises
    TvmFlashError when our result is not that of the first of the others.
    """
    missing: dict[str, str] = {}
    where = DEVICES[device]
    with torch.set_grad_enabled(direction == "backward"):
        prepared = _prepared(problem, direction, names, where, required, missing)
        difference, warm = _first_calls(prepared, direction, where, required, missing)
        calls = {name: getattr(prepared[name], direction) for name in warm}
        if where.drifts and calls:
            settle(where.stopwatch, next(iter(calls.values())), patience.seconds)
        known = {"warm": warm, "stopwatch": where.stopwatch, "failed": missing}
        timings = interleaved(calls, patience, **known)
    for name in required:
        if name in missing:
            raise TvmFlashError(f"{name}: {missing[name]}")
    rates = tuple(name for name, one in prepared.items() if not one.contender.computes)
    return Row(problem, direction, timings, difference, missing, rates)


def warmed_up(call: Callable[[], object], device: Device = DEVICES["cpu"]) -> tuple[object, float]:
    """The result of ``call``, and how many seconds it takes once everything is compiled."""
    for _ in range(2):
        started = time.perf_counter()
        result = call()
        device.wait()
        seconds = time.perf_counter() - started
        if seconds > LONG_SECONDS:
            break
    return result, seconds


def _prepared(
    problem: Problem,
    direction: str,
    names: Sequence[str],
    device: Device,
    required: Sequence[str],
    missing: dict[str, str],
) -> dict[str, Prepared]:
    """Contenders with their inputs, for a backward with their forward behind them."""
    prepared = {}
    for contender in contenders_for(problem, names):
        try:
            one = Prepared(contender, problem, device.tensors)
            if direction == "backward":
                one.record()
            prepared[contender.name] = one
        except Exception as error:
            if contender.name in required:
                raise
            missing[contender.name] = reason(error)
            device.release()
    return prepared


def _first_calls(
    prepared: Mapping[str, Prepared],
    direction: str,
    device: Device,
    required: Sequence[str],
    missing: dict[str, str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Untimed calls of everybody, which compile and tune: differences, and seconds of a call."""
    results: dict[str, Tensors] = {}
    difference: dict[str, float] = {}
    warm: dict[str, float] = {}
    for name, one in prepared.items():
        try:
            result, seconds = warmed_up(getattr(one, direction), device)
            found = []
            if one.contender.computes:
                found = [one.as_drawn(x).detach() for x in _as_tuple(result)]
                first = next(iter(results.values()), found)
                difference[name] = max(map(_largest_difference, found, first))
            warm[name] = seconds
        except Exception as error:
            if name in required:
                raise
            missing[name] = reason(error)
            continue
        if not found:
            continue
        if list(results) == [OURS]:  # this is the first of the others
            _check_agreement(one.problem, results[OURS], found, name)
        if len(results) < 2:
            results[name] = found
    return difference, warm


def _as_tuple(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def _check_agreement(problem: Problem, ours: Tensors, theirs: Tensors, name: str) -> None:
    for a, b in zip(ours, theirs, strict=True):
        off = _largest_difference(a, b)
        limit = AGREEMENT[problem.dtype] * b.float().abs().max().item()
        if not off <= limit:  # NaN does not
            raise TvmFlashError(f"our result is not {name}'s: {off:.1e} off at {problem.name}")
