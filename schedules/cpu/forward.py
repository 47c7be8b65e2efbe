"""Forward on CPUs: query rows in vector lanes, K and V broadcast, online softmax in registers."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tvm import s_tir, tirx

from ...definition.forward import streaming_forward
from ...definition.tiles import Bf16PairOperand, Float32Operand, ForwardTile
from ...spec import AttentionSpec
from .micro_tile import MicroTile, register, with_bf16_dot
from .steps import fuse_under, round_up, split_vector, vectorize
from .vector_math import VectorMath


@dataclass(frozen=True)
class ForwardConfig:
    """Numbers of the forward schedule; they change speed, never results.

    block_q, block_k: rows of a query and a key tile. rows_s, rows_o: rows of the micro-kernels for
    S = K Q^T and O += V^T P. lanes: columns of both, a multiple of ``vector`` (float32 per register).
    exp2_degree: degree of the softmax's exponential (5: float32, 3: enough for half precision).
    pack: 1 multiplies in float32, 2 takes bf16 operands in pairs (AVX512_BF16).
    """

    block_q: int = 64
    block_k: int = 64
    rows_s: int = 4
    rows_o: int = 4
    lanes: int = 64
    vector: int = 16
    exp2_degree: int = 5
    pack: int = 1

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        checks = [
            (self.block_q % self.lanes, f"block_q={self.block_q} must be a multiple of {self.lanes=}"),
            (self.lanes % self.vector, f"lanes={self.lanes} must be a multiple of {self.vector=}"),
            (self.block_k % self.rows_s, f"block_k={self.block_k} must be a multiple of {self.rows_s=}"),
            (self.block_k % self.pack, f"block_k={self.block_k} must be a multiple of {self.pack=}"),
            (
                self.pack == 2 and (spec.dtype, self.vector) != ("bfloat16", 16),
                f"pack=2 multiplies bfloat16 in vectors of 16, not {spec.dtype} in {self.vector}",
            ),
        ]
        return [text for wrong, text in checks if wrong]

    def tile(self, spec: AttentionSpec) -> ForwardTile:
        """The streaming definition's tile under this config."""
        depth = round_up(spec.head_dim, self.pack)
        depth_v = round_up(spec.head_dim_v, self.rows_o)
        operand = Float32Operand() if self.pack == 1 else Bf16PairOperand()
        return ForwardTile(self.block_q, self.block_k, depth, depth_v, operand)

    def to_json(self) -> dict:
        return {"schedule": "cpu.forward", **asdict(self)}


def schedule_forward(spec: AttentionSpec, config: ForwardConfig) -> tirx.PrimFunc:
    """The streaming definition of ``spec`` under ``config``, ready to compile."""
    math = VectorMath(config.exp2_degree)
    tile = config.tile(spec)
    sch = s_tir.Schedule(streaming_forward(spec, tile, math))
    sch.parallel(sch.get_loops(sch.get_sblock("q_tile"))[0])
    _scores(sch, config, tile)
    _softmax(sch, config)
    _output(sch, config, tile)
    for block in ("init_m", "init_l", "init_acc", "alpha", "keep_m", "keep_l", "inverse", "normalise"):
        vectorize(sch, block, config.vector)
    func = sch.mod["main"]
    return func if config.pack == 1 else with_bf16_dot(func)


def _scores(sch, config: ForwardConfig, tile: ForwardTile) -> None:
    """S in micro-tiles; score_mod and the row maximum take each band of rows while it is hot."""
    row, lane, depth = sch.get_loops(sch.get_sblock("scores"))[-3:]
    bands, row = sch.split(row, [None, config.rows_s])
    groups, lane = sch.split(lane, [None, config.lanes])
    sch.reorder(bands, groups, row, lane, depth)
    fuse_under(sch, "score_mod", bands)
    split_vector(sch, "score_mod", config.vector)
    fuse_under(sch, "row_max", bands)
    split_vector(sch, "row_max", config.vector)
    sch.decompose_reduction(sch.get_sblock("row_max"), bands)
    init = sch.decompose_reduction(sch.get_sblock("scores"), row)
    split_vector(sch, sch.get(init).name_hint, config.vector)
    depth = tile.depth // config.pack
    micro = MicroTile(config.rows_s, config.lanes, depth, config.vector, False, tile.operand)
    sch.tensorize(row, register(micro))


def _softmax(sch, config: ForwardConfig) -> None:
    """exp, its row sum and the store of P, row by row."""
    row = sch.get_loops(sch.get_sblock("exp"))[-2]
    rows, row = sch.split(row, [None, config.pack])
    vectorize(sch, "exp", config.vector)
    sch.unroll(row)
    fuse_under(sch, "store_p", rows)
    fuse_under(sch, "row_sum", rows)
    vectorize(sch, "store_p", config.vector)
    vectorize(sch, "row_sum", config.vector)
    sch.decompose_reduction(sch.get_sblock("row_sum"), rows)


def _output(sch, config: ForwardConfig, tile: ForwardTile) -> None:
    """O += P V in micro-tiles."""
    head, lane, key = sch.get_loops(sch.get_sblock("pv"))[-3:]
    bands, head = sch.split(head, [None, config.rows_o])
    groups, lane = sch.split(lane, [None, config.lanes])
    sch.reorder(bands, groups, head, lane, key)
    depth = config.block_k // config.pack
    micro = MicroTile(config.rows_o, config.lanes, depth, config.vector, True, tile.operand)
    sch.tensorize(head, register(micro))
