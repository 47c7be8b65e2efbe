"""The schedules for CPUs: a config for (spec, direction, target, bucket), and what it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from ..artifact.library import symbol_name
from ..definition.signature import as_module
from ..errors import UnsupportedSpec
from ..problem.lengths import DEFAULT_BUCKET
from ..problem.spec import AttentionSpec
from .config_fields import Config
from .cpu.append import AppendConfig, append_defaults, schedule_append
from .cpu.backward import BACKWARD_KNOBS, BackwardConfig, schedule_backward
from .cpu.defaults import backward_defaults, forward_defaults, split_defaults
from .cpu.forward import FORWARD_KNOBS, ForwardConfig, schedule_forward
from .cpu.linear import LinearConfig, linear_defaults, schedule_linear
from .cpu.linear_steps import LinearStepsConfig, linear_steps_defaults, schedule_linear_steps
from .cpu.row_softmax import (
    RowGradientConfig,
    RowSoftmaxConfig,
    schedule_softmax,
    schedule_softmax_gradient,
)
from .cpu.split_forward import SPLIT_KNOBS, SplitForwardConfig, schedule_split_forward
from .cpu.table_gradients import (
    TableGradientConfig,
    schedule_table_gradients,
    table_gradient_defaults,
)
from .space import Space
from .table import (
    APPEND,
    BACKWARD,
    FORWARD,
    LINEAR,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    SPLIT,
    TABLES,
    Schedule,
    ScheduleTable,
)
from .target import CpuTarget


def _misfits(config: Any, spec: AttentionSpec, target: CpuTarget) -> list[str]:
    return config.reasons(spec)


def _registers(config: Any, spec: AttentionSpec, target: CpuTarget) -> list[str]:
    """Micro-kernels that would fill more registers than the target has are refused unbuilt."""
    needed, there = config.registers, target.registers
    if needed <= there:
        return []
    return [f"its micro-kernel needs {needed} vector registers, {target.name} has {there}"]


# Which of them divides keys is chosen by length.
_FORWARDS = (*FORWARD, *SPLIT)
SCHEDULES = ScheduleTable(
    [
        Schedule(_FORWARDS, ForwardConfig, schedule_forward, FORWARD_KNOBS, forward_defaults),
        Schedule(
            _FORWARDS, SplitForwardConfig, schedule_split_forward, SPLIT_KNOBS, split_defaults
        ),
        Schedule(
            BACKWARD, BackwardConfig, schedule_backward, BACKWARD_KNOBS, backward_defaults,
            padding=lambda config, spec: config.tile(spec).depth_lanes,
        ),
        Schedule(
            TABLES, TableGradientConfig, schedule_table_gradients, (), table_gradient_defaults
        ),
        Schedule(APPEND, AppendConfig, schedule_append, (), append_defaults),
        Schedule(LINEAR, LinearConfig, schedule_linear, (), linear_defaults),
        Schedule(LINEAR, LinearStepsConfig, schedule_linear_steps, (), linear_steps_defaults),
        Schedule(SOFTMAX, RowSoftmaxConfig, schedule_softmax, (), RowSoftmaxConfig.defaults),
        Schedule(
            SOFTMAX_BACKWARD, RowGradientConfig, schedule_softmax_gradient, (),
            RowGradientConfig.defaults,
        ),
    ],
    reasons=_misfits,
    residence=_registers,
)  # fmt: skip
as_config = SCHEDULES.as_config


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
    func = SCHEDULES.of(config).function(spec, config)
    tile = config.tile(spec)
    meta = {"block_q": tile.block_q, "block_k": tile.block_k}
    if direction == "backward":
        meta["head_dim_pad"] = tile.depth_lanes
    return Scheduled(as_module(func.with_attr("global_symbol", symbol)), config.to_json(), meta)


def choose(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    bucket: str = DEFAULT_BUCKET,
    folders: Sequence[Path] | None = None,
) -> Chosen:
    """The config for one length bucket: measured (schedules/records.py), else the default."""
    best = SCHEDULES.candidates(spec, direction, target, bucket, folders)[0]
    return Chosen(best.config, best.source, (bucket,))


def choose_all(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    buckets: Iterable[str],
    folders: Sequence[Path] | None = None,
) -> list[Chosen]:
    """The distinct configs over ``buckets``, each with all that it serves, the main one first.

    folders: of records, the package's own unless given.
    """
    merged: dict[Config, Chosen] = {}
    for bucket in buckets:
        new = choose(spec, direction, target, bucket, folders)
        known = merged.get(new.config, Chosen(new.config, "", ()))
        sources = dict.fromkeys([*filter(None, known.source.split("; ")), new.source])
        both = (*known.buckets, *new.buckets)
        merged[new.config] = Chosen(new.config, "; ".join(sources), both)
    return sorted(merged.values(), key=lambda chosen: chosen.main_bucket != DEFAULT_BUCKET)


def space_of(
    spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str = DEFAULT_BUCKET
) -> Space:
    """What tuning searches for one length bucket: the schedule of its default config, around it."""
    return SCHEDULES.space(spec, direction, target, bucket)
