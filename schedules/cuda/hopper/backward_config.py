"""Numbers of the backward for sm_90a: what they take of an SM, and what they cannot serve."""

from __future__ import annotations

from dataclasses import dataclass

from ....problem.spec import AttentionSpec
from ...config_fields import Config
from ...space import Knob, block_reasons
from ..arch import CudaArch, limit_reasons
from ..tiling import round_up
from .box_tile import box_bytes
from .reasons import operand_reasons
from .ring import BARRIER_BYTES
from .roles import BUDGETS, num_warps
from .wgmma import BOX_COLUMNS, GROUP_ROWS

CONSUMERS = 2
# The widest dK and dV that a consumer holds.
_WIDEST = 128


@dataclass(frozen=True)
class HopperBackwardConfig(Config):
    """Numbers of the backward by warp groups; they change speed, never results beyond rounding.

    block_q, block_k: rows of a query tile and of a key tile, 64 keys for each of two consumers.
    stages: tiles of Q and dO in shared memory. sums: how a tile's share of dQ is added to dq_acc:
    "bulk", staged in shared memory, one bulk reduction a warp, or "red", four numbers a thread.
    """

    schedule = "cuda.hopper_backward"
    block_q: int = 64
    block_k: int = CONSUMERS * GROUP_ROWS
    stages: int = 2
    sums: str = "bulk"
    num_warps = num_warps(CONSUMERS)
    most_registers = BUDGETS[CONSUMERS][0]
    min_blocks = 1  # of an SM

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        is_one_box = self.depth(spec.head_dim) == BOX_COLUMNS
        wanted = CONSUMERS * GROUP_ROWS if is_one_box else GROUP_ROWS
        checks = [
            (
                self.block_q != wanted,
                f"block_q={self.block_q} must be {wanted}: two consumers share dQ of "
                f"head_dim={spec.head_dim}",
            ),
            (
                self.block_k != CONSUMERS * GROUP_ROWS,
                f"block_k={self.block_k} must be {CONSUMERS * GROUP_ROWS}",
            ),
        ]
        own = [text for wrong, text in checks if wrong]
        own += operand_reasons(spec, arch) + block_reasons(spec, self.block_q, self.block_k)
        return [*own, *limit_reasons(spec, arch, self.shared_bytes(spec), _WIDEST)]

    def depth(self, head_dim: int) -> int:
        """Columns of a tile, whole boxes; those past ``head_dim`` are zeros."""
        return round_up(head_dim, BOX_COLUMNS)

    def dq_columns(self, spec: AttentionSpec) -> int:
        """Columns of dQ that a consumer computes, all of them or its box."""
        return self.depth(spec.head_dim) // (1 if self.block_q > GROUP_ROWS else CONSUMERS)

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of a block, bytes."""
        size = spec.element.bytes
        tiles = box_bytes(self.block_q, self.block_k, size, 2)  # dS
        for columns in (spec.head_dim, spec.head_dim_v):
            tiles += box_bytes(self.block_k, columns, size)
            tiles += box_bytes(self.block_q, columns, size, self.stages)
        statistics = len(spec.row_statistics) * 4 * self.stages * self.block_q
        staged = CONSUMERS * GROUP_ROWS * self.dq_columns(spec) * 4 * (self.sums == "bulk")
        return tiles + statistics + staged + BARRIER_BYTES

    def registers(self, spec: AttentionSpec) -> int:
        """What a consumer's thread holds at once at least: P, dP, dK and dV."""
        return self.block_q + (spec.head_dim + spec.head_dim_v) // 2


# What tuning varies.
HOPPER_BACKWARD_KNOBS = (
    Knob("block_q", (64, 128), "rows of a query tile"),
    Knob("stages", (1, 2, 3), "tiles of Q and dO in shared memory"),
    Knob("sums", ("bulk", "red"), "how dQ is added: bulk reductions or red of four numbers"),
)
