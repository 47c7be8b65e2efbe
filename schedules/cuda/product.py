"""What kernels need of a warp's matrix product, whatever multiplies it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .shared_tile import SharedTile


class Product(Protocol):
    """acc (16 x 8, float32) += A (16 x step) B (step x 8), operands in fragments: words of a lane.

    step: length of the reduction. words_a: uint32 registers of an A fragment; words_b: of the B
    fragments of two neighbouring tiles of columns. tiles_per_step: accumulator tiles whose columns
    are the reduction of one step, when they are the A of the next product. ``gemm`` walks over the
    steps and tiles and calls ``multiply`` for each; the loads are for the functions it is given.
    tensor_core.MmaF16, MmaF16Turing and MmaTf32 are such products.
    """

    @property
    def step(self) -> int: ...
    @property
    def words_a(self) -> int: ...
    @property
    def words_b(self) -> int: ...
    @property
    def tiles_per_step(self) -> int: ...

    def multiply(self, acc: list, a: list, b: list) -> None:
        """acc (4 registers) += A B; ``b`` is its half of the words of two B fragments."""

    def pack(self, a: list, values: Sequence) -> None:
        """The A fragment of what a lane holds of ``tiles_per_step`` accumulator tiles, rounded."""

    def load_a(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        """A of rows row .. row + 15 of a tile stored by rows."""

    def load_a_paired(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        """As ``load_a``, with the reduction index in the order that ``load_b_rows`` has it."""

    def load_a_transposed(self, a: list, tile: SharedTile, stage, depth, column_pair) -> None:
        """A of rows 16 column_pair .. and reduction rows depth .., of a tile stored transposed."""

    def load_b(self, b: list, tile: SharedTile, stage, row, step: int) -> None:
        """B of two tiles of columns, row .. row + 15, of a tile with a column of B in a row."""

    def load_b_rows(self, b: list, tile: SharedTile, stage, depth, pair, column=0) -> None:
        """B of reduction rows depth .. and two tiles of columns, of a tile stored by rows."""

    def store_pair(self, tile: SharedTile, row, column, low, high) -> None:
        """Two float32 to neighbouring columns of a row of the tile, rounded."""

    def store_fragment(self, tile: SharedTile, row, column, a: list) -> None:
        """What ``pack`` made to the tile; row and column are of the lane's first element."""
