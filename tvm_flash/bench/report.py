"""A whole measurement: walks the problems, yields rows, and puts them into one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from .contenders import CONTENDERS, Prepared, contenders_for
from .host import Host
from .memory import extra_bytes
from .problems import Problem
from .timing import Patience, Timing, interleaved

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """Timings of one problem in one direction; ``max_difference`` is ours from SDPA's result."""

    problem: Problem
    direction: str  # "forward" or "backward"
    timings: dict[str, Timing]
    max_difference: float

    def ratio(self, other: str) -> float | None:
        """How many times faster than ``other`` we are; None if it was not run."""
        if other not in self.timings:
            return None
        return self.timings[other].median / self.timings["tvm_flash"].median

    def to_json(self) -> dict:
        """One entry of the document's "rows"."""
        flops = self.problem.flops(self.direction)
        return {
            "dtype": self.problem.dtype,
            "head_dim": self.problem.head_dim,
            "seqlen": self.problem.seqlen,
            "causal": self.problem.causal,
            "batch": self.problem.batch,
            "heads": self.problem.heads,
            "direction": self.direction,
            "contenders": {
                name: {
                    "seconds": timing.median,
                    "spread": timing.spread,
                    "rounds": timing.rounds,
                    "gflops": flops / timing.median / 1e9,
                }
                for name, timing in self.timings.items()
            },
            "ratio": {name: self.ratio(name) for name in ("sdpa", "naive")},
            "max_difference": self.max_difference,
        }


@dataclass(frozen=True)
class MemoryRow:
    """Peak bytes above the inputs of one contender at one length."""

    problem: Problem
    contender: str
    bytes: dict[str, int | None]

    def to_json(self) -> dict:
        """One entry of the document's "memory"."""
        return {
            "dtype": self.problem.dtype,
            "head_dim": self.problem.head_dim,
            "seqlen": self.problem.seqlen,
            "causal": self.problem.causal,
            "batch": self.problem.batch,
            "heads": self.problem.heads,
            "contender": self.contender,
            **{f"{direction}_bytes": value for direction, value in self.bytes.items()},
        }


@dataclass
class Report:
    """Everything one run measured; ``to_json`` is described in benchmarks/README.md."""

    host: Host
    rows: list[Row] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)

    def to_json(self) -> dict:
        """The document of ``tvm-flash bench --json``."""
        return {
            "format": FORMAT,
            "host": self.host.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "memory": [row.to_json() for row in self.memory],
        }


def measure(problem: Problem, patience: Patience) -> Iterator[Row]:
    """A forward row, then a backward row."""
    prepared = {c.name: Prepared(c, problem) for c in contenders_for(problem)}
    outs = {name: p.to_bshd(p.forward()) for name, p in prepared.items() if name != "naive"}
    forward = interleaved({name: p.forward for name, p in prepared.items()}, patience)
    yield Row(problem, "forward", forward, _difference(outs["tvm_flash"], outs["sdpa"]))
    for p in prepared.values():
        p.record()
    grads = {
        name: [p.to_bshd(grad) for grad in p.backward()]
        for name, p in prepared.items()
        if name != "naive"
    }
    difference = max(map(_difference, grads["tvm_flash"], grads["sdpa"]))
    backward = interleaved({name: p.backward for name, p in prepared.items()}, patience)
    yield Row(problem, "backward", backward, difference)


def measure_memory(problem: Problem) -> Iterator[MemoryRow]:
    """One row for each contender that fits."""
    fitting = {c.name for c in contenders_for(problem)}
    for contender in CONTENDERS:
        if contender.name in fitting:
            yield MemoryRow(problem, contender.name, extra_bytes(contender, problem))


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (ours.float() - theirs.float()).abs().max().item()
