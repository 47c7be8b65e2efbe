"""The call of the softmax of whole rows, for which there are no values."""

from __future__ import annotations

from .argument import Argument


def softmax_table() -> tuple[Argument, ...]:
    """The arguments of direction "softmax", for rows of x.

    shares, their softmax, may have no lines: then line_lse alone is asked for.
    """
    return (
        Argument("x", ("lines", "columns"), "input"),
        Argument("shares", ("shared_lines", "columns"), "output"),
        Argument("line_lse", ("lines",), "output", "float32", dense=True),
    )
