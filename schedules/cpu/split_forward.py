"""Forward of few query rows on CPUs: keys split over the cores, head dimension in vector lanes."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...definition.kinds import recurrence_of
from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..space import Knob, register_reasons, vector_registers
from ..target import CpuTarget
from .forms.split_forward import SplitTile, split_forward
from .forms.tiles import Bf16PairOperand, Float32Operand
from .row_pair_tile import RowPairTile, with_pair_dots
from .row_tile import RowTile, register_pv, register_scores
from .steps import round_up, vectorize
from .threads import usable_threads, with_threads
from .vector_math import VectorMath, degree_reasons


@dataclass(frozen=True)
class SplitForwardConfig(Config):
    """Numbers of the split forward; they change speed, never results beyond rounding.

    rows: packed query rows (heads of a group times positions) of a task. row_block: rows that share
    a loaded key. heads: most key/value heads of a task; tasks_per_thread: they have fewer where
    there would be fewer than so many a thread. chunk: keys of a task. block_k: keys of one call of
    a micro-kernel; what remains of a chunk is staged, and so are keys in pages that are no multiple
    of it. step: keys the score product multiplies at once. columns: of head_dim_v whose sums stay
    in registers. vector: float32 lanes of a register. ahead: how many blocks before they are read
    K and V are asked for (0: left to the hardware). exp2_degree: of the softmax's exponential.
    unit: "fma" multiplies in float32, "dot" takes bf16 operands in pairs (AVX512_BF16).
    """

    schedule = "cpu.split_forward"
    rows: int = 16
    row_block: int = 4
    heads: int = 8
    chunk: int = 512
    block_k: int = 8
    step: int = 4
    columns: int = 64
    vector: int = 16
    ahead: int = 1
    tasks_per_thread: int = 4
    exp2_degree: int = 5
    unit: str = "fma"

    @property
    def operand(self) -> Float32Operand | Bf16PairOperand:
        """How this unit wants matrix operands staged."""
        return Float32Operand() if self.unit == "fma" else Bf16PairOperand()

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        depth_v = round_up(spec.head_dim_v, self.vector)
        multiples = [
            ("rows", self.rows, "row_block", self.row_block),
            ("chunk", self.chunk, "block_k", self.block_k),
            ("chunk", self.chunk, "vector", self.vector),
            ("block_k", self.block_k, "step", self.step),
            ("row_block * step", self.row_block * self.step, "vector", self.vector),
            ("vector", self.vector, "step", self.step),
            ("columns", self.columns, "vector", self.vector),
            ("padded head_dim_v", depth_v, "columns", self.columns),
        ]
        wide, narrow = sorted((self.block_k, self.vector), reverse=True)
        multiples.append(("the larger of block_k and vector", wide, "the smaller", narrow))
        found = [
            f"{name}={size} must be a multiple of {unit_name}={unit}"
            for name, size, unit_name, unit in multiples
            if size % unit
        ]
        if spec.dropout:
            found.append("dropout is of training: its words are drawn by tiles of queries")
        if self.unit not in ("fma", "dot"):
            found.append(f"unit={self.unit!r} must be fma or dot")
        if self.unit == "dot":
            found += self._pair_reasons(spec)
        if spec.block_mask:
            found.append("keys of block_mask are in lists, not in chunks")
        return [
            *found,
            *degree_reasons(spec.dtype, self.exp2_degree),
            *register_reasons(self.registers),
        ]

    def _pair_reasons(self, spec: AttentionSpec) -> list[str]:
        sizes = {
            "head_dim": spec.head_dim, "head_dim_v": spec.head_dim_v, "columns": self.columns,
        }  # fmt: skip
        return [
            *[f"unit=dot multiplies bf16, not {spec.dtype}"] * (spec.dtype != "bfloat16"),
            *[f"unit=dot needs vectors of 16, not {self.vector}"] * (self.vector != 16),
            *(
                f"{name}={size} must be a multiple of 32: unit=dot loads 32 columns at once"
                for name, size in sizes.items()
                if size % 32
            ),
            *[f"block_k={self.block_k} must be even: keys go in pairs"] * (self.block_k % 2),
        ]

    def tile(self, spec: AttentionSpec) -> SplitTile:
        """The split definition's tile under this config."""
        depth, depth_v = (round_up(n, self.vector) for n in (spec.head_dim, spec.head_dim_v))
        sizes = (self.rows, self.row_block, self.heads, self.chunk, self.block_k, self.vector)
        options = (self.operand, self.ahead, self.tasks_per_thread)
        return SplitTile(*sizes, depth, depth_v, *options)

    @property
    def registers(self) -> int:
        """Vector registers that the larger micro-kernel fills."""
        scores = vector_registers(self.row_block, self.step * self.vector, self.vector)
        return max(scores, vector_registers(self.row_block, self.columns, self.vector))


