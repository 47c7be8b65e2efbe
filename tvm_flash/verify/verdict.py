"""What verifying found: for each problem, for each kernel, together; plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .problems import Problem
from .rule import Deviation

if TYPE_CHECKING:
    from ..ptx_interpreter import Report


@dataclass(frozen=True)
class Counts:
    """Sums over all launches of a kernel.

    instructions: of PTX, by warps. bank_conflicts: extra wavefronts. device_bytes: read from and
    written to device memory, each byte once per warp and instruction; atomics, in lanes, come on
    top.
    """

    instructions: int = 0
    bank_conflicts: int = 0
    device_bytes: int = 0
    atomics: int = 0

    @classmethod
    def of(cls, reports: Iterable[Report]) -> Counts:
        each = [
            cls(
                r.instructions.total(),
                r.total_bank_conflicts,
                r.bytes_read.total() + r.bytes_written.total(),
                r.atomics.total(),
            )
            for r in reports
        ]
        return cls.total(each)

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        rows = [asdict(c).values() for c in counts]
        return cls(*(int(sum(column)) for column in zip(*rows, strict=True)))


@dataclass(frozen=True)
class Outcome:
    """One run on one problem. failure: what was wrong, "" when nothing was."""

    problem: Problem
    deviations: tuple[Deviation, ...] = ()
    counts: Counts = Counts()
    seconds: float = 0.0
    rows_without_keys: int = 0
    failure: str = ""

    @property
    def ok(self) -> bool:
        return not self.failure

    @property
    def worst(self) -> Deviation | None:
        """The result that came nearest to what is allowed, or passed it."""
        return max(self.deviations, key=lambda d: d.share, default=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "problem": self.problem.to_json(),
            "ok": self.ok,
            "failure": self.failure,
            # JSON has no infinity: null is an error without bound.
            "errors": {
                d.result: {"error": _finite(d.error), "allowed": _finite(d.allowed)}
                for d in self.deviations
            },
            **asdict(self.counts),
            "rows_without_keys": self.rows_without_keys,
            "seconds": round(self.seconds, 4),
        }


@dataclass(frozen=True)
class KernelVerdict:
    """A kernel (of a CUDA library: one variant of it, which serves ``archs``) on all problems."""

    symbol: str
    direction: str
    archs: tuple[str, ...]
    tile: tuple[int, int]
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        return all(outcome.ok for outcome in self.outcomes)

    @property
    def worst(self) -> Deviation | None:
        """The worst of all problems."""
        found = [d for outcome in self.outcomes for d in outcome.deviations]
        return max(found, key=lambda d: d.share, default=None)

    @property
    def counts(self) -> Counts:
        return Counts.total(outcome.counts for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.symbol,
            "direction": self.direction,
            "archs": list(self.archs),
            "block_q": self.tile[0],
            "block_k": self.tile[1],
            "ok": self.ok,
            "problems": [outcome.to_json() for outcome in self.outcomes],
        }


@dataclass(frozen=True)
class Verification:
    """Everything that was verified of ``subject``, an artifact's path or a spec's name.

    device: "cuda" (interpreted) or "cpu" (run natively).
    """

    subject: str
    device: str
    seed: int
    kernels: tuple[KernelVerdict, ...]

    @property
    def ok(self) -> bool:
        return all(kernel.ok for kernel in self.kernels)

    def to_json(self) -> dict[str, Any]:
        kernels = [kernel.to_json() for kernel in self.kernels]
        known = {"subject": self.subject, "device": self.device, "seed": self.seed}
        return {**known, "ok": self.ok, "kernels": kernels}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
