"""Forward on CPUs: query rows in vector lanes, K and V broadcast, online softmax in registers."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...definition.kinds import recurrence_of
from ...definition.score_expressions import is_scale_only
from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..space import Knob, block_reasons, register_reasons, vector_registers
from .amx_tile import AmxTile, register_amx, register_start
from .forms.dropout import SQUARE
from .forms.forward import streaming_forward
from .forms.tiles import Bf16PairOperand, Float32Operand, ForwardTile
from .micro_tile import MicroTile, register, with_bf16_dot
from .steps import fuse_under, round_up, transpose, vectorize
from .threads import usable_threads, with_threads
from .transpose_tile import with_transpose
from .vector_math import VectorMath, degree_reasons


@dataclass(frozen=True)
class ForwardConfig(Config):
    """Numbers of the forward schedule; they change speed, never results beyond rounding.

    block_q: most query rows that share a staged key tile; tasks_per_thread: tiles have fewer rows
    where there would be fewer tiles than so many a thread. group: query rows that go through a key
    tile at a time (block_q where that is less). block_k: rows of a key tile. rows_s, rows_o: rows
    of the micro-kernels for S = K Q^T and O += V^T P. lanes: columns of both, a multiple of
    ``vector`` (float32 lanes of a register). exp2_degree: degree of the softmax's exponential (5:
    float32, 3: enough for half precision).
    unit: "fma" multiplies in float32, "dot" takes bf16 operands in pairs (AVX512_BF16), "amx" in
    32 x 32 blocks of tiles. unroll: steps of a product's reduction in one iteration (not amx).
    """

    schedule = "cpu.forward"
    block_q: int = 512
    block_k: int = 64
    group: int = 64
    rows_s: int = 4
    rows_o: int = 4
    lanes: int = 64
    vector: int = 16
    exp2_degree: int = 5
    tasks_per_thread: int = 4
    unit: str = "fma"
    unroll: int = 1

    @property
    def operand(self) -> Float32Operand | Bf16PairOperand:
        """How this unit wants matrix operands staged."""
        return Float32Operand() if self.unit == "fma" else Bf16PairOperand()

    @property
    def rows(self) -> int:
        """Query rows of a group."""
        return min(self.group, self.block_q)

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        pairs = self.unit != "fma"
        checks = [
            (self.unit not in ("fma", "dot", "amx"), f"unit={self.unit!r} must be fma, dot or amx"),
            (
                self.block_q % self.rows,
                f"block_q={self.block_q} must be a multiple of {self.group=}",
            ),
            (self.rows % self.lanes, f"group={self.rows} must be a multiple of {self.lanes=}"),
            (self.lanes % self.vector, f"lanes={self.lanes} must be a multiple of {self.vector=}"),
            (
                self.block_k % self.rows_s,
                f"block_k={self.block_k} must be a multiple of {self.rows_s=}",
            ),
            (
                spec.dropout and (self.rows % SQUARE or self.block_k % SQUARE),
                f"group={self.rows}, block_k={self.block_k} must be multiples of {SQUARE}: dropout",
            ),
            (pairs and self.block_k % 2, f"block_k={self.block_k} must be even: keys go in pairs"),
            (
                pairs and spec.dtype != "bfloat16",
                f"unit={self.unit} multiplies bfloat16, not {spec.dtype}",
            ),
            (
                pairs and self.vector != 16,
                f"unit={self.unit} needs vectors of 16, not {self.vector}",
            ),
        ]
        if self.unit == "amx":
            edges = (self.rows_s, self.rows_o, self.lanes)
            checks.append(
                (edges != (32, 32, 32), f"unit=amx multiplies 32 x 32 blocks, not {edges}")
            )
            checks.append((self.block_k % 32, f"block_k={self.block_k} must be a multiple of 32"))
        found = [text for wrong, text in checks if wrong]
        return [
            *found,
            *block_reasons(spec, self.block_q, self.block_k, merged="block_q"),
            *degree_reasons(spec.dtype, self.exp2_degree),
            *register_reasons(self.registers),
        ]

    def tile(self, spec: AttentionSpec) -> ForwardTile:
        """The streaming definition's tile under this config."""
        # A tile register holds 16 words, 32 elements of the head dimension.
        depth = round_up(spec.head_dim, 32 if self.unit == "amx" else self.operand.pack)
        depth_v = round_up(spec.head_dim_v, self.rows_o)
        return ForwardTile(
            self.block_q, self.block_k, depth, depth_v, self.operand,
            self.rows, self.vector, self.tasks_per_thread,
        )  # fmt: skip

    @property
    def registers(self) -> int:
        """Vector registers that the larger micro-kernel fills (AMX has tiles of its own: 0)."""
        rows = max(self.rows_s, self.rows_o)
        return 0 if self.unit == "amx" else vector_registers(rows, self.lanes, self.vector)


# What tuning varies.
FORWARD_KNOBS = (
    Knob("block_q", (16, 32, 64, 128, 256, 512, 1024), "query rows that share a staged key tile"),
    Knob("group", (16, 32, 64, 128, 256), "query rows that go through a key tile at a time"),
    Knob("block_k", (16, 32, 64, 96, 128, 256), "keys of a tile"),
    Knob("lanes", (16, 32, 48, 64), "columns of the micro-kernels"),
    Knob("rows_s", (2, 4, 6, 8, 12), "rows of the micro-kernel of S = K Q^T"),
    Knob("rows_o", (2, 4, 6, 8, 12), "rows of the micro-kernel of O += V^T P"),
    Knob("unroll", (1, 2, 4), "steps of a product's reduction in one iteration"),
    Knob("tasks_per_thread", (1, 2, 4, 8), "least tiles a thread, before tiles get fewer rows"),
    Knob("exp2_degree", (3, 4, 5), "degree of the exponential's polynomial"),
)

