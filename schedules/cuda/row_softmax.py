"""The softmax of whole rows on GPUs: a warp takes a short row, a block a long one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from ...definition.derive.bound import BoundRecurrence
from ...definition.kinds import recurrence_of
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import CudaArch
from .builder import CudaKernel, assign, loop, store, when
from .math import CudaMath
from .parameters import parameter_tensors
from .pieces import Piece
from .program import Launch
from .row_config import RowConfig
from .row_team import TEAM_WARPS, RowTeam, team_grid
from .tensor_core import product_for

# Elements of a row that a thread keeps in registers between the passes.
_HELD = 32


@dataclass(frozen=True)
class RowSoftmaxConfig(RowConfig):
    """Whether a warp or a block takes a row follows from its length, when the kernel runs."""

    schedule = "cuda.softmax"


def row_softmax_launch(spec: AttentionSpec, arch: CudaArch, symbol: str) -> Launch:
    """shares, where they have lines, and line_lse of the rows of x, each row of any length."""
    return _RowSoftmax(spec, arch, symbol).launch()


class _RowSoftmax:
    """Maximum and sum in one pass over the row, the softmax in a second one, which goes back.

    The second pass begins with those elements that the first has left in registers, and goes on
    with those that were read last.
    """

    def __init__(self, spec: AttentionSpec, arch: CudaArch, symbol: str):
        sig = Signature(spec, "softmax")
        self.row = BoundRecurrence(recurrence_of("softmax"), CudaMath())
        self.product = product_for(spec.dtype, turing=not arch.asynchronous_copy)
        self.columns = sig.sizes["columns"]
        tensors = parameter_tensors(sig, ("x", "shares", "line_lse"))
        self.kernel = CudaKernel(
            symbol, sig, tensors, team_grid(_HELD, "lines"), TEAM_WARPS, min_blocks=2
        )

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.x, self.shares, line_lse = kernel.buffers.values()
            self.team = RowTeam(kernel, self.product, _HELD, self.columns, self.x.shape[0])
            self.peak = kernel.scalar(self.row.start("m"), "float32", "peak")
            self.total = kernel.scalar(self.row.nothing("l"), "float32", "total")
            self.team.by_width(self._passes, self.x, self.shares)
            with when(self.team.own == 0):
                store(line_lse, (self.team.line,), self.row.lse(self.peak, self.total))
        self.row.check(("lse",), "scores", "score_mod", "mask", "pv")
        return kernel.launch()

    def _passes(self, width: int) -> None:
        """Both, in pieces of ``width`` elements."""
        team, pieces = self.team, self.team.pieces(width)
        with loop(team.rounds, "round") as number:
            self._load(pieces, width, number * team.size)
            self._absorb([value for piece in pieces for value in piece.values()])
        team.join((self.peak, self.total), self._merge, self._restart)
        with when(self.shares.shape[0] > 0):
            inverse = self._inverse()
            with loop(team.rounds, "back") as back:
                first = self.kernel.scalar((team.rounds - 1 - back) * team.size, "int64")
                with when(back > 0):
                    self._load(pieces, width, first)
                for piece in pieces:
                    piece.change(lambda x: self.row.out(self.row.weight(x, self.peak), inverse))
                team.store(pieces, width, self.shares, team.line, first)

    def _load(self, pieces: Sequence[Piece], width: int, first) -> None:
        """What this thread has of the round from ``first``; nothing has a share behind the end."""
        self.team.load(pieces, width, self.x, self.team.line, first, float("-inf"))

    def _absorb(self, values: Sequence) -> None:
        """More elements in this thread's maximum and sum."""
        row = self.row
        new = self.kernel.scalar(self.peak, "float32")
        for value in values:
            assign(new, row.join("m", new, value))
        assign(new, row.finite(new))
        assign(self.total, row.repaired(self.total, self.peak, new))
        for value in values:
            assign(self.total, row.join("l", self.total, row.weight(value, new)))
        assign(self.peak, new)

    def _restart(self) -> None:
        assign(self.peak, self.row.start("m"))
        assign(self.total, self.row.nothing("l"))

    def _merge(self, peak, total) -> None:
        """Elements whose maximum is ``peak`` and whose sum is ``total`` join."""
        row = self.row
        new = self.kernel.scalar(row.join("m", self.peak, peak), "float32")
        mine, theirs = row.repaired(self.total, self.peak, new), row.repaired(total, peak, new)
        assign(self.total, row.join("l", mine, theirs))
        assign(self.peak, new)

    def _inverse(self):
        """What weights are multiplied by: NaN in a row with +inf, all of which is NaN."""
        infinite = self.total == T.float32(float("inf"))
        inverse = tirx.Select(infinite, T.float32(float("nan")), self.row.inverse(self.total))
        return self.kernel.scalar(inverse, "float32")
