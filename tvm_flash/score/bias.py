"""The program of a bias: a table that is added to scores, written without tracing a function."""

from __future__ import annotations

from collections.abc import Sequence

from .program import SCORE_SYMBOLS, ScoreProgram, TableType

# Letters of the dimensions (B, H, Sq, Sk) of a bias, for the symbols after the score.
BIAS_AXES = "bhqk"


def bias_axes(sizes: Sequence[int]) -> str:
    """The letters of the dimensions that a bias of four sizes has: those that are not 1."""
    return "".join(letter for letter, n in zip(BIAS_AXES, sizes, strict=True) if n != 1)


def bias_program(axes: str, dtype: str) -> ScoreProgram:
    """score + table[...], of a table of ``dtype`` with the dimensions ``axes``, letters in order.

    What tracing ``variants.bias`` gives.
    """
    symbols = tuple((symbol,) for symbol in SCORE_SYMBOLS)
    load = ("load", 0, *(1 + BIAS_AXES.index(letter) for letter in axes))
    added = ("add", 0, len(symbols))
    return ScoreProgram((*symbols, load, added), (TableType(dtype, len(axes)),))
