"""Numbers of the original FlashAttention's schedule."""

from __future__ import annotations

from dataclasses import dataclass

from ...problem.spec import AttentionSpec
from ...schedules.config_fields import Config
from ...schedules.cuda.arch import CudaArch
from ...schedules.cuda.tiling import round_up
from .standard import half_reasons


@dataclass(frozen=True)
class OriginalConfig(Config):
    """Numbers of the original schedule; they change speed, never results beyond rounding.

    block_k: keys held while all queries pass by (the paper's B_c). block_q: queries of a step
    (B_r; 16 as in the paper's CUDA). num_warps: they split the keys of a tile evenly.
    """

    schedule = "cuda.original"
    block_q: int = 16
    block_k: int = 128
    num_warps: int = 4

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        checks = [
            (self.block_q % 16, f"block_q={self.block_q} must be a multiple of 16"),
            (
                self.block_k % (16 * self.num_warps),
                f"block_k={self.block_k} must be a multiple of 16 * {self.num_warps=}",
            ),
            (
                self.block_q % self.num_warps,
                f"block_q={self.block_q} must be a multiple of {self.num_warps=}",
            ),
        ]
        own = [text for wrong, text in checks if wrong]
        return [*half_reasons(spec, arch, self.shared_bytes(spec)), *own]

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of a block, bytes: tiles of Q, K, V, and what the warps exchange."""
        depth, depth_v = round_up(spec.head_dim, 16), round_up(spec.head_dim_v, 16)
        tiles = 2 * (self.block_q * depth + self.block_k * (depth + depth_v))
        statistic = 4 * self.num_warps * self.block_q
        return tiles + statistic * depth_v + round_up(statistic, 128) + statistic


DEFAULT = OriginalConfig()
