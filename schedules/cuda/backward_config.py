"""Numbers of the backward schedule for tensor-core GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..space import Knob, block_reasons
from .arch import WIDEST, CudaArch, crowded_reasons, limit_reasons
from .tensor_core import product_for
from .tiling import round_up


@dataclass(frozen=True)
class BackwardConfig(Config):
    """Numbers of the backward schedule; they change speed, never results beyond rounding.

    block_q, block_k: rows of a query and a key tile. num_warps: they split the keys evenly.
    column_groups: with more than one, the warps of a group of keys split its queries, and the head
    dimension of its dK and dV, which no longer fit one warp's registers beyond 128; P and dS are
    then exchanged through shared memory.
    stages: tiles of Q and dO held in shared memory, 1 or 2. dp_parts: dP^T is computed in so many
    parts, one after the other: fewer registers, V is read again for each; dq_parts: the same for
    the columns of dQ. min_blocks: blocks an SM shall hold.
    """

    schedule = "cuda.backward"
    block_q: int = 64
    block_k: int = 64
    num_warps: int = 4
    column_groups: int = 1
    stages: int = 1
    dp_parts: int = 1
    dq_parts: int = 1
    min_blocks: int = 0

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        groups, split = self.block_q // 16, self.column_groups
        depth = self.depth(spec.head_dim)
        checks = [
            (
                self.num_warps % split or self.block_k * split % (16 * self.num_warps),
                f"block_k={self.block_k} must be a multiple of 16 * {self.num_warps=} / {split=}",
            ),
            (
                groups % self.num_warps and self.num_warps % groups,
                f"block_q={self.block_q} / 16 and {self.num_warps=} must divide one another",
            ),
            (
                depth // 16 % (self.dq_groups(depth) * self.dq_parts),
                f"head_dim={spec.head_dim} cannot be split over the warps of {self}",
            ),
            (self.stages not in (1, 2), f"stages={self.stages} must be 1 or 2"),
            (
                self.block_q % (16 * self.dp_parts * split),
                f"block_q={self.block_q} must be a multiple of 16 * {self.dp_parts=} * {split=}",
            ),
        ]
        own = [text for wrong, text in checks if wrong]
        shared = self.shared_bytes(spec)
        own += block_reasons(spec, self.block_q, self.block_k)
        own += crowded_reasons(arch, self.min_blocks, shared)
        return [*own, *limit_reasons(spec, arch, shared, WIDEST)]

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of a block, bytes."""
        depth = self.depth(spec.head_dim) + self.depth(spec.head_dim_v)
        rows = self.block_k + self.stages * self.block_q
        count = len(spec.saved_statistics) + 1  # and delta
        statistics = count * 4 * self.stages * round_up(self.block_q, 32)
        exchanged = self.block_k * self.block_q * (2 if self.column_groups > 1 else 1)
        return spec.element.bytes * (rows * depth + exchanged) + statistics

    def registers(self, spec: AttentionSpec) -> int:
        """What a thread holds at once at least: P, dP, dK, dV, fragments of P, dS and an operand.

        Statistics, addresses and what the compiler keeps besides come on top.
        """
        product, split = product_for(spec.dtype), self.column_groups
        m_tiles = self.block_k * split // (16 * self.num_warps)
        queries = self.block_q // split
        depths = (self.depth(spec.head_dim) + self.depth(spec.head_dim_v)) // split
        sums = m_tiles * (queries + queries // self.dp_parts + depths) // 2
        return sums + 2 * m_tiles * product.words_a + product.words_b

    def depth(self, head_dim: int) -> int:
        """``head_dim`` rounded up to whole tiles of every warp that shares its columns."""
        return round_up(head_dim, 16 * max(self.column_groups, self._least_dq_groups))

    def dq_groups(self, depth: int) -> int:
        """Warps that share rows of dQ, of ``depth`` columns.

        A warp loads its rows of dS and its columns of K, fewest where its tile is nearly square.
        """
        least = self._least_dq_groups
        choices = [least * n for n in (1, 2, 4, 8) if self.num_warps % (least * n) == 0]
        whole = [c for c in choices if depth // 16 % (c * self.dq_parts) == 0]
        return min(whole, default=least, key=lambda c: self.dq_rows(c) + depth / c)

    def dq_rows(self, dq_groups: int) -> int:
        """Rows of dQ of a warp."""
        return self.block_q * dq_groups // self.num_warps

    @property
    def _least_dq_groups(self) -> int:
        """A warp has at least 16 rows."""
        return max(self.num_warps // max(self.block_q // 16, 1), 1)


# What tuning varies.
BACKWARD_KNOBS = (
    Knob("block_q", (32, 64, 128), "rows of a query tile"),
    Knob("block_k", (32, 64, 128), "rows of a key tile"),
    Knob("num_warps", (4, 8), "warps of a block: they split the keys"),
    Knob("column_groups", (1, 2, 4), "warps that share keys and split queries and head_dim"),
    Knob("stages", (1, 2), "tiles of Q and dO in shared memory"),
    Knob("dp_parts", (1, 2), "parts in which dP is computed, one after the other"),
    Knob("dq_parts", (1, 2), "parts in which the columns of dQ are computed"),
    Knob("min_blocks", (0, 1, 2), "blocks an SM shall hold: a register limit for the compiler"),
)
