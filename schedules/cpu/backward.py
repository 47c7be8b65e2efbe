"""Backward on CPUs: keys in vector lanes, five products per pair of blocks, no atomics."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...definition.score_expressions import has_linear_exponent
from ...problem.spec import AttentionSpec, has_sum
from ..config_fields import Config
from ..space import Knob, block_reasons, register_reasons, vector_registers
from .amx_tile import AmxTile, register_amx, register_start
from .backward_pairs import WORDS, register_pairs, with_pairs
from .forms.backward import streaming_backward
from .forms.dropout import SQUARE
from .forms.tiles import BackwardTile, Bf16PairOperand, Float32Operand
from .micro_tile import MicroTile, register, with_bf16_dot
from .steps import fuse_under, round_up, transpose, vectorize
from .transpose_tile import with_transpose
from .vector_math import VectorMath, degree_reasons

# float32 or int32 words of a cache line.
LINE = 16


@dataclass(frozen=True)
class BackwardConfig(Config):
    """Numbers of the backward schedule; they change speed, never results beyond rounding.

    block_q: rows of a query block. block_k: keys that a worker stages at once; step_k: how many of
    them are multiplied at once. rows, lanes: of the micro-kernels of S and dP, lanes over keys, a
    multiple of ``vector`` (float32 per register); dQ takes as many rows. key_rows: rows, over keys,
    of those of dK and dV; head_lanes: lanes of these and of dQ, over head_dim. unroll: steps of a
    product's reduction in one iteration. exp2_degree, unit: as in the forward.
    """

    schedule = "cpu.backward"
    block_q: int = 64
    block_k: int = 256
    step_k: int = 64
    rows: int = 4
    lanes: int = 64
    key_rows: int = 4
    head_lanes: int = 64
    vector: int = 16
    unroll: int = 2
    exp2_degree: int = 5
    unit: str = "fma"

    @property
    def operand(self) -> Float32Operand | Bf16PairOperand:
        """How this unit wants matrix operands staged."""
        return Float32Operand() if self.unit == "fma" else Bf16PairOperand()

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        multiples = [
            ("block_q", "rows"), ("block_k", "step_k"), ("step_k", "lanes"), ("step_k", "key_rows"),
            ("step_k", "vector"), ("lanes", "vector"), ("head_lanes", "vector"),
        ]  # fmt: skip
        found = [
            f"{a}={getattr(self, a)} must be a multiple of self.{b}={getattr(self, b)}"
            for a, b in multiples
            if getattr(self, a) % getattr(self, b)
        ]
        found += block_reasons(spec, self.block_q, self.block_k, merged="block_k")
        if spec.block_mask and spec.block_mask[1] % self.step_k:
            keys = spec.block_mask[1]
            found.append(
                f"step_k={self.step_k} must divide the {keys} keys of a block of block_mask"
            )
        found += [*degree_reasons(spec.dtype, self.exp2_degree), *register_reasons(self.registers)]
        if spec.dropout and (self.block_q % SQUARE or self.step_k % SQUARE):
            sizes = f"block_q={self.block_q}, step_k={self.step_k}"
            found.append(f"{sizes} must be multiples of {SQUARE}: dropout")
        if self.rows < 2:  # a product of one row is none that a micro-kernel could replace
            found.append(f"rows={self.rows} must be 2 or more")
        if self.unit not in ("fma", "dot", "amx"):
            found.append(f"unit={self.unit!r} must be fma, dot or amx")
        return found if self.unit == "fma" else found + self._pair_reasons(spec)

    def _pair_reasons(self, spec: AttentionSpec) -> list[str]:
        unit, edges = self.unit, (self.rows, self.lanes, self.key_rows, self.head_lanes)
        checks = [
            (spec.dtype != "bfloat16", f"{unit=} multiplies bfloat16, not {spec.dtype}"),
            (self.vector != 16, f"{unit=} needs vectors of 16, not {self.vector}"),
            (self.block_q % 2, f"block_q={self.block_q} must be even: rows go in pairs"),
            (self.step_k % 32, f"step_k={self.step_k} must be a multiple of 32, a vector of pairs"),
            (
                unit == "amx" and edges != (32,) * 4,
                f"{unit=} multiplies 32 x 32 blocks, not {edges}",
            ),
            (
                unit == "amx" and self.block_q % 32,
                f"block_q={self.block_q} must be a multiple of 32",
            ),
        ]
        return [text for wrong, text in checks if wrong]

    def tile(self, spec: AttentionSpec) -> BackwardTile:
        """The streaming definition's tile under this config."""
        amx, pack = self.unit == "amx", self.operand.pack
        # A tile register holds 16 words, 32 elements of the head dimension.
        depths = [
            round_up(d, 32 if amx else pack) // pack for d in (spec.head_dim, spec.head_dim_v)
        ]
        lanes = [round_up(d, self.head_lanes) for d in (spec.head_dim, spec.head_dim_v)]
        words = lanes if pack == 1 else [round_up(depth, self.vector) for depth in depths]
        blocks = (self.block_q, self.block_k, self.step_k)
        return BackwardTile(*blocks, *depths, *lanes, *words, self.operand, head_rows=amx)

    @property
    def registers(self) -> int:
        """Vector registers that the largest micro-kernel fills (AMX has tiles of its own: 0)."""
        shapes = (
            (self.rows, self.lanes), (self.rows, self.head_lanes), (self.key_rows, self.head_lanes),
        )  # fmt: skip
        filled = max(vector_registers(rows, lanes, self.vector) for rows, lanes in shapes)
        return 0 if self.unit == "amx" else filled


