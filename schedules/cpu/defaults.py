"""Default configs: one table by register file, and head-dim rules; tuning records override them."""

from __future__ import annotations

from ...spec import AttentionSpec
from ..target import CpuTarget
from .backward import BackwardConfig
from .forward import ForwardConfig

# (vector, registers) -> lanes of a micro-kernel with 4 rows: 4 * lanes / vector accumulators, one
# row of B and a broadcast fit the register file, and the accumulators hide the FMA's latency.
LANES = {(16, 32): 64, (8, 16): 16, (4, 32): 16, (4, 16): 8}

# Relative error 7.5e-5 (degree 3) and 3e-6 (degree 4) lie below half an ulp of bf16 and fp16.
EXP2_DEGREE = {"float32": 5, "float16": 4, "bfloat16": 3}


def forward_config(spec: AttentionSpec, target: CpuTarget) -> ForwardConfig:
    """The forward config without a tuning record."""
    degree = EXP2_DEGREE[spec.dtype]
    if spec.dtype == "bfloat16" and "amx_bf16" in target.features:
        return ForwardConfig(
            block_k=128, rows_s=32, rows_o=32, lanes=32, exp2_degree=degree, unit="amx"
        )
    lanes = LANES[target.vector, target.registers]
    pairs = spec.dtype == "bfloat16" and "avx512_bf16" in target.features
    return ForwardConfig(
        block_q=_block_q(spec, "dot" if pairs else "fma"),
        lanes=lanes,
        vector=target.vector,
        exp2_degree=degree,
        unit="dot" if pairs else "fma",
    )


def backward_config(spec: AttentionSpec, target: CpuTarget) -> BackwardConfig:
    """The backward config without a tuning record."""
    lanes = LANES[target.vector, target.registers]
    return BackwardConfig(
        lanes=lanes,
        head_lanes=_head_lanes(spec.head_dim, target.vector, lanes),
        vector=target.vector,
        exp2_degree=EXP2_DEGREE[spec.dtype],
    )


def _block_q(spec: AttentionSpec, unit: str) -> int:
    """Rows of a query tile: more where staging K and V weighs more than a tile's cache footprint.

    Measured on Zen 4, float32, D = 128, S = 8192: 128 rows take 0.93 of the time of 64.
    """
    return 128 if unit == "fma" and 128 <= spec.head_dim <= 256 else 64


def _head_lanes(head_dim: int, vector: int, lanes: int) -> int:
    """Columns of the dQ micro-kernel: the fewest padded ones, then the widest tile."""
    widths = [vector * n for n in range(1, lanes // vector + 1)]
    padded = {width: -(-head_dim // width) * width for width in widths}
    # One vector less than the full tile costs more than a few padded columns.
    return min(widths, key=lambda width: padded[width] * (1 + vector / width))
