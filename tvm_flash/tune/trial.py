"""What is searched, and what became of one candidate."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from ..problem.lengths import bucket_of
from ..problem.spec import AttentionSpec
from ..schedules.space import Point, Space


class Sizes(NamedTuple):
    """The problem that is timed."""

    batch: int
    num_heads: int
    num_kv_heads: int
    seqlen_q: int
    seqlen_k: int


@dataclass(frozen=True)
class SearchTask:
    """One search: ``space`` on one problem and target.

    target: name of a CpuTarget or CudaArch. threads: of torch, for CPUs.
    """

    space: Space
    spec: AttentionSpec
    direction: str
    target: str
    sizes: Sizes
    threads: int = 1

    @property
    def bucket(self) -> str:
        """The length bucket whose config is sought."""
        return bucket_of(self.direction, self.sizes.seqlen_q, self.sizes.seqlen_k)


@dataclass(frozen=True)
class Trial:
    """What became of one config.

    outcome: one of record_format.OUTCOMES. error, allowed: of the result nearest to the error
    rule's limit. seconds, incumbent_seconds: per call, repeats in turns. resources: what the
    compiler says of the code (registers, spills, instructions). note: why it failed.
    """

    outcome: str
    error: float | None = None
    allowed: float | None = None
    seconds: tuple[float, ...] = ()
    incumbent_seconds: tuple[float, ...] = ()
    resources: dict[str, Any] = field(default_factory=dict, compare=False)
    note: str = ""

    @cached_property
    def ratio(self) -> float:
        """Median time over the incumbent's, of repeats that were neighbours."""
        return statistics.median(self._ratios())

    @cached_property
    def spread(self) -> float:
        """How uncertain that median is: 1.57 interquartile ranges over the root of the count.

        The notch of a box plot (McGill, Tukey and Larsen, 1978), about a 95 % interval.
        """
        low, _, high = statistics.quantiles(self._ratios(), n=4)
        return 1.57 * (high - low) / len(self.seconds) ** 0.5

    def _ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.seconds, self.incumbent_seconds, strict=True)]


class Observation(NamedTuple):
    """What a strategy is told of a point that it proposed: seconds, None where it failed."""

    point: Point
    seconds: float | None
