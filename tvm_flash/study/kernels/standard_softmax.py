"""The row softmax of standard attention: scores and probabilities both in device memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import int32
from ...definition.derive.bound import BoundRecurrence
from ...definition.kinds import recurrence_of
from ...definition.signature import Signature, View
from ...problem.spec import AttentionSpec
from ...schedules.cuda.builder import WARP, CudaKernel, Tensor, assign, loop, store, when
from ...schedules.cuda.entries import query_grid
from ...schedules.cuda.math import CudaMath
from ...schedules.cuda.program import Launch, blocks
from ...schedules.cuda.tiling import QueryTile

_WARPS = 4
# Keys of a row that a warp keeps in registers between its two passes, as PyTorch's softmax does up
# to the same length (aten/src/ATen/native/cuda/SoftMax.cu); those beyond are read twice.
HELD_KEYS = 1024


def square(sig: Signature) -> View:
    """S or P in device memory: (B, H, Sq, keys_pad), contiguous."""
    return View((*sig.rows, tirx.Var("keys_pad", "int64")), ())


def softmax_launch(spec: AttentionSpec, symbol: str) -> Launch:
    """p = softmax(s) and lse of s (B, H, Sq, keys_pad): a warp per row."""
    return _Softmax(spec, symbol).launch()


class _Softmax:
    """Maximum and sum of a row in one pass over it, then P in a second one."""

    def __init__(self, spec: AttentionSpec, symbol: str):
        self.spec, sig = spec, Signature(spec)
        self.row = BoundRecurrence(recurrence_of("softmax"), CudaMath())
        both = square(sig)
        tensors = [Tensor(name, both, spec.dtype) for name in ("s", "p")]
        if spec.returns == "out_lse":
            tensors.append(Tensor("lse", View(sig.rows, ()), "float32"))
        self.kernel = CudaKernel(symbol, sig, tensors, query_grid(_WARPS), _WARPS)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            tile = QueryTile(kernel, _WARPS)
            row = kernel.scalar(tile.first + kernel.warp)
            self.place = tile.statistic(row)
            self.keys = kernel.scalar(int32(kernel.buffers["s"].shape[3]))
            self.held = kernel.registers((HELD_KEYS // WARP,), "float32")
            self.peak = kernel.scalar(self.row.start("m"), "float32")
            self.total = kernel.scalar(self.row.start("l", m=self.peak), "float32")
            with when(row < tile.rows):
                self._read()
                self._combine()
                self._write()
        return kernel.launch()

    def _read(self) -> None:
        for n in range(HELD_KEYS // WARP):
            store(self.held, (n,), T.float32(float("-inf")))
            column = self.kernel.lane + n * WARP
            with when(column < self.keys):
                store(self.held, (n,), self._score(column))
                self._absorb(self.held[n])
        with self._beyond() as column:
            self._absorb(self._score(column))

    def _write(self) -> None:
        """P and lse."""
        kernel = self.kernel
        inverse = kernel.scalar(self.row.inverse(self.total), "float32")
        for n in range(HELD_KEYS // WARP):
            column = kernel.lane + n * WARP
            with when(column < self.keys):
                self._store(column, self.held[n], inverse)
        with self._beyond() as column:
            self._store(column, self._score(column), inverse)
        if "lse" in kernel.buffers:
            with when(kernel.lane == 0):
                lse = self.row.lse(self.peak, self.total)
                store(kernel.buffers["lse"], self.place, lse)

    @contextmanager
    def _beyond(self) -> Iterator:
        """This lane's keys past those held, one after the other."""
        count = tirx.max(blocks(self.keys - HELD_KEYS, WARP), 0)
        with loop(count) as step:
            column = self.kernel.lane + HELD_KEYS + step * WARP
            with when(column < self.keys):
                yield column

    def _score(self, column):
        return tirx.Cast("float32", self.kernel.buffers["s"][(*self.place, column)])

    def _store(self, column, score, inverse) -> None:
        p = self.row.weight(score, self.peak) * inverse
        store(self.kernel.buffers["p"], (*self.place, column), tirx.Cast(self.spec.dtype, p))

    def _absorb(self, score) -> None:
        """One more score in this lane's maximum and sum."""
        self._merge(score, T.float32(1))

    def _combine(self) -> None:
        """Maximum and sum of the lanes become the row's, in every lane."""
        for distance in (16, 8, 4, 2, 1):
            peak, total = (
                T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, distance, WARP, WARP)
                for value in (self.peak, self.total)
            )
            other = self.kernel.scalar(peak, "float32"), self.kernel.scalar(total, "float32")
            self._merge(*other)

    def _merge(self, peak, total) -> None:
        """Scores whose maximum is ``peak`` and whose sum of weights is ``total`` join."""
        row = self.row
        new = self.kernel.scalar(row.join("m", self.peak, peak), "float32")
        mine, theirs = row.factor(self.peak, new), row.factor(peak, new)
        assign(self.total, row.join("l", self.total * mine, total * theirs))
        assign(self.peak, new)
