"""The one door to schedules: a config for (spec, direction, target, bucket), and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm

from ..artifact.library import DIRECTIONS, symbol_name
from ..definition.signature import as_module
from ..errors import UnsupportedSpec
from ..problem.lengths import DEFAULT_BUCKET
from ..problem.spec import AttentionSpec
from .config_fields import checked, config_from
from .cpu.backward import BACKWARD_KNOBS, BackwardConfig, schedule_backward
from .cpu.defaults import default_config
from .cpu.forward import FORWARD_KNOBS, ForwardConfig, schedule_forward
from .cpu.split_forward import SPLIT_KNOBS, SplitForwardConfig, schedule_split_forward
from .records import best_config
from .space import Knob, Space
from .target import CpuTarget

Config = ForwardConfig | SplitForwardConfig | BackwardConfig


@dataclass(frozen=True)
class Schedule:
    """One way to run a direction: the class of its numbers, what they are given to, and which of
    them tuning varies."""

    direction: str
    config: type
    function: Callable[[AttentionSpec, Any], tvm.tirx.PrimFunc]
    knobs: tuple[Knob, ...]


# By the name that a config carries to records and manifests. The first of a direction is the one
# that a config without a name is for.
SCHEDULES = {
    "cpu.forward": Schedule("forward", ForwardConfig, schedule_forward, FORWARD_KNOBS),
    "cpu.split_forward": Schedule(
        "forward", SplitForwardConfig, schedule_split_forward, SPLIT_KNOBS
    ),
    "cpu.backward": Schedule("backward", BackwardConfig, schedule_backward, BACKWARD_KNOBS),
}


@dataclass(frozen=True)
class Scheduled:
    """A module with one function, named as artifact.symbol_name says, and what it was built by.

    config: the schedule's numbers; meta: what a caller must know to size workspaces (block_q,
    block_k rows, head_dim_pad columns of dq_acc).
    """

    mod: tvm.IRModule
    config: dict[str, Any]
    meta: dict[str, int]


@dataclass(frozen=True)
class Chosen:
    """The config of one kernel, where it comes from (records.Choice) and the buckets it serves."""

    config: Config
    source: str
    buckets: tuple[str, ...]

    @property
    def main_bucket(self) -> str:
        """The bucket that the kernel's symbol is named after."""
        general = not self.buckets or DEFAULT_BUCKET in self.buckets
        return DEFAULT_BUCKET if general else self.buckets[0]


def scheduled_module(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    config: Mapping[str, Any] | Config | None = None,
    *,
    bucket: str = DEFAULT_BUCKET,
) -> Scheduled:
    """Schedule ``spec`` for ``target``; ``config`` None takes what ``choose`` says for ``bucket``.

    Raises UnsupportedSpec with every reason when the config cannot serve the spec.
    """
    symbol = symbol_name(spec, direction, bucket)
    if config is None:
        config = choose(spec, direction, target, bucket).config
    config = as_config(config, direction)
    if reasons := config.reasons(spec):
        raise UnsupportedSpec([f"{spec.name}: {reason}" for reason in reasons])
    func = SCHEDULES[config.to_json()["schedule"]].function(spec, config)
    tile = config.tile(spec)
    meta = {"block_q": tile.block_q, "block_k": tile.block_k}
    if direction == "backward":
        meta["head_dim_pad"] = tile.depth_lanes
    return Scheduled(as_module(func.with_attr("global_symbol", symbol)), config.to_json(), meta)


def choose(
    spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str = DEFAULT_BUCKET
) -> Chosen:
    """The config for one length bucket: measured (schedules/records.py), else the default."""
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction=} must be one of {sorted(DIRECTIONS)}")
    default = default_config(spec, direction, target, bucket)

    def reasons(config: Mapping[str, Any], exact: bool) -> list[str]:
        return _misfits(config, spec, direction, None if exact else default)

    found = best_config(spec, direction, target.name, bucket, reasons)
    config = default if found.config is None else as_config(found.config, direction)
    return Chosen(config, found.source, (bucket,))


def choose_all(
    spec: AttentionSpec, direction: str, target: CpuTarget, buckets: Iterable[str]
) -> list[Chosen]:
    """The distinct configs over ``buckets``, each with all that it serves, the main one first."""
    merged: dict[Config, Chosen] = {}
    for bucket in buckets:
        new = choose(spec, direction, target, bucket)
        known = merged.get(new.config, Chosen(new.config, "", ()))
        sources = dict.fromkeys([*filter(None, known.source.split("; ")), new.source])
        both = (*known.buckets, *new.buckets)
        merged[new.config] = Chosen(new.config, "; ".join(sources), both)
    return sorted(merged.values(), key=lambda chosen: chosen.main_bucket != DEFAULT_BUCKET)


def space_of(
    spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str = DEFAULT_BUCKET
) -> Space:
    """What tuning searches for one length bucket: the schedule of its default config, around it.

    Micro-kernels that would fill more registers than the target has are refused unbuilt.
    """
    start = default_config(spec, direction, target, bucket)

    def refuse(config: Config) -> list[str]:
        found = config.reasons(spec)
        if config.registers > target.registers:
            found.append(
                f"its micro-kernel needs {config.registers} vector registers, "
                f"{target.name} has {target.registers}"
            )
        return found

    return Space.around(start, SCHEDULES[start.to_json()["schedule"]].knobs, refuse)


def as_config(config: Mapping[str, Any] | Config, direction: str) -> Config:
    """The config object for ``config``: itself, or one from a mapping of its fields.

    Raises ValueError for a schedule or a knob that does not exist or is out of its limits.
    """
    if not isinstance(config, Mapping):
        return checked(config)
    direction = "forward" if direction == "forward" else "backward"
    serving = {name: s for name, s in SCHEDULES.items() if s.direction == direction}
    name = config.get("schedule", next(iter(serving)))
    if name not in tuple(serving):
        raise ValueError(f"schedule={name!r} must be one of {', '.join(serving)}")
    return config_from(serving[name].config, config)


def _misfits(
    config: Mapping[str, Any], spec: AttentionSpec, direction: str, default: Config | None
) -> list[str]:
    """Why a record cannot serve ``spec``; ValueError where it is none of this release.

    With ``default``: of another problem; then it may not pad the head dimension further.
    """
    known = as_config(config, direction)
    reasons = known.reasons(spec)
    if default is None or reasons:
        return reasons
    wide, least = (getattr(c.tile(spec), "depth_lanes", 0) for c in (known, default))
    padded = f"it pads head_dim={spec.head_dim} to {wide} columns, not {least}"
    return [padded] if wide > least else []
