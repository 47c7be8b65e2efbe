"""One problem in one direction, timed: the row that every report is made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..errors import TvmFlashError
from .contenders import EVERYBODY, Prepared, contenders_for
from .problems import Problem
from .timing import Patience, Timing, interleaved

DIRECTIONS = ("forward", "backward")

# Ours from SDPA's result, over the largest value in it. Wide enough for honest rounding of
# gradients; a kernel that computes something else is far outside.
AGREEMENT = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}

# A first call that lasted less may have compiled; the second tells how long a call takes.
LONG_SECONDS = 10.0


@dataclass(frozen=True)
class Row:
    """Timings of one problem in one direction; ``max_difference`` is ours from SDPA's result."""

    problem: Problem
    direction: str  # one of DIRECTIONS
    timings: dict[str, Timing]
    max_difference: float

    def ratio(self, other: str) -> float | None:
        """How many times faster than ``other`` we are; None if it was not run."""
        if other not in self.timings:
            return None
        return self.timings[other].median / self.timings["tvm_flash"].median

    def to_json(self) -> dict:
        """What a cell of the document says of timings."""
        flops = self.problem.flops(self.direction)
        return {
            "seconds": {name: timing.median for name, timing in self.timings.items()},
            "spread": {name: timing.spread for name, timing in self.timings.items()},
            "rounds": max(timing.rounds for timing in self.timings.values()),
            "gflops": {name: flops / t.median / 1e9 for name, t in self.timings.items()},
            "ratio": {name: self.ratio(name) for name in self.timings if name != "tvm_flash"},
            "max_difference": self.max_difference,
        }


def measure(problem: Problem, patience: Patience) -> Iterator[Row]:
    """A forward row, then a backward row, of everybody that fits."""
    for direction in DIRECTIONS:
        yield timed(problem, direction, patience)


def timed(
    problem: Problem, direction: str, patience: Patience, names: tuple[str, ...] = EVERYBODY
) -> Row:
    """The contenders ``names`` side by side, on equal inputs.

    Raises TvmFlashError when our result is not SDPA's.
    """
    prepared = {c.name: Prepared(c, problem) for c in contenders_for(problem, names)}
    with torch.set_grad_enabled(direction == "backward"):
        if direction == "backward":
            for one in prepared.values():
                one.record()
        calls = {name: getattr(one, direction) for name, one in prepared.items()}
        results, warm = {}, {}
        for name, one in prepared.items():
            result, warm[name] = warmed_up(calls[name])
            if name != "naive":
                results[name] = [one.to_bshd(x) for x in _as_tuple(result)]
        difference = _difference(problem, results["tvm_flash"], results["sdpa"])
        del results, result
        return Row(problem, direction, interleaved(calls, patience, warm=warm), difference)


def warmed_up(call: Callable[[], object]) -> tuple[object, float]:
    """The result of ``call``, and how many seconds it takes once everything is compiled."""
    for _ in range(2):
        started = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - started
        if seconds > LONG_SECONDS:
            break
    return result, seconds


def _as_tuple(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _difference(problem: Problem, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest, after it was found small enough."""
    pairs = [(a.float(), b.float()) for a, b in zip(ours, theirs, strict=True)]
    largest = max((a - b).abs().max().item() for a, b in pairs)
    for a, b in pairs:
        relative = ((a - b).abs().max() / b.abs().max()).item()
        if not relative <= AGREEMENT[problem.dtype]:  # NaN does not
            raise TvmFlashError(f"our result is not SDPA's: {relative:.1e} off at {problem.name}")
    return largest
