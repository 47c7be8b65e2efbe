"""Linear attention on CPUs: a task takes a part of a head's rows; products in micro-tiles."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..target import CpuTarget
from .forms.linear import chunked_linear
from .forms.tiles import LinearTile
from .micro_tile import MicroTile, register
from .steps import round_up, transpose
from .transpose_tile import with_transpose


@dataclass(frozen=True)
class LinearConfig(Config):
    """Numbers of linear attention's schedule; they change speed, never results beyond rounding.

    chunk: rows between which products are taken one by one. rows, lanes: of the micro-kernel for
    K Q^T; ``columns`` are the lanes of those over head_dim_v, all multiples of ``vector``.
    """

    schedule = "cpu.linear"
    chunk: int = 64
    rows: int = 4
    lanes: int = 64
    columns: int = 80
    vector: int = 16

    @property
    def registers(self) -> int:
        """Vector registers of the widest micro-kernel: sums, a row of B, a broadcast."""
        return (self.rows + 1) * max(self.lanes, self.columns) // self.vector + 1

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        checks = [
            (self.chunk % self.lanes, f"chunk={self.chunk} must be a multiple of {self.lanes=}"),
            (self.chunk % self.rows, f"chunk={self.chunk} must be a multiple of {self.rows=}"),
            (self.lanes % self.vector, f"lanes={self.lanes} must be a multiple of {self.vector=}"),
            (
                self.columns % self.vector,
                f"columns={self.columns} must be a multiple of {self.vector=}",
            ),
        ]
        return [reason for wrong, reason in checks if wrong]

    def tile(self, spec: AttentionSpec) -> LinearTile:
        """What the chunked form is written over."""
        width = spec.head_dim + 1
        return LinearTile(
            chunk=self.chunk,
            depth=round_up(width, self.rows),
            depth_square=round_up(width, self.vector),
            lanes_v=round_up(spec.head_dim_v + 1, self.columns),
        )


def linear_defaults(
    spec: AttentionSpec, target: CpuTarget, bucket: str
) -> tuple[LinearConfig, ...]:
    """The config without a tuning record: few padded columns, in wide tiles.

    None of few rows in an order: ``cpu.linear_steps`` takes those.
    """
    if bucket == "tiny" and spec.causal:
        return ()
    most = (target.registers - 1) // 5
    widths = [target.vector * n for n in range(1, most + 1)]
    padded = {width: round_up(spec.head_dim_v + 1, width) for width in widths}
    columns = min(widths, key=lambda width: padded[width] * (1 + target.vector / width))
    # A chunk of few rows would be mostly empty.
    chunk = 16 if bucket == "tiny" else 64
    lanes = max(width for width in widths if chunk % width == 0)
    return (LinearConfig(chunk=chunk, lanes=lanes, columns=columns, vector=target.vector),)


def schedule_linear(spec: AttentionSpec, config: LinearConfig) -> tirx.PrimFunc:
    """The chunked form of ``spec`` under ``config``, ready to compile."""
    tile = config.tile(spec)
    sch = s_tir.Schedule(chunked_linear(spec, tile))
    rows, vector = config.rows, config.vector

    def multiply(block: str, lanes: int, depth: int, transposed: bool, fresh: bool) -> None:
        row, lane, step = sch.get_loops(sch.get_sblock(block))[-3:]
        bands, row = sch.split(row, [None, rows])
        groups, lane = sch.split(lane, [None, lanes])
        sch.reorder(bands, groups, row, lane, step)
        sch.tensorize(row, register(MicroTile(rows, lanes, depth, vector, transposed, fresh)))

    multiply("take_keys", config.columns, config.chunk, transposed=True, fresh=False)
    multiply("earlier", config.columns, tile.depth, transposed=False, fresh=True)
    if not spec.causal:
        return sch.mod["main"]
    multiply("scores", config.lanes, tile.depth, transposed=False, fresh=True)
    multiply("pv", config.columns, config.chunk, transposed=True, fresh=False)
    multiply("take_keys_1", config.columns, config.chunk, transposed=True, fresh=False)
    transpose(sch, "transpose_q", vector, "float32")
    return with_transpose(sch.mod["main"], vector)
