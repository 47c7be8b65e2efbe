"""What a warp does with its rows in a forward, whatever multiplied them: scores to weights, lse."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from ...definition.derive.bound import BoundRecurrence
from ...definition.dropout import Dropout
from ...definition.kinds import recurrence_of, row_numbers
from ...definition.scores import BoundScores, Scores
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import CudaArch
from .builder import CudaKernel, Tensor, store, when
from .dropout import FragmentDropout
from .fragments import Accumulator
from .math import CudaMath
from .parameters import attention_tensors
from .softmax import OnlineSoftmax, WeightsAlone, mask_scores
from .tensor_core import product_for
from .tiling import KeyVisits, QueryTile


class ForwardRows:
    """A forward being written: the part of it that knows scores, and not how they come about.

    A kind makes, before it uses them: kernel, tile, bound, visits, s and out (accumulators),
    softmax, p_fragment and p_steps, dropout where the spec has it.
    """

    kernel: CudaKernel
    tile: QueryTile
    bound: BoundScores
    visits: KeyVisits
    s: Accumulator
    out: Accumulator
    softmax: OnlineSoftmax | WeightsAlone
    dropout: FragmentDropout
    p_fragment: Callable[..., list]
    p_steps: int

    def __init__(self, spec: AttentionSpec, arch: CudaArch, warp_rows: int):
        """warp_rows: rows of a query tile that a warp has."""
        self.spec, self.warp_rows = spec, warp_rows
        self.sig = Signature(spec)
        self.scores = Scores(self.sig, CudaMath())
        factor = Dropout(self.sig).factor if spec.dropout else None
        recurrence = recurrence_of(spec.softmax, spec.dropout)
        self.row = BoundRecurrence(recurrence, CudaMath(), factor)
        self.statistics = spec.forward_statistics
        self.product = product_for(spec.dtype, turing=not arch.asynchronous_copy)

    def _tensors(self) -> list[Tensor]:
        names = ("q", "k", "v", "out", *self.statistics, *self.sig.inputs)
        return attention_tensors(self.sig, names)

    def check(self) -> None:
        """Raise AssertionError unless the kernel used all that its direction is made of."""
        self.row.check(self.statistics, "scores", "pv", *self.scores.used)

    def _row_states(self) -> OnlineSoftmax | WeightsAlone:
        if not self.row.has_sum:
            return WeightsAlone(self.row)
        numbers = row_numbers(self.sig, self.tile.head, self.kernel.buffers)
        return OnlineSoftmax(self.kernel, self.scores, self.row, self.s.m_tiles, numbers)

    def _open_dropout(self) -> None:
        if self.spec.dropout:
            self.dropout = FragmentDropout(self.kernel, self.s)
            self.dropout.at(self.tile.batch, self.tile.head)

    def _mask(self) -> None:
        """Dot products to scores, -inf where the mask hides one."""
        self.softmax.score(self.s, self.bound, self._q_index, self._k_index)
        boundary = self.visits.boundary()
        mask_scores(self.bound, self.s, boundary, self._q_index, self._k_index)

    def _drop(self) -> None:
        if not self.spec.dropout:
            return
        weights = self.s.registers

        def keep(m: int, n: int, r: int, is_kept) -> None:
            store(weights, (m, n, r), self.row.keep(weights[m, n, r], is_kept))

        self.dropout.each(
            lambda m, n, r: self._q_index(m, r // 2), lambda m, n, r: self._k_index(n, r % 2), keep
        )

    def _pack(self) -> None:
        """Weights to fragments of P, all at once: a fragment is half of what it is made of."""
        for step in range(self.p_steps):
            for m in range(self.s.m_tiles):
                self.product.pack(self.p_fragment(m, step), self.s.values(m, step, self.product))

    def _q_index(self, m: int, half: int):
        return self.tile.first + self._row(m, half)

    def _k_index(self, n: int, odd: int):
        return self.visits.first + self.s.column(n, odd)

    def _row(self, m: int, half: int):
        return self.kernel.warp * self.warp_rows + self.s.row(m, half)

    def _finish_rows(self, out_tile) -> None:
        """O / l to ``out_tile`` in shared memory, so that global stores are whole lines; lse."""
        kernel, softmax = self.kernel, self.softmax
        for m in range(self.out.m_tiles):
            for half in range(2):
                inverse = kernel.scalar(softmax.inverse(m, half), "float32")
                self._stage_row(out_tile, m, half, inverse)
                if self.statistics:
                    self._store_lse(m, half)

    def _stage_row(self, out_tile, m: int, half: int, inverse) -> None:
        for n in range(self.out.n_tiles):
            low, high = (
                self.row.out(self.out.registers[m, n, 2 * half + odd], inverse) for odd in range(2)
            )
            row, column = self._row(m, half), self.out.column(n, 0)
            self.product.store_pair(out_tile, row, column, low, high)

    def _store_lse(self, m: int, half: int) -> None:
        kernel, row = self.kernel, self._q_index(m, half)
        with when(tirx.And(kernel.lane % 4 == 0, row < self.tile.rows)):
            index = self.tile.statistic(row)
            lse = kernel.scalar(self.softmax.lse(m, half), "float32")
            store(kernel.buffers["lse"], index, lse)
            if "lse_low" in kernel.buffers:
                store(kernel.buffers["lse_low"], index, self.softmax.lse_low(lse, m, half))
