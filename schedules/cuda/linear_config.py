"""Numbers of linear attention's kernels for GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from ...problem.spec import AttentionSpec
from ..config_fields import Config
from .arch import WARP, CudaArch, limit_reasons
from .program import blocks
from .tiling import round_up

# Beside the columns of V that a block takes: one of float32 numbers, in a pair of tiles of columns.
EXTRA_COLUMNS = 16
# A warp holds its share of the state's rows, of few columns where they are many: of 512 rows it
# would spill.
WIDEST = 256
# Numbers of rows, and a table of powers.
_NUMBERS = 6


@dataclass(frozen=True)
class LinearConfig(Config):
    """Numbers of linear attention's schedule; they change speed, never results beyond rounding.

    chunk: rows between which products are taken one by one, a multiple of 16 for each of
    ``num_warps``. columns: of V, that a block takes. stages: chunks in shared memory, 1 or 2.
    """

    schedule = "cuda.linear"
    chunk: int = 64
    columns: int = 64
    num_warps: int = 4
    stages: int = 1

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        checks = [
            (
                self.chunk % (16 * self.num_warps) or self.chunk % WARP,
                f"chunk={self.chunk} must be a multiple of {WARP} and of 16 * {self.num_warps=}",
            ),
            (self.columns % 16, f"columns={self.columns} must be a multiple of 16"),
            (
                self.columns + EXTRA_COLUMNS > self.num_warps * WARP,
                f"columns={self.columns} must be {EXTRA_COLUMNS} fewer than {self.num_warps=} have "
                "threads",
            ),
            (self.stages not in (1, 2), f"stages={self.stages} must be 1 or 2"),
        ]
        own = [text for wrong, text in checks if wrong]
        return [*own, *limit_reasons(spec, arch, self.shared_bytes(spec), WIDEST)]

    def row_tiles(self, spec: AttentionSpec) -> int:
        """Tiles of 16 rows of the state that a warp holds."""
        return blocks(blocks(spec.head_dim, 16), self.num_warps)

    def depth(self, spec: AttentionSpec) -> int:
        """Columns of a tile of K: whole shares of the warps."""
        return round_up(spec.head_dim, 16 * self.row_tiles(spec))

    def tiles(self, spec: AttentionSpec) -> int:
        """Blocks that share the columns of V."""
        return blocks(spec.head_dim_v, self.columns)

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of a block, bytes: rows of Q, K and V, the state, the output, numbers."""
        depth, size = self.depth(spec), spec.element.bytes
        rows = self.stages * self.chunk * (2 * depth + self.columns)
        state = (depth + 1) * round_up(self.columns + EXTRA_COLUMNS, 32)
        numbers = _NUMBERS * self.stages * (self.chunk + WARP)
        return size * (rows + self.chunk * self.columns) + 4 * (state + numbers)
