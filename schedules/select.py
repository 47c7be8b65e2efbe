"""The one door to schedules: (spec, direction, target) -> scheduled module, config, tile sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm

from ..artifact import DIRECTIONS, symbol_name
from ..definition.signature import as_module
from ..errors import UnsupportedSpec
from ..spec import AttentionSpec
from .cpu.backward import BackwardConfig, schedule_backward
from .cpu.defaults import backward_config, forward_config
from .cpu.forward import ForwardConfig, schedule_forward
from .target import CpuTarget


@dataclass(frozen=True)
class Scheduled:
    """A module with one function, symbol ``{spec.name}_fwd`` or ``_bwd``, and what it was built by.

    config: the schedule's numbers; meta: what a caller must know to size workspaces (block_q,
    block_k rows, head_dim_pad columns of dq_acc).
    """

    mod: tvm.IRModule
    config: dict[str, Any]
    meta: dict[str, int]


def scheduled_module(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    config: Mapping[str, Any] | ForwardConfig | BackwardConfig | None = None,
) -> Scheduled:
    """Schedule ``spec`` for ``target``; ``config`` None takes the default.

    Raises UnsupportedSpec with every reason when the config cannot serve the spec.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction=} must be one of {sorted(DIRECTIONS)}")
    config = resolve_config(spec, direction, target, config)
    if reasons := config.reasons(spec):
        raise UnsupportedSpec([f"{spec.name}: {reason}" for reason in reasons])
    schedule = schedule_forward if direction == "forward" else schedule_backward
    func = schedule(spec, config).with_attr("global_symbol", symbol_name(spec, direction))
    tile = config.tile(spec)
    meta = {"block_q": tile.block_q, "block_k": tile.block_k}
    if direction == "backward":
        meta["head_dim_pad"] = tile.depth_lanes
    return Scheduled(as_module(func), config.to_json(), meta)


def resolve_config(
    spec: AttentionSpec, direction: str, target: CpuTarget, config=None
) -> ForwardConfig | BackwardConfig:
    """The config object for ``config``: itself, one from a mapping of fields, or the default."""
    default = forward_config if direction == "forward" else backward_config
    if config is None:
        return default(spec, target)
    if isinstance(config, Mapping):
        kind = ForwardConfig if direction == "forward" else BackwardConfig
        return kind(**{key: value for key, value in config.items() if key != "schedule"})
    return config
