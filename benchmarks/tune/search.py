"""Coordinate descent over the numbers of a schedule, with measurements that others make."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from tvm_flash.schedules.select import Config
from tvm_flash.spec import AttentionSpec

# Values to try, by schedule and field; what a config's ``reasons`` refuse is not tried. Fields that
# a schedule does not have are passed over, and fields without a row keep their value.
CANDIDATES: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu.forward": {
        "block_q": (16, 32, 64, 128, 256, 512, 1024),
        "group": (16, 32, 64, 128, 256),
        "block_k": (16, 32, 64, 96, 128, 256),
        "lanes": (16, 32, 48, 64),
        "rows_s": (2, 4, 6, 8, 12),
        "rows_o": (2, 4, 6, 8, 12),
        "tasks_per_thread": (1, 2, 4, 8),
        "exp2_degree": (3, 4, 5, 6),
    },
    "cpu.split_forward": {
        "rows": (4, 8, 16),
        "row_block": (1, 2, 4, 8),
        "chunk": (128, 256, 512, 1024, 2048),
        "block_k": (16, 32, 64),
        "step": (1, 2, 4, 8),
        "columns": (32, 64, 128),
    },
    "cpu.backward": {
        "block_q": (32, 64, 128, 256),
        "block_k": (64, 128, 256, 512),
        "step_k": (32, 64, 128),
        "rows": (2, 4, 8),
        "lanes": (16, 32, 64),
        "key_rows": (2, 4, 8),
        "head_lanes": (16, 32, 48, 64),
        "unroll": (1, 2, 4),
    },
}


@dataclass(frozen=True)
class Trial:
    """What became of one config. seconds, incumbent_seconds: repeats, one after the other."""

    outcome: str
    error: float | None = None
    allowed: float | None = None
    seconds: tuple[float, ...] = ()
    incumbent_seconds: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Median time over the incumbent's, of repeats that were neighbours."""
        return statistics.median(self._ratios())

    @property
    def spread(self) -> float:
        """How uncertain that median is: 1.57 interquartile ranges over the root of the count.

        The notch of a box plot (McGill, Tukey and Larsen, 1978), about a 95 % interval.
        """
        low, _, high = statistics.quantiles(self._ratios(), n=4)
        return 1.57 * (high - low) / len(self.seconds) ** 0.5

    def _ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.seconds, self.incumbent_seconds, strict=True)]


def neighbours(config: Config, spec: AttentionSpec, order: random.Random) -> Iterator[Config]:
    """Configs that differ in one number, or in two where the first alone is refused."""
    table = CANDIDATES[config.to_json()["schedule"]]
    own = [field.name for field in fields(config) if field.name in table]
    order.shuffle(own)
    for name in own:
        for value in table[name]:
            changed = replace(config, **{name: value})
            if value == getattr(config, name):
                continue
            if not changed.reasons(spec):
                yield changed
                continue
            pairs = ((other, second) for other in own if other != name for second in table[other])
            mended = (replace(changed, **{other: second}) for other, second in pairs)
            yield from (candidate for candidate in mended if not candidate.reasons(spec))


def search(
    start: Config,
    spec: AttentionSpec,
    trials: int,
    seed: int,
    attempt: Callable[[Config, Config, bool], Trial],
    record: Callable[[int, Config, Trial, bool], None],
) -> Config:
    """The best of up to ``trials`` configs: coordinate descent from ``start``.

    attempt(config, incumbent, again) measures beside the incumbent. A config that was faster takes
    its place when it wins a second measurement by more than that one's spread.
    record(number, config, trial, best) is told of every measurement.
    """
    best, tried, number, order = start, {start}, 0, random.Random(seed)
    moved = True
    while moved:
        moved = False
        for config in neighbours(best, spec, order):
            if config in tried:
                continue
            if number == trials:
                return best
            tried.add(config)
            number += 1
            trial = attempt(config, best, False)
            record(number, config, trial, False)
            if trial.outcome != "ok" or trial.ratio >= 1:
                continue
            again = attempt(config, best, True)
            won = again.outcome == "ok" and again.ratio + again.spread < 1
            record(number, config, again, won)
            if won:
                best, moved = config, True
                break
    return best
