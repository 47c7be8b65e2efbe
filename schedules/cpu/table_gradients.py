"""Gradients of captured tables on CPUs: keys in vector lanes, two products per pair of blocks."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...problem.spec import AttentionSpec
from ..target import CpuTarget
from .backward import BackwardConfig, band_product
from .defaults import backward_config, backward_in_blocks
from .forms.table_gradients import table_gradients
from .steps import transpose, vectorize
from .transpose_tile import with_transpose
from .vector_math import VectorMath


@dataclass(frozen=True)
class TableGradientConfig(BackwardConfig):
    """As ``BackwardConfig``, of which only the products S and dP are used."""

    schedule = "cpu.table_gradients"


def table_gradient_defaults(
    spec: AttentionSpec, target: CpuTarget, bucket: str
) -> tuple[TableGradientConfig, ...]:
    """The only config: inputs of 16 bits are multiplied as float32."""
    usual = backward_config(spec, target)
    lanes, vector, degree = 4 * target.vector, target.vector, usual.exp2_degree
    config = TableGradientConfig(lanes=lanes, vector=vector, exp2_degree=degree)
    return (backward_in_blocks(config, spec),)


def schedule_table_gradients(spec: AttentionSpec, config: TableGradientConfig) -> tirx.PrimFunc:
    """``table_gradients`` of ``spec``, ready to compile."""
    tile = config.tile(spec)
    sch = s_tir.Schedule(table_gradients(spec, tile, VectorMath(config.exp2_degree)))
    if spec.row_statistics:
        sch.parallel(sch.fuse(*sch.get_loops(sch.get_sblock("delta_row"))))
    sch.parallel(sch.get_loops(sch.get_sblock("worker"))[0])
    for block in ("turn_k", "turn_v"):
        transpose(sch, block, config.vector, tile.operand.dtype)
    reads = [load for load in spec.table_loads if load.table in spec.learned]
    band_product(sch, config, "scores", ("score_mod", "mask", "p"), tile.depth, spec.dropout)
    if spec.dropout:
        sch.vectorize(sch.get_loops(sch.get_sblock("drop"))[-1])
    shares = tuple(f"share_{number}" for number in range(len(reads)))
    band_product(sch, config, "dp", shares, tile.depth_v)
    for number, load in enumerate(reads):
        if "q_idx" not in load.symbols and "score" not in load.symbols:
            vectorize(sch, f"keys_{number}", config.vector)
    return with_transpose(sch.mod["main"], config.vector)