# Blocks of maxima and sums that only walk over a row of lanes.
_OF_ROWS = ("init_m", "init_l", "alpha", "choose_m", "keep_m", "add_l", "keep_l", "inverse")


def schedule_forward(spec: AttentionSpec, config: ForwardConfig) -> tirx.PrimFunc:
    """The streaming form of ``spec`` under ``config``, ready to compile."""
    tile, has_sum = config.tile(spec), bool(recurrence_of(spec.softmax).rows)
    functions = VectorMath(config.exp2_degree)
    sch = s_tir.Schedule(streaming_forward(spec, tile, functions, usable_threads()))
    sch.parallel(sch.get_loops(sch.get_sblock("q_tile"))[0])
    _scores(sch, config, tile, inline=is_scale_only(spec), has_sum=has_sum)
    if has_sum:
        _growth(sch, config)
    _softmax(sch, config, has_sum, spec.dropout)
    _output(sch, config, tile)
    for block in (*_OF_ROWS, "normalise") if has_sum else ("normalise",):
        vectorize(sch, block, config.vector)
    transpose(sch, "transpose_q", config.vector, config.operand.dtype)
    transpose(sch, "transpose_o", config.vector, "float32")
    if config.unit == "amx":
        start = register_start(tile.depth_v, config.rows)
        sch.tensorize(sch.get_loops(sch.get_sblock("init_acc"))[-2], start)
    else:
        vectorize(sch, "init_acc", config.vector)
    func = with_threads(with_transpose(sch.mod["main"], config.vector))
    return with_bf16_dot(func) if config.unit == "dot" else func


def _scores(sch, config: ForwardConfig, tile: ForwardTile, inline: bool, has_sum: bool) -> None:
    """S in micro-tiles; score_mod and the row maximum take each band of rows while it is hot."""
    row, lane, depth = sch.get_loops(sch.get_sblock("scores"))[-3:]
    bands, row = sch.split(row, [None, config.rows_s])
    groups, lane = sch.split(lane, [None, config.lanes])
    sch.reorder(bands, groups, row, lane, depth)
    if inline:  # one product is sooner made again than stored
        sch.compute_inline(sch.get_sblock("score_mod"))
    for block in (*["score_mod"] * (not inline), "mask", *["row_max"] * has_sum):
        fuse_under(sch, block, bands)
        vectorize(sch, block, config.vector)
    if has_sum:
        sch.decompose_reduction(sch.get_sblock("row_max"), bands)
    words = tile.depth // tile.operand.pack
    sch.tensorize(row, _product(config, config.rows_s, words, fresh=True))


def _growth(sch, config: ForwardConfig) -> None:
    """How far the group's maxima rose: vectors to one vector, and that to a number."""
    row, lane = sch.get_loops(sch.get_sblock("growth_lanes"))[-2:]
    _, inner = sch.split(lane, [None, config.vector])
    sch.vectorize(inner)
    sch.unroll(row)
    sch.decompose_reduction(sch.get_sblock("growth_lanes"), row)
    lane = sch.get_loops(sch.get_sblock("growth"))[-1]
    sch.unroll(lane)
    sch.decompose_reduction(sch.get_sblock("growth"), lane)


def _softmax(sch, config: ForwardConfig, has_sum: bool, has_dropout: bool) -> None:
    """exp, its row sum and the store of P, row by row."""
    row = sch.get_loops(sch.get_sblock("exp"))[-2]
    rows, row = sch.split(row, [None, config.operand.pack])
    vectorize(sch, "exp", config.vector)
    sch.unroll(row)
    if has_dropout:
        sch.vectorize(sch.get_loops(sch.get_sblock("drop"))[-1])
    if config.operand.pack > 1:
        if not has_dropout:
            fuse_under(sch, "store_p", rows)
        vectorize(sch, "store_p", config.vector)
    if has_sum:
        fuse_under(sch, "row_sum", rows)
        vectorize(sch, "row_sum", config.vector)
        sch.decompose_reduction(sch.get_sblock("row_sum"), rows)


def _output(sch, config: ForwardConfig, tile: ForwardTile) -> None:
    """O += P V in micro-tiles."""
    if config.unit == "amx":
        # A tile's rows are rows of O^T: V is staged transposed, pairs of keys along a row.
        sch.transform_layout("load_v", ("write", 0), lambda key, head: (head, key))
    head, lane, key = sch.get_loops(sch.get_sblock("pv"))[-3:]
    bands, head = sch.split(head, [None, config.rows_o])
    groups, lane = sch.split(lane, [None, config.lanes])
    sch.reorder(bands, groups, head, lane, key)
    words = config.block_k // tile.operand.pack
    sch.tensorize(head, _product(config, config.rows_o, words, fresh=False))


def _product(config: ForwardConfig, rows: int, words: int, fresh: bool) -> str:
    """The micro-kernel intrinsic of this config's unit: S (``fresh``) or O."""
    if config.unit == "amx":
        return register_amx(AmxTile(words, fresh), config.operand)
    shape = (rows, config.lanes, words, config.vector)
    return register(MicroTile(*shape, not fresh, fresh, config.unroll, config.operand))
