"""Backward on CPUs: keys in vector lanes, five products per pair of blocks, no atomics."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tvm import s_tir, tirx

from ...definition.backward import streaming_backward
from ...definition.tiles import BackwardTile
from ...spec import AttentionSpec
from .micro_tile import MicroTile, register
from .steps import fuse_under, round_up, split_vector, vectorize
from .vector_math import VectorMath


@dataclass(frozen=True)
class BackwardConfig:
    """Numbers of the backward schedule; they change speed, never results.

    block_q, block_k: rows of a query block and a key tile. rows: rows of every micro-kernel.
    lanes: columns of those over keys, a multiple of ``vector`` (float32 per register).
    head_lanes: columns of the one over head_dim (dQ). exp2_degree: as in the forward.
    """

    block_q: int = 64
    block_k: int = 64
    rows: int = 4
    lanes: int = 64
    head_lanes: int = 64
    vector: int = 16
    exp2_degree: int = 5

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        checks = [
            (
                self.block_k % self.lanes,
                f"block_k={self.block_k} must be a multiple of {self.lanes=}",
            ),
            (
                self.block_q % self.rows,
                f"block_q={self.block_q} must be a multiple of {self.rows=}",
            ),
            (self.lanes % self.vector, f"lanes={self.lanes} must be a multiple of {self.vector=}"),
            (
                self.head_lanes % self.vector,
                f"{self.head_lanes=} must be a multiple of {self.vector=}",
            ),
        ]
        return [text for wrong, text in checks if wrong]

    def tile(self, spec: AttentionSpec) -> BackwardTile:
        """The streaming definition's tile under this config."""
        depth, depth_v = round_up(spec.head_dim, self.rows), round_up(spec.head_dim_v, self.rows)
        lanes = round_up(spec.head_dim, self.head_lanes)
        return BackwardTile(self.block_q, self.block_k, depth, depth_v, lanes)

    def to_json(self) -> dict:
        return {"schedule": "cpu.backward", **asdict(self)}


def schedule_backward(spec: AttentionSpec, config: BackwardConfig) -> tirx.PrimFunc:
    """The streaming definition of ``spec`` under ``config``, ready to compile."""
    tile = config.tile(spec)
    sch = s_tir.Schedule(streaming_backward(spec, tile, VectorMath(config.exp2_degree)))
    for block in ("delta", "dq_row"):
        b, h = sch.get_loops(sch.get_sblock(block))[:2]
        sch.parallel(sch.fuse(b, h))
    sch.parallel(sch.get_loops(sch.get_sblock("worker"))[0])
    for block in ("init_dk", "init_dv"):
        vectorize(sch, block, config.vector)
    _band_product(sch, config, "scores", ("score_mod", "mask", "p"), tile.depth)
    _band_product(sch, config, "dp", ("ds",), tile.depth_v)
    _accumulate(sch, config, "dq", config.head_lanes, config.block_k, transposed=False)
    _accumulate(sch, config, "dv", config.lanes, config.block_q, transposed=True)
    _accumulate(sch, config, "dk", config.lanes, config.block_q, transposed=True)
    return sch.mod["main"]


def _band_product(
    sch, config: BackwardConfig, product: str, consumers: tuple[str, ...], depth: int
) -> None:
    """A product whose bands of rows the elementwise ``consumers`` take while they are hot."""
    row, lane, inner = sch.get_loops(sch.get_sblock(product))[-3:]
    bands, row = sch.split(row, [None, config.rows])
    groups, lane = sch.split(lane, [None, config.lanes])
    sch.reorder(bands, groups, row, lane, inner)
    for consumer in consumers:
        fuse_under(sch, consumer, bands)
        vectorize(sch, consumer, config.vector)
    init = sch.decompose_reduction(sch.get_sblock(product), row)
    split_vector(sch, sch.get(init).name_hint, config.vector)
    sch.tensorize(row, register(MicroTile(config.rows, config.lanes, depth, config.vector)))


def _accumulate(
    sch, config: BackwardConfig, product: str, lanes: int, depth: int, transposed: bool
) -> None:
    """A product added to what its buffer holds."""
    row, lane, inner = sch.get_loops(sch.get_sblock(product))[-3:]
    bands, row = sch.split(row, [None, config.rows])
    groups, lane = sch.split(lane, [None, lanes])
    sch.reorder(bands, groups, row, lane, inner)
    tile = MicroTile(config.rows, lanes, depth, config.vector, transposed)
    sch.tensorize(row, register(tile))
