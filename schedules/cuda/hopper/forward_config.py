"""Numbers of the forward for sm_90a: what they take of an SM, and what they cannot serve."""

from __future__ import annotations

from dataclasses import dataclass

from ....problem.spec import AttentionSpec
from ...config_fields import Config
from ...space import Knob, block_reasons
from ..arch import WIDEST, CudaArch, limit_reasons
from .box_tile import box_bytes
from .reasons import operand_reasons
from .ring import BARRIER_BYTES
from .roles import BUDGETS, num_warps
from .wgmma import GROUP_ROWS, STEP

# The most columns of a product, and rows of a box.
_WIDEST_PRODUCT = 256


@dataclass(frozen=True)
class HopperForwardConfig(Config):
    """Numbers of the forward by warp groups; they change speed, never results beyond rounding.

    block_q, block_k: rows of a query and a key tile; each consumer, a warp group, has 64 rows.
    stages: tiles of keys, and of values, in shared memory.
    """

    schedule = "cuda.hopper_forward"
    block_q: int = 128
    block_k: int = 128
    stages: int = 2
    min_blocks = 1  # of an SM

    @property
    def consumers(self) -> int:
        """Warp groups that multiply."""
        return self.block_q // GROUP_ROWS

    @property
    def num_warps(self) -> int:
        """Warps of a block, the producer's too."""
        return num_warps(self.consumers)

    @property
    def most_registers(self) -> int:
        """Registers of a consumer's thread."""
        return BUDGETS[self.consumers][0]

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        own = [*self.tile_reasons(spec), *operand_reasons(spec, arch, ("dense", "packed"))]
        return [*own, *limit_reasons(spec, arch, self.shared_bytes(spec), WIDEST)]

    def tile_reasons(self, spec: AttentionSpec) -> list[str]:
        """Why no kernel of query tiles has tiles of these sizes (empty: one has)."""
        tiles = [GROUP_ROWS * consumers for consumers in BUDGETS]
        checks = [
            (self.block_q not in tiles, f"block_q={self.block_q} must be one of {tiles}"),
            (
                self.block_k % STEP or self.block_k > _WIDEST_PRODUCT,
                f"block_k={self.block_k} must be a multiple of {STEP} up to {_WIDEST_PRODUCT}",
            ),
        ]
        own = [text for wrong, text in checks if wrong]
        return [*own, *block_reasons(spec, self.block_q, self.block_k)]

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of a block, bytes: O takes the place of Q."""
        size, widest = spec.element.bytes, max(spec.head_dim, spec.head_dim_v)
        tiles = box_bytes(self.block_q, widest, size)
        for columns in (spec.head_dim, spec.head_dim_v):
            tiles += box_bytes(self.block_k, columns, size, self.stages)
        return tiles + BARRIER_BYTES

    def registers(self, spec: AttentionSpec) -> int:
        """What a consumer's thread holds at once at least: S, P and O."""
        return self.block_k // 2 + self.block_k // 4 + spec.head_dim_v // 2


# What tuning varies.
HOPPER_FORWARD_KNOBS = (
    Knob("block_q", (128, 192), "rows of a query tile, 64 a warp group"),
    Knob("block_k", (48, 64, 80, 96, 112, 128, 144, 160, 176), "rows of a key tile"),
    Knob("stages", (1, 2, 3), "tiles of keys, and of values, in shared memory"),
)
