"""The table of CUDA schedules: the kernels that run each direction, in the order of launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ...problem.spec import AttentionSpec
from ..table import (
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
from .append import AppendConfig, append_launch
from .arch import CudaArch
from .backward import key_gradient_launch
from .backward_config import BACKWARD_KNOBS, BackwardConfig
from .backward_dq import ordered_query_gradient_launch
from .defaults import (
    backward_configs,
    forward_configs,
    linear_configs,
    ordered_configs,
    split_configs,
)
from .forward import FORWARD_KNOBS, ForwardConfig, forward_launch
from .gradient_sums import InQuads, sum_order
from .hopper.backward import hopper_key_gradient_launch
from .hopper.backward_config import HOPPER_BACKWARD_KNOBS, HopperBackwardConfig
from .hopper.backward_dq import hopper_ordered_launch
from .hopper.defaults import (
    hopper_backward_configs,
    hopper_forward_configs,
    hopper_ordered_configs,
)
from .hopper.forward import hopper_forward_launch
from .hopper.forward_config import HOPPER_FORWARD_KNOBS, HopperForwardConfig
from .linear import linear_launches
from .linear_config import LinearConfig
from .merge import merge_launch
from .program import Launch
from .residence import residence_reasons
from .row_gradient import RowGradientConfig, row_gradient_launch
from .row_kernels import delta_launch, query_gradient_launch
from .row_softmax import RowSoftmaxConfig, row_softmax_launch
from .sink_gradient import sink_gradient_launch
from .split_forward import SplitForwardConfig, parts_launch
from .table_gradients import (
    OrderedTableGradientConfig,
    TableGradientConfig,
    table_configs,
    table_gradient_launch,
)
from .table_sums import FloatSums, IntegerSums, LargestNumbers, fixed_to_float_launch
from .tiling import round_up


def forward_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """The forward is one kernel."""
    (config,) = configs
    return [forward_launch(spec, config, arch, symbol)], _blocks(config)


def hopper_forward_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """The same by warp groups."""
    (config,) = configs
    return [hopper_forward_launch(spec, config, arch, symbol)], _blocks(config)


def split_forward_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """The states of parts of the keys, then their merge."""
    (config,) = configs
    launches = [
        parts_launch(spec, config, arch, f"{symbol}_parts"),
        merge_launch(spec, config, f"{symbol}_merge"),
    ]
    return launches, {**_blocks(config), "head_dim_pad": round_up(spec.head_dim_v, 16)}


def backward_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """delta of the rows; dK and dV by key tile; dQ out of their sums, or by itself in order; the
    gradient of the sink."""
    return _backward_passes(spec, configs, arch, symbol, key_gradient_launch, sum_order)


def hopper_backward_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """The same, dK and dV by warp groups."""
    return _backward_passes(spec, configs, arch, symbol, hopper_key_gradient_launch, InQuads)


def _backward_passes(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str,
    key_gradients: Callable, order_of: Callable,
) -> tuple[list[Launch], dict[str, int]]:  # fmt: skip
    """order_of: how the sums of dQ lie (gradient_sums)."""
    config, *ordered = configs
    first = [delta_launch(spec, f"{symbol}_delta")] if spec.row_statistics else []
    launches = [
        *first,
        key_gradients(spec, config, arch, f"{symbol}_dkdv", with_dq=not ordered),
    ]
    meta = _blocks(config)
    if ordered:
        name = f"{symbol}_dq"
        launches.append(_ORDERED_LAUNCHES[type(ordered[0])](spec, ordered[0], arch, name))
    else:
        depth = config.depth(spec.head_dim)
        tile = config.block_q, depth
        launches.append(query_gradient_launch(spec, arch, f"{symbol}_dq", *tile, order_of))
        meta["head_dim_pad"] = depth
    if spec.softmax == "sink":
        launches.append(sink_gradient_launch(spec, f"{symbol}_dsink"))
    return launches, meta


def table_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """delta of the rows; the gradients of captured tables by atomics."""
    (config,) = configs
    return _table_passes(spec, config, arch, symbol, sums=FloatSums), _blocks(config)


def ordered_table_launches(
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """The same by integers, whose unit a pass before finds."""
    (config,) = configs
    passes = {"largest": LargestNumbers, "fixed": IntegerSums}
    launches = _table_passes(spec, config, arch, symbol, **passes)
    return [*launches, fixed_to_float_launch(spec, f"{symbol}_float")], _blocks(config)


def _table_passes(spec, config, arch, symbol: str, **passes: type[FloatSums]) -> list[Launch]:
    delta = [delta_launch(spec, f"{symbol}_delta")] if spec.row_statistics else []
    return delta + [
        table_gradient_launch(spec, config, arch, f"{symbol}_{name}", sums)
        for name, sums in passes.items()
    ]


def row_launches(
    launch: Callable[..., Launch],
    spec: AttentionSpec, configs: tuple, arch: CudaArch, symbol: str,
) -> tuple[list[Launch], dict[str, int]]:  # fmt: skip
    """A kernel that moves rows (``RowConfig``) is one launch, which has no tiles."""
    return [launch(spec, arch, symbol)], {"block_q": 1, "block_k": 1}


def _blocks(config: Any) -> dict[str, int]:
    return {"block_q": config.block_q, "block_k": config.block_k}


SCHEDULES = ScheduleTable(
    [
        Schedule(FORWARD, ForwardConfig, forward_launches, FORWARD_KNOBS, forward_configs),
        Schedule(
            FORWARD, HopperForwardConfig, hopper_forward_launches, HOPPER_FORWARD_KNOBS,
            hopper_forward_configs, goes_first=True,
        ),
        Schedule(SPLIT, SplitForwardConfig, split_forward_launches, FORWARD_KNOBS, split_configs),
        Schedule(BACKWARD, BackwardConfig, backward_launches, BACKWARD_KNOBS, backward_configs),
        Schedule(
            BACKWARD, HopperBackwardConfig, hopper_backward_launches, HOPPER_BACKWARD_KNOBS,
            hopper_backward_configs, goes_first=True,
        ),
        Schedule(TABLES[:1], TableGradientConfig, table_launches, (), table_configs),
        Schedule(
            TABLES[1:], OrderedTableGradientConfig, ordered_table_launches, (),
            partial(table_configs, ordered=True),
        ),
        Schedule(APPEND, AppendConfig, partial(row_launches, append_launch), (), AppendConfig.only),
        Schedule(
            SOFTMAX, RowSoftmaxConfig, partial(row_launches, row_softmax_launch), (),
            RowSoftmaxConfig.only,
        ),
        Schedule(
            SOFTMAX_BACKWARD, RowGradientConfig, partial(row_launches, row_gradient_launch), (),
            RowGradientConfig.only,
        ),
        Schedule(LINEAR, LinearConfig, linear_launches, (), linear_configs),
    ],
    reasons=lambda config, spec, arch: config.reasons(spec, arch),
    residence=residence_reasons,
)  # fmt: skip
# The second tiled kernel of the ordered backward, which is not searched: dQ alone.
_ORDERED_LAUNCHES = {
    ForwardConfig: ordered_query_gradient_launch, HopperForwardConfig: hopper_ordered_launch,
}  # fmt: skip
ORDERED_DIRECTIONS = ("backward_deterministic",)


def ordered_dq_configs(spec: AttentionSpec, arch: CudaArch) -> list[Any]:
    """Its configs, the best first. Raises UnsupportedSpec."""
    return [*hopper_ordered_configs(spec, arch), *ordered_configs(spec, arch)]
