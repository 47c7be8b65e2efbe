"""The calls of the softmax of whole rows, for which there are no values, and of its gradient."""

from __future__ import annotations

from .argument import Argument


def softmax_tables() -> dict[str, tuple[Argument, ...]]:
    """The arguments of directions "softmax" and "softmax_backward".

    Forward, of the rows of x: shares, their softmax, may have no lines; then line_lse alone is
    asked for. Backward: the first lines of dx are through shares, the others, as many as x has,
    through line_lse. Operators are called with either.
    """

    def rows(name: str, lines: str, role: str, optional: bool = False) -> Argument:
        return Argument(name, (lines, "columns"), role, optional=optional)

    def statistic(name: str, role: str, optional: bool = False) -> Argument:
        return Argument(name, ("lines",), role, "float32", dense=True, optional=optional)

    forward = (
        rows("x", "lines", "input"),
        rows("shares", "shared_lines", "output"),
        statistic("line_lse", "output"),
    )
    backward = (
        rows("shares", "shared_lines", "saved", optional=True),
        rows("dshares", "shared_lines", "input", optional=True),
        rows("x", "lines", "saved", optional=True),
        statistic("line_lse", "saved", optional=True),
        statistic("dline_lse", "input", optional=True),
        rows("dx", "gradient_lines", "output"),
    )
    return {"softmax": forward, "softmax_backward": backward}
