"""A target's table of schedules: what each is made with, and the config that a build takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifact.library import DIRECTIONS
from ..errors import UnsupportedSpec
from ..problem.arguments import direction_reasons
from ..problem.lengths import DEFAULT_BUCKET
from ..problem.spec import AttentionSpec
from .config_fields import Config, checked, config_from
from .records import best_config
from .space import Knob, Space

FORWARD, SPLIT = ("forward",), ("forward_split",)
APPEND = ("append",)
LINEAR = ("linear",)
SOFTMAX, SOFTMAX_BACKWARD = ("softmax",), ("softmax_backward",)
TABLES = ("tables", "tables_deterministic")
BACKWARD = ("backward", "backward_deterministic")

# (config, spec, target) -> why the config does not serve (empty: it does).
Reasons = Callable[[Any, AttentionSpec, Any], list[str]]


@dataclass(frozen=True)
class Schedule:
    """One way to run some directions.

    config: the class of its numbers. function: what makes kernels of a spec and such numbers.
    knobs: the numbers that tuning varies. defaults(spec, target, bucket): configs where nothing was
    measured, the best first; none for a length bucket that another schedule is better at.
    padding(config, spec): columns that the head dimension is padded to, where this costs time.
    goes_first: before schedules that stand before it, wherever it has a default.
    """

    directions: tuple[str, ...]
    config: type[Config]
    function: Callable
    knobs: tuple[Knob, ...]
    defaults: Callable[[AttentionSpec, Any, str], Sequence[Config]]
    padding: Callable[[Any, AttentionSpec], int] = lambda config, spec: 0
    goes_first: bool = False


@dataclass(frozen=True)
class Candidate:
    """A config and where it comes from (records.Choice.source)."""

    config: Any
    source: str


class ScheduleTable:
    """The schedules of one kind of target, and the configs for a spec, direction and bucket.

    A target is a CpuTarget or a CudaArch. rows: the schedules by the name that configs carry.
    reasons: why a config cannot serve. residence: why a config that can is left out of searches,
    for a core has too few registers or too little memory.
    """

    def __init__(self, rows: Sequence[Schedule], reasons: Reasons, residence: Reasons):
        self.rows = {row.config.schedule: row for row in rows}
        self._reasons, self._residence = reasons, residence

    def of(self, config: Config) -> Schedule:
        """The schedule whose numbers ``config`` holds."""
        return self.rows[config.schedule]

    def as_config(self, config: Mapping[str, Any] | Config, direction: str) -> Config:
        """The config object for ``config``: itself, or one from a mapping of its fields.

        A mapping without "schedule" is of the direction's first one. Raises ValueError for a
        schedule or a knob that does not exist or is out of its limits.
        """
        if not isinstance(config, Mapping):
            return checked(config)
        serving = {row.config.schedule: row.config for row in self._serving(direction)}
        name = config.get("schedule", next(iter(serving)))
        if name not in tuple(serving):  # a name in a file may have no hash
            raise ValueError(f"schedule={name!r} must be one of {', '.join(serving)}")
        return config_from(serving[name], config)

    def defaults(
        self, spec: AttentionSpec, direction: str, target, bucket: str = DEFAULT_BUCKET
    ) -> list[Config]:
        """The configs without a tuning record, the best first.

        Raises UnsupportedSpec for a direction that the spec has not, or what no schedule serves.
        """
        if reasons := direction_reasons(spec, direction):
            raise UnsupportedSpec(reasons)
        serving = self._serving(direction)
        if not serving:
            raise UnsupportedSpec(
                [f"{spec.name}: there are no {direction!r} kernels for {target.name}"]
            )
        ordered = sorted(serving, key=lambda row: not row.goes_first)
        return [config for row in ordered for config in row.defaults(spec, target, bucket)]

    def measured(
        self,
        spec: AttentionSpec,
        direction: str,
        target,
        bucket: str = DEFAULT_BUCKET,
        folders: Sequence[Path] | None = None,
    ) -> Candidate:
        """The config of the record that serves (records.best_config); None where there is none.

        Kernels of all kinds of sequences take what was measured with dense ones. A record of
        another problem may not pad the head dimension further than the default does. Where the
        default's schedule goes first, records of targets without it do not serve.
        """
        default = self.defaults(spec, direction, target, bucket)[0]
        row = self.of(default)
        least = row.padding(default, spec)

        def reasons(fields: Mapping[str, Any], exact: bool) -> list[str]:
            config = self.as_config(fields, direction)
            wide = self.of(config).padding(config, spec)
            further = f"it pads head_dim={spec.head_dim} to {wide} columns, not {least}"
            padded = [further] if wide > least and not exact else []
            return self._reasons(config, spec, target) or padded

        for name in target.recorded[:1] if row.goes_first else target.recorded:
            found = best_config(_measured_as(spec), direction, name, bucket, reasons, folders)
            if found.config is not None:
                return Candidate(self.as_config(found.config, direction), found.source)
        return Candidate(None, "default")

    def candidates(
        self,
        spec: AttentionSpec,
        direction: str,
        target,
        bucket: str = DEFAULT_BUCKET,
        folders: Sequence[Path] | None = None,
    ) -> list[Candidate]:
        """What a build may take, in this order: the measured config, then the defaults."""
        defaults = self.defaults(spec, direction, target, bucket)
        best = self.measured(spec, direction, target, bucket, folders)
        measured = [] if best.config is None else [best]
        others = (config for config in defaults if config != best.config)
        return [*measured, *(Candidate(config, "default") for config in others)]

    def space(
        self, spec: AttentionSpec, direction: str, target, bucket: str = DEFAULT_BUCKET
    ) -> Space:
        """What tuning searches: the schedule of the default config, around it."""
        start = self.defaults(spec, direction, target, bucket)[0]

        def refuse(config: Config) -> list[str]:
            return self._reasons(config, spec, target) or self._residence(config, spec, target)

        return Space.around(start, self.of(start).knobs, refuse)

    def _serving(self, direction: str) -> list[Schedule]:
        if direction not in DIRECTIONS:
            raise ValueError(f"{direction=} must be one of {sorted(DIRECTIONS)}")
        return [row for row in self.rows.values() if direction in row.directions]


def _measured_as(spec: AttentionSpec) -> AttentionSpec:
    """The spec whose records serve ``spec``."""
    return replace(spec, sequences="dense", block_mask=None)
