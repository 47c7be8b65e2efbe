"""The softmax of whole rows on GPUs: a warp takes a short row, a block a long one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import int32
from ...definition.derive.bound import BoundRecurrence
from ...definition.kinds import recurrence_of
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import FULL_WARP, WARP, CudaArch
from .builder import (
    CudaKernel,
    assign,
    barrier,
    leave_unless,
    loop,
    name_registers,
    store,
    when,
)
from .math import CudaMath
from .parameters import parameter_tensors
from .pieces import Piece
from .program import Launch, blocks
from .row_config import RowConfig
from .rows import address_of
from .tensor_core import product_for

_WARPS = 8
# Elements of a row that a thread keeps in registers: rows as long as a warp keeps are its own.
_HELD = 32
_SHORT = WARP * _HELD
# Bytes of the widest access.
_WIDEST = 16


@dataclass(frozen=True)
class RowSoftmaxConfig(RowConfig):
    """Whether a warp or a block takes a row follows from its length, when the kernel runs."""

    schedule = "cuda.softmax"


def row_softmax_launch(spec: AttentionSpec, arch: CudaArch, symbol: str) -> Launch:
    """shares, where they have lines, and line_lse of the rows of x, each row of any length."""
    return _RowSoftmax(spec, arch, symbol).launch()


def _grid(sizes: Mapping[str, Any]) -> tuple[Any, int, int]:
    lines, columns = sizes["lines"], sizes["columns"]
    if isinstance(lines, int):
        return (blocks(lines, _WARPS) if columns <= _SHORT else lines), 1, 1
    return tirx.Select(columns <= _SHORT, blocks(lines, _WARPS), lines), 1, 1


class _RowSoftmax:
    """Maximum and sum in one pass over the row, the softmax in a second one, which goes back.

    A pass is rounds in which each thread has ``_HELD`` elements. The second one begins with those
    that the first has left in registers, and goes on with those that were read last.
    """

    def __init__(self, spec: AttentionSpec, arch: CudaArch, symbol: str):
        sig = Signature(spec, "softmax")
        self.row = BoundRecurrence(recurrence_of("softmax"), CudaMath())
        self.product = product_for(spec.dtype, turing=not arch.asynchronous_copy)
        self.bytes, self.columns = spec.element.bytes, sig.sizes["columns"]
        tensors = parameter_tensors(sig, ("x", "shares", "line_lse"))
        self.kernel = CudaKernel(symbol, sig, tensors, _grid, _WARPS)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.x, self.shares, line_lse = kernel.buffers.values()
            self.short = kernel.scalar(self.columns <= _SHORT, "bool")
            # The threads that share a row, and this one's number among them.
            self.team = kernel.scalar(tirx.Select(self.short, WARP, kernel.threads))
            self.own = kernel.scalar(tirx.Select(self.short, kernel.lane, kernel.thread))
            block = tirx.Cast("int64", kernel.block)
            line = tirx.Select(self.short, block * _WARPS + kernel.warp, block)
            self.line = kernel.scalar(line, "int64")
            leave_unless(self.line < self.x.shape[0])
            self.peak = kernel.scalar(self.row.start("m"), "float32")
            self.total = kernel.scalar(self.row.nothing("l"), "float32")
            self.peaks, self.totals = (
                kernel.shared((_WARPS,), "float32", name) for name in ("peaks", "totals")
            )
            fits = kernel.scalar(self._fits(), "bool", "fits")
            name_registers(self)
            for width, condition in ((_WIDEST // self.bytes, fits), (1, tirx.Not(fits))):
                with when(condition):
                    self._passes(width)
            with when(self.own == 0):
                store(line_lse, (self.line,), self.row.lse(self.peak, self.total))
        self.row.check(("lse",), "scores", "score_mod", "mask", "pv")
        return kernel.launch()

    def _fits(self):
        """Whether rows of both tensors are whole pieces of the widest kind, at multiples of it."""
        found = self.columns
        for buffer in (self.x, self.shares):
            found = found | buffer.strides[0]
        found = found * self.bytes
        for buffer in (self.x, self.shares):
            found = found | address_of(buffer.ptr_to([0, 0]))
        return (found & T.int64(_WIDEST - 1)) == 0

    def _passes(self, width: int) -> None:
        """Both, in pieces of ``width`` elements."""
        kernel, row = self.kernel, self.row
        pieces = [Piece(kernel, self.product, width) for _ in range(_HELD // width)]
        size = kernel.scalar(tirx.Cast("int64", self.team * _HELD), "int64")
        rounds = kernel.scalar(tirx.truncdiv(self.columns + (size - 1), size), "int64")
        with loop(rounds, "round") as number:
            self._load(pieces, width, number * size, size)
            self._absorb([value for piece in pieces for value in piece.values()])
        self._join_team()
        with when(self.shares.shape[0] > 0):
            inverse = kernel.scalar(row.inverse(self.total), "float32")
            with loop(rounds, "back") as back:
                first = kernel.scalar((rounds - 1 - back) * size, "int64")
                with when(back > 0):
                    self._load(pieces, width, first, size)
                for piece, (column, inside) in zip(
                    pieces, self._places(width, first, size), strict=True
                ):
                    shares = kernel.registers((width,), "float32")
                    for n, value in enumerate(piece.values()):
                        store(shares, (n,), row.out(row.weight(value, self.peak), inverse))
                    piece.set([shares[n] for n in range(width)])
                    with when(inside):
                        piece.store(self.shares.ptr_to([self.line, column]))

    def _places(self, width: int, first, size) -> list[tuple]:
        """(column, whether the row has it) of this thread's pieces in the round from ``first``."""
        kernel = self.kernel
        left = kernel.scalar(int32(tirx.min(self.columns - first, size)))
        offsets = [(self.own + number * self.team) * width for number in range(_HELD // width)]
        return [(first + tirx.Cast("int64", offset), offset < left) for offset in offsets]

    def _load(self, pieces: Sequence[Piece], width: int, first, size) -> None:
        """What this thread has of the round from ``first``; nothing has a share behind the end."""
        nothing = self.kernel.scalar(T.float32(float("-inf")), "float32")
        places = self._places(width, first, size)
        for piece, (column, inside) in zip(pieces, places, strict=True):
            piece.set([nothing] * width)
            with when(inside):
                piece.load(self.x.ptr_to([self.line, column]))

    def _absorb(self, values: Sequence) -> None:
        """More elements in this thread's maximum and sum."""
        row = self.row
        new = self.kernel.scalar(self.peak, "float32")
        for value in values:
            assign(new, row.join("m", new, value))
        assign(self.total, row.repaired(self.total, self.peak, new))
        for value in values:
            assign(self.total, row.join("l", self.total, row.weight(value, new)))
        assign(self.peak, new)

    def _join_team(self) -> None:
        """Maximum and sum of the threads become the row's, in each of them."""
        kernel = self.kernel
        for distance in (16, 8, 4, 2, 1):
            both = (
                T.tvm_warp_shuffle_xor(T.uint32(FULL_WARP), value, distance, WARP, WARP)
                for value in (self.peak, self.total)
            )
            self._merge(*(kernel.scalar(value, "float32") for value in both))
        with when(tirx.Not(self.short)):
            with when(kernel.lane == 0):
                store(self.peaks, (kernel.warp,), self.peak)
                store(self.totals, (kernel.warp,), self.total)
            barrier()
            assign(self.peak, self.row.start("m"))
            assign(self.total, self.row.nothing("l"))
            for warp in range(_WARPS):
                self._merge(self.peaks[warp], self.totals[warp])

    def _merge(self, peak, total) -> None:
        """Elements whose maximum is ``peak`` and whose sum is ``total`` join."""
        row = self.row
        new = self.kernel.scalar(row.join("m", self.peak, peak), "float32")
        mine, theirs = row.repaired(self.total, self.peak, new), row.repaired(total, peak, new)
        assign(self.total, row.join("l", mine, theirs))
        assign(self.peak, new)
