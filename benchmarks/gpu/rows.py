"""One problem timed in both directions: medians, ratios, and who is missing and why."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from tvm_flash.bench import Patience, Problem, Timing

from .clock import Stopwatch, interleaved, reason, settle
from .contenders import OURS, Contender, Prepared


@dataclass
class Row:
    """Timings of one problem in one direction.

    ``missing``: why a contender has no timing. ``difference``: largest absolute difference of a
    contender's results from those of the first that ran.
    """

    problem: Problem
    direction: str  # "forward" or "backward"
    timings: dict[str, Timing]
    missing: dict[str, str] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)

    def tflops(self, name: str) -> float:
        """As FlashAttention counts them."""
        return self.problem.flops(self.direction) / self.timings[name].median / 1e12

    def ratio(self, other: str) -> float | None:
        """How many times faster than ``other`` we are; None if either was not run."""
        if other not in self.timings or OURS not in self.timings:
            return None
        return self.timings[other].median / self.timings[OURS].median

    def to_json(self) -> dict:
        """One entry of the document's "rows"."""
        p = self.problem
        return {
            "dtype": p.dtype,
            "head_dim": p.head_dim,
            "seqlen": p.seqlen,
            "causal": p.causal,
            "batch": p.batch,
            "heads": p.heads,
            "direction": self.direction,
            "contenders": {
                name: {
                    "seconds": timing.median,
                    "spread": timing.spread,
                    "rounds": timing.rounds,
                    "tflops": self.tflops(name),
                }
                for name, timing in self.timings.items()
            },
            "ratio": {name: self.ratio(name) for name in self.timings if name != OURS},
            "missing": self.missing,
            "difference": self.difference,
        }


def measure(
    problem: Problem,
    contenders: tuple[Contender, ...],
    stopwatch: Stopwatch,
    patience: Patience,
    device: str,
) -> Iterator[Row]:
    """A forward row, then a backward row; a contender that raises is missing, the rest go on."""
    missing: dict[str, str] = {}
    prepared = _prepare(problem, contenders, device, missing)
    for direction in ("forward", "backward"):
        difference = _first_calls(prepared, direction, missing)
        prepared = {name: p for name, p in prepared.items() if name in difference}
        calls = {name: getattr(p, direction) for name, p in prepared.items()}
        for call in list(calls.values())[:1]:
            settle(stopwatch, call, patience.seconds)
        timings, failed = interleaved(calls, stopwatch, patience)
        missing |= failed
        prepared = {name: p for name, p in prepared.items() if name not in failed}
        yield Row(problem, direction, timings, dict(missing), difference)


def _prepare(problem, contenders, device: str, missing: dict[str, str]) -> dict[str, Prepared]:
    prepared = {}
    for contender in contenders:
        try:
            prepared[contender.name] = Prepared(contender, problem, device)
        except Exception as error:
            missing[contender.name] = reason(error)
            _release(device)
    return prepared


def _first_calls(
    prepared: dict[str, Prepared], direction: str, missing: dict[str, str]
) -> dict[str, float]:
    """An untimed call of everybody, which compiles and tunes; differences of those that ran."""
    first, difference = None, {}
    for name, contender in prepared.items():
        try:
            results = [contender.as_bshd(x).detach() for x in _run(contender, direction)]
            first = first or results
            # Errors of kernels show when the device is waited for, as this does.
            difference[name] = max(map(_largest_difference, results, first))
        except Exception as error:
            missing[name] = reason(error)
            contender.out = None
    return difference


def _run(contender: Prepared, direction: str) -> tuple[torch.Tensor, ...]:
    if direction == "forward":
        return (contender.forward(),)
    contender.record()
    return contender.backward()


def _largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def _release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