# What tuning varies.
BACKWARD_KNOBS = (
    Knob("block_q", (32, 64, 128, 256), "rows of a query block"),
    Knob("block_k", (64, 128, 256, 512), "keys that a worker stages at once"),
    Knob("step_k", (32, 64, 128), "keys that are multiplied at once"),
    Knob("rows", (2, 4, 8), "rows of the micro-kernels of S, dP and dQ"),
    Knob("lanes", (16, 32, 64), "columns, over keys, of those of S and dP"),
    Knob("key_rows", (2, 4, 8), "rows, over keys, of those of dK and dV"),
    Knob("head_lanes", (16, 32, 48, 64, 80, 96), "columns, over head_dim, of those of dQ, dK, dV"),
    Knob("unroll", (1, 2, 4), "steps of a product's reduction in one iteration"),
    Knob("exp2_degree", (3, 4, 5), "degree of the exponential's polynomial"),
)


def schedule_backward(spec: AttentionSpec, config: BackwardConfig) -> tirx.PrimFunc:
    """The streaming definition of ``spec`` under ``config``, ready to compile."""
    tile = config.tile(spec)
    sch = s_tir.Schedule(streaming_backward(spec, tile, VectorMath(config.exp2_degree)))
    for block in (*["delta_row"] * has_sum(spec.softmax), "dq_row"):
        # Rows too, or a single head would leave these passes to one thread.
        sch.parallel(sch.fuse(*sch.get_loops(sch.get_sblock(block))))
    for block in ("worker", *["dsink_head"] * (spec.softmax == "sink")):
        sch.parallel(sch.get_loops(sch.get_sblock(block))[0])
    _zeros(sch, config, tile, has_block_sums=spec.sequences != "dense")
    _transposes(sch, config, tile)
    _spread_rows(sch, config, tile)
    # A score that is only scaled goes from the product to P in one block.
    modified = () if has_linear_exponent(spec) else ("score_mod", "mask")
    scores = (*modified, "p")
    band_product(sch, config, "scores", scores, tile.depth, spec.dropout)
    band_product(sch, config, "dp", ("ds",), tile.depth_v)
    if spec.dropout:
        sch.vectorize(sch.get_loops(sch.get_sblock("drop"))[-1])
    keys, rows = (n // tile.operand.pack for n in (config.step_k, config.block_q))
    _sum_product(sch, config, "dq", config.rows, keys, over_keys=False)
    _sum_product(sch, config, "dv", config.key_rows, rows, over_keys=True)
    _sum_product(sch, config, "dk", config.key_rows, rows, over_keys=True)
    func = with_transpose(sch.mod["main"], config.vector)
    func = with_pairs(func) if tile.operand.pack > 1 else func
    return with_bf16_dot(func) if config.unit == "dot" else func


def _zeros(sch, config: BackwardConfig, tile: BackwardTile, has_block_sums: bool) -> None:
    """Zeros in vectors; with AMX those of dK set up the thread's tiles too."""
    for block in ("init_dv", *["init_dq"] * has_block_sums):
        vectorize(sch, block, config.vector)
    if config.unit == "amx":
        row = sch.get_loops(sch.get_sblock("init_dk"))[-2]
        sch.tensorize(row, register_start(tile.depth_lanes, tile.block_k))
    else:
        vectorize(sch, "init_dk", config.vector)


def _transposes(sch, config: BackwardConfig, tile: BackwardTile) -> None:
    """Transposes by blocks of vector registers."""
    blocks = dict.fromkeys(("turn_k", "turn_v"), tile.operand.dtype)
    if tile.head_rows:
        blocks |= dict.fromkeys(("turn_q", "turn_do"), tile.operand.dtype)
        blocks |= dict.fromkeys(("turn_dk", "turn_dv"), "float32")
    for block, dtype in blocks.items():
        transpose(sch, block, config.vector, dtype)


def _spread_rows(sch, config: BackwardConfig, tile: BackwardTile) -> None:
    """Rows an odd number of cache lines apart: a power of two would keep a column in few sets."""
    blocks = ["load_q", "load_do", "load_k", "load_v"]
    if tile.operand.pack > 1:
        blocks += ["pair_k", "pair_q", "pair_do"]
    if tile.head_rows:
        blocks += ["turn_q_o", "turn_do_o"]
    if config.step_k > config.lanes:
        # Otherwise a micro-kernel reads whole rows, which lie one after the other.
        blocks += ["turn_k_o", "turn_v_o", "scores", "p", "dp", "ds"]
    for block in blocks:
        sch.storage_align(sch.get_sblock(block), 0, -2, 2 * LINE, LINE)


def band_product(
    sch, config: BackwardConfig, product: str, consumers: tuple[str, ...], depth: int,
    has_dropout: bool = False,
) -> None:  # fmt: skip
    """A product whose bands of rows the elementwise ``consumers`` take while they are hot.

    has_dropout: more than a band is dropped together, before weights go in pairs.
    """
    row, lane, inner = sch.get_loops(sch.get_sblock(product))[-3:]
    bands, row = sch.split(row, [None, config.rows])
    groups, lane = sch.split(lane, [None, config.lanes])
    # Groups outside: a group's columns of the other operand stay in the first cache.
    sch.reorder(groups, bands, row, lane, inner)
    for consumer in consumers:
        fuse_under(sch, consumer, bands)
        vectorize(sch, consumer, config.vector)
    if config.unit != "fma":
        _pairs(sch, consumers[-1], None if has_dropout else bands)
    shape = (config.rows, config.lanes, depth)
    sch.tensorize(row, _intrinsic(config, shape, transposed=False, fresh=True))


def _pairs(sch, source: str, bands) -> None:
    """Pairs of bf16 of what ``source`` computed, vector by vector."""
    kinds = {"pair_p": "rows"} if source == "p" else {"pair_ds": "rows", "pair_keys": "keys"}
    for block, kind in kinds.items():
        if bands is not None:
            fuse_under(sch, block, bands)
        words = sch.split(sch.get_loops(sch.get_sblock(block))[-1], [None, WORDS])[1]
        sch.tensorize(words, register_pairs(kind))


def _sum_product(
    sch, config: BackwardConfig, product: str, rows: int, depth: int, over_keys: bool
) -> None:
    """A product added to what its buffer holds; ``over_keys``: dK or dV."""
    row, lane, inner = sch.get_loops(sch.get_sblock(product))[-3:]
    bands, row = sch.split(row, [None, rows])
    groups, lane = sch.split(lane, [None, config.head_lanes])
    sch.reorder(groups, bands, row, lane, inner)
    shape = (rows, config.head_lanes, depth)
    sch.tensorize(row, _intrinsic(config, shape, transposed=over_keys, fresh=False))


def _intrinsic(
    config: BackwardConfig, shape: tuple[int, int, int], transposed: bool, fresh: bool
) -> str:
    """The micro-kernel of this config's unit; AMX takes transposed operands from their copies."""
    if config.unit == "amx":
        return register_amx(AmxTile(shape[2], fresh), config.operand)
    flags = (transposed, fresh, config.unroll)
    return register(MicroTile(*shape, config.vector, *flags, config.operand))