# What tuning varies.
SPLIT_KNOBS = (
    Knob("rows", (4, 8, 16), "packed query rows of a task"),
    Knob("row_block", (1, 2, 4, 8), "rows that share a loaded key"),
    Knob("heads", (1, 2, 4, 8, 16), "key/value heads of a task"),
    Knob("chunk", (128, 256, 512, 1024, 2048), "keys of a task"),
    Knob("block_k", (4, 8, 16, 32, 64), "keys of one call of a micro-kernel"),
    Knob("step", (1, 2, 4, 8), "keys that the score product multiplies at once"),
    Knob("columns", (32, 64, 128), "of head_dim_v whose sums stay in registers"),
    Knob("ahead", (0, 1, 2, 4), "blocks before they are read, K and V are asked for"),
)


def default_split_config(spec: AttentionSpec, target: CpuTarget) -> SplitForwardConfig:
    """The split config without a tuning record."""
    vector = target.vector
    # rows x columns of sums, a row of V and one probability fill the register file.
    row_block, most = 4, (target.registers - 1) // 5
    vectors = round_up(spec.head_dim_v, vector) // vector
    pairs = _takes_pairs(spec, target)
    least = 2 if pairs else 1  # vectors that one load of V fills
    widest = max(n for n in range(least, most + 1, least) if vectors % n == 0)
    return SplitForwardConfig(
        row_block=row_block,
        step=4 if target.registers == 32 else 2,
        columns=widest * vector,
        vector=vector,
        unit="dot" if pairs else "fma",
    )


def _takes_pairs(spec: AttentionSpec, target: CpuTarget) -> bool:
    whole = spec.head_dim % 32 == 0 and spec.head_dim_v % 32 == 0
    return spec.dtype == "bfloat16" and "avx512_bf16" in target.features and whole


def schedule_split_forward(spec: AttentionSpec, config: SplitForwardConfig) -> tirx.PrimFunc:
    """The split definition of ``spec`` under ``config``, ready to compile."""
    tile, has_sum = config.tile(spec), bool(recurrence_of(spec.softmax).rows)
    math = VectorMath(config.exp2_degree)
    sch = s_tir.Schedule(split_forward(spec, tile, math, usable_threads()))
    for block in ("chunk", "combine"):
        sch.parallel(sch.get_loops(sch.get_sblock(block))[0])
    _products(sch, config, spec, tile)
    _softmax(sch, config, has_sum)
    _staging(sch, config, spec, tile)
    _combination(sch, config, has_sum)
    func = with_threads(sch.mod["main"])
    return with_pair_dots(func) if config.unit == "dot" else func


def _products(sch, config: SplitForwardConfig, spec: AttentionSpec, tile: SplitTile) -> None:
    """S = Q K^T and O += P V, from the arguments and from staged blocks."""
    kind_of_tile = RowPairTile if config.unit == "dot" else RowTile

    def shape(columns: int, staged: bool) -> RowTile:
        dtype = config.operand.dtype if staged else spec.dtype
        sizes = (config.row_block, config.block_k, columns, config.step, config.vector)
        return kind_of_tile(*sizes, dtype, staged)

    for block, staged in (("scores", False), ("rest_scores", True)):
        row = sch.get_loops(sch.get_sblock(block))[-3]
        init = sch.decompose_reduction(sch.get_sblock(block), row)
        vectorize(sch, sch.get(init).name_hint, config.vector)
        sch.tensorize(row, register_scores(shape(tile.depth, staged)))
    for block, staged in (("pv", False), ("rest_pv", True)):
        row, column, key = sch.get_loops(sch.get_sblock(block))[-3:]
        columns, column = sch.split(column, [None, config.columns])
        sch.reorder(columns, row, column, key)
        sch.tensorize(row, register_pv(shape(config.columns, staged)))


def _softmax(sch, config: SplitForwardConfig, has_sum: bool) -> None:
    """Keys in lanes; row maxima and sums are kept per lane until the end."""
    for block in ("score_mod", "mask", "exp"):
        _, lane = sch.split(sch.get_loops(sch.get_sblock(block))[-1], [None, config.vector])
        sch.vectorize(lane)
    for block in ("lane_max", "lane_sum") if has_sum else ():
        sch.vectorize(sch.get_loops(sch.get_sblock(block))[-1])
        sch.decompose_reduction(sch.get_sblock(block), sch.get_loops(sch.get_sblock(block))[-2])


def _staging(sch, config: SplitForwardConfig, spec: AttentionSpec, tile: SplitTile) -> None:
    """Vectors of whole rows; padded columns are loaded one by one."""
    # LLVM finds by itself that pairs of columns are words in memory.
    if config.unit == "fma" and spec.head_dim == tile.depth:
        vectorize(sch, "load_q", config.vector)
        vectorize(sch, "load_k", config.vector)
    if spec.head_dim_v == tile.depth_v:
        vectorize(sch, "load_v", config.vector)
    for block in ("init_acc", "store_acc"):
        vectorize(sch, block, config.vector)


def _combination(sch, config: SplitForwardConfig, has_sum: bool) -> None:
    """Partial results of the chunks of one row."""
    vectorize(sch, "merge", config.vector)
    for block in ("top", "total", "merge") if has_sum else ("merge",):
        chunk = sch.get_loops(sch.get_sblock(block))[0]
        # A row without a visible key has no chunk: its statistics are set all the same.
        sch.decompose_reduction(sch.get_sblock(block), chunk)
