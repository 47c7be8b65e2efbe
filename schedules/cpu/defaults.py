"""Default configs: one table by register file, and head-dim rules; tuning records override them."""

from __future__ import annotations

from dataclasses import replace
from math import gcd, lcm

from ...problem.spec import AttentionSpec
from ..target import CpuTarget
from .backward import BackwardConfig
from .forms.dropout import SQUARE
from .forward import ForwardConfig
from .split_forward import SplitForwardConfig, default_split_config

# (vector, registers) -> lanes of a micro-kernel with 4 rows: 4 * lanes / vector accumulators, one
# row of B and a broadcast fit the register file, and the accumulators hide the FMA's latency.
LANES = {(16, 32): 64, (8, 16): 16, (4, 32): 16, (4, 16): 8}
# The same for the forward, whose tiles need not be powers of two: 12 accumulators of 16 registers.
FORWARD_LANES = {**LANES, (8, 16): 24, (4, 16): 12}

# What the staged queries and the output of a tile may take of the second-level cache (bytes).
_TILE_BYTES = 1 << 20
_MOST_ROWS = 1024

# Rows and keys of a tile of tiny problems. Measured on Emerald Rapids, float32, D = 64: 16 of both
# take 3.0 us in 16 x 16 tiles, 12.3 us in 64 x 64, which would be mostly empty. Their backward is
# 3.7 times torch's speed in 16 x 16, 1.2 in 64 x 256.
_TINY = 16


def forward_defaults(
    spec: AttentionSpec, target: CpuTarget, bucket: str
) -> tuple[ForwardConfig, ...]:
    """The forward config without a tuning record; none where keys are split."""
    if _splits_keys(spec, bucket):
        return ()
    config = forward_config(spec, target)
    if bucket == "tiny" and config.unit != "amx":
        lanes = min(LANES[target.vector, target.registers], _TINY)
        return (replace(config, block_q=_TINY, block_k=_TINY, group=_TINY, lanes=lanes),)
    return (config,)


def split_defaults(
    spec: AttentionSpec, target: CpuTarget, bucket: str
) -> tuple[SplitForwardConfig, ...]:
    """The split config without a tuning record, for decoding alone."""
    return (default_split_config(spec, target),) if _splits_keys(spec, bucket) else ()


def _splits_keys(spec: AttentionSpec, bucket: str) -> bool:
    """Whether the keys of a row are split: in decoding, without lists of blocks and dropout."""
    return bucket == "decode" and not spec.block_mask and not spec.dropout


def backward_defaults(
    spec: AttentionSpec, target: CpuTarget, bucket: str
) -> tuple[BackwardConfig, ...]:
    """The backward config without a tuning record."""
    config = backward_config(spec, target)
    if bucket == "tiny" and config.unit == "fma":
        small = dict.fromkeys(("block_q", "block_k", "step_k"), _TINY)
        return (replace(config, **small, lanes=min(config.lanes, _TINY)),)
    return (config,)


def forward_config(spec: AttentionSpec, target: CpuTarget) -> ForwardConfig:
    """The forward config without a tuning record, for sequences of some length."""
    unit = _unit(spec, target)
    if unit == "amx":
        config = ForwardConfig(
            block_q=_block_q(spec, 64), block_k=128, group=64, rows_s=32, rows_o=32, lanes=32,
            exp2_degree=spec.element.exp2_degree, unit=unit,
        )  # fmt: skip
        return _forward_in_blocks(config, spec)
    widths = LANES if spec.block_mask else FORWARD_LANES
    lanes = widths[target.vector, target.registers]
    group = lcm(lanes, SQUARE) if spec.dropout else lanes
    config = ForwardConfig(
        block_q=_block_q(spec, group),
        group=group,
        lanes=lanes,
        vector=target.vector,
        exp2_degree=spec.element.exp2_degree,
        unit=unit,
    )
    return _forward_in_blocks(config, spec)


def backward_config(spec: AttentionSpec, target: CpuTarget) -> BackwardConfig:
    """The backward config without a tuning record."""
    unit = _unit(spec, target)
    if unit == "amx":
        config = BackwardConfig(
            rows=32,
            lanes=32,
            key_rows=32,
            head_lanes=32,
            exp2_degree=spec.element.exp2_degree,
            unit=unit,
        )
        return backward_in_blocks(config, spec)
    config = BackwardConfig(
        lanes=LANES[target.vector, target.registers],
        head_lanes=_head_lanes(spec.head_dim, target),
        vector=target.vector,
        exp2_degree=spec.element.exp2_degree,
        unit=unit,
    )
    return backward_in_blocks(config, spec)


def _forward_in_blocks(config: ForwardConfig, spec: AttentionSpec) -> ForwardConfig:
    """``config`` with tiles that divide the blocks that a call lists, where it lists any."""
    if not spec.block_mask:
        return config
    queries, keys = spec.block_mask
    group = gcd(config.group, queries)
    rows = config.block_q // queries * queries or gcd(config.block_q, queries)
    return replace(
        config, block_q=rows, group=group, lanes=gcd(config.lanes, group),
        block_k=gcd(config.block_k, keys),
    )  # fmt: skip


def backward_in_blocks(config: BackwardConfig, spec: AttentionSpec) -> BackwardConfig:
    """As ``_forward_in_blocks``."""
    if not spec.block_mask:
        return config
    queries, keys = spec.block_mask
    block_k = config.block_k // keys * keys or gcd(config.block_k, keys)
    step_k = gcd(config.step_k, keys)
    return replace(
        config, block_q=gcd(config.block_q, queries), block_k=block_k, step_k=step_k,
        lanes=gcd(config.lanes, step_k),
    )  # fmt: skip


def _unit(spec: AttentionSpec, target: CpuTarget) -> str:
    """What multiplies: the widest unit of the target that takes the dtype.

    Tiles that divide small blocks are too narrow for any but "fma".
    """
    if spec.dtype != "bfloat16" or any(n % 64 for n in spec.block_mask or ()):
        return "fma"
    units = {"amx_bf16": "amx", "avx512_bf16": "dot"}
    return next((unit for feature, unit in units.items() if feature in target.features), "fma")


def _block_q(spec: AttentionSpec, group: int) -> int:
    """Most query rows of a tile: as many as the cache holds, for staged K and V to serve.

    Measured on Emerald Rapids, float32, S = 2048, ratio to torch with 64, 256, 512 and 1024 rows:
    D = 64 0.91, 1.11, 1.14, 1.17; D = 128 0.82, 1.05, 1.07, 1.09.
    """
    row = 4 * (spec.head_dim + spec.head_dim_v)
    return max(1, min(_MOST_ROWS, _TILE_BYTES // row) // group) * group


def _head_lanes(head_dim: int, target: CpuTarget) -> int:
    """Columns of the backward's products over head_dim: few padded ones, in wide tiles.

    Four rows of sums, a row of the other operand and a broadcast fit the registers. Measured on
    Emerald Rapids, D = 80: one tile of 80 columns takes 0.68 of the time of two of 48.
    """
    widths = [target.vector * n for n in range(1, (target.registers - 1) // 5 + 1)]
    padded = {width: -(-head_dim // width) * width for width in widths}
    # A narrow tile loads more for each product.
    return min(widths, key=lambda width: padded[width] * (1 + target.vector / width))
