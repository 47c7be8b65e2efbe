"""The gradient of the softmax of whole rows on GPUs, by the threads that took the row."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from ...definition.derive.bound import BoundGradient
from ...definition.kinds import gradient_of
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import CudaArch
from .builder import CudaKernel, assign, loop, when
from .math import CudaMath
from .parameters import parameter_tensors
from .program import Launch
from .row_config import RowConfig
from .row_team import TEAM_WARPS, RowTeam, team_grid
from .tensor_core import product_for

# Elements of two rows each that a thread keeps in registers between the passes; 32 do not fit.
_HELD = 16
_TENSORS = ("shares", "dshares", "x", "line_lse", "dline_lse", "dx")


@dataclass(frozen=True)
class RowGradientConfig(RowConfig):
    """As of ``RowSoftmaxConfig``."""

    schedule = "cuda.softmax_backward"


def row_gradient_launch(spec: AttentionSpec, arch: CudaArch, symbol: str) -> Launch:
    """dx, first of the lines of shares, then of those of x."""
    return _RowGradient(spec, arch, symbol).launch()


class _RowGradient:
    """dx = P (dP - delta): through shares, which are P, delta is a sum over the row.

    The pass that writes goes back over the row, as that of the softmax. Through line_lse P is made
    of x, dP is 0 and delta known: one pass.
    """

    def __init__(self, spec: AttentionSpec, arch: CudaArch, symbol: str):
        sig = Signature(spec, "softmax_backward")
        self.softmax = BoundGradient(gradient_of("softmax"), CudaMath())
        self.product = product_for(spec.dtype, turing=not arch.asynchronous_copy)
        self.columns = sig.sizes["columns"]
        tensors, grid = parameter_tensors(sig, _TENSORS), team_grid(_HELD, "shared_lines", "lines")
        self.kernel = CudaKernel(symbol, sig, tensors, grid, TEAM_WARPS, min_blocks=2)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.shares, self.dshares, self.x, self.line_lse, self.dline_lse, self.dx = (
                kernel.buffers[name] for name in _TENSORS
            )
            through_shares = self.shares.shape[0]
            lines = through_shares + self.x.shape[0]
            self.team = RowTeam(kernel, self.product, _HELD, self.columns, lines)
            shared = kernel.scalar(self.team.line < through_shares, "bool", "shared")
            with when(shared):
                self.team.by_width(self._through_shares, self.shares, self.dshares, self.dx)
            with when(tirx.Not(shared)):
                self.own_line = kernel.scalar(self.team.line - through_shares, "int64", "own_line")
                self.team.by_width(self._through_lse, self.x, self.dx)
        self.softmax.check("scores", "score_mod", "mask", "dp", "dq", "dk", "dv")
        return kernel.launch()

    def _through_shares(self, width: int) -> None:
        team, softmax = self.team, self.softmax
        shares, upstream = team.pieces(width), team.pieces(width)
        delta = self.kernel.scalar(softmax.delta_start(T.float32(0)), "float32", "delta")

        def add(value) -> None:
            assign(delta, delta + value)

        def load(first) -> None:
            team.load(shares, width, self.shares, team.line, first, 0.0)
            team.load(upstream, width, self.dshares, team.line, first, 0.0)

        with loop(team.rounds, "round") as number:
            load(number * team.size)
            for own, given in zip(shares, upstream, strict=True):
                for p, dp in zip(own.values(), given.values(), strict=True):
                    add(softmax.delta_term(p, dp))
        team.join([delta], add, lambda: assign(delta, T.float32(0)))
        with loop(team.rounds, "back") as back:
            first = self.kernel.scalar((team.rounds - 1 - back) * team.size, "int64")
            with when(back > 0):
                load(first)
            for own, given in zip(shares, upstream, strict=True):
                own.change(lambda p, dp: softmax.derivative(p, dp, delta), given)
            team.store(shares, width, self.dx, team.line, first)

    def _through_lse(self, width: int) -> None:
        kernel, team, softmax = self.kernel, self.team, self.softmax
        row = kernel.scalar(softmax.row(self.line_lse[self.own_line]), "float32")
        delta = kernel.scalar(softmax.delta_start(self.dline_lse[self.own_line]), "float32")
        pieces = team.pieces(width)
        with loop(team.rounds, "round") as number:
            first = kernel.scalar(number * team.size, "int64")
            team.load(pieces, width, self.x, self.own_line, first, 0.0)
            for piece in pieces:
                piece.change(
                    lambda x: softmax.derivative(softmax.weight(x, row), T.float32(0), delta)
                )
            team.store(pieces, width, self.dx, team.line, first)
