"""The original FlashAttention (Dao et al., 2022): keys outermost, warps that split the keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import TIR, int32, lengths_of, sequences_of, visibility
from ...definition.derive.bound import BoundRecurrence
from ...definition.kinds import recurrence_of
from ...definition.scores import Scores
from ...definition.signature import Signature, View
from ...problem.spec import AttentionSpec
from ...problem.work import Work
from ...schedules.cuda.arch import CudaArch
from ...schedules.cuda.builder import (
    WARP,
    CudaKernel,
    Tensor,
    assign,
    barrier,
    loop,
    store,
    warp_barrier,
    when,
)
from ...schedules.cuda.copies import commit, load_rows, wait
from ...schedules.cuda.fragments import accumulator, fragment, gemm
from ...schedules.cuda.math import CudaMath
from ...schedules.cuda.parameters import parameter_tensors
from ...schedules.cuda.program import CudaProgram, Launch, blocks
from ...schedules.cuda.rows import Rows
from ...schedules.cuda.shared_tile import shared_tile
from ...schedules.cuda.softmax import block_scores, quad_reduce
from ...schedules.cuda.tensor_core import product_for
from ...schedules.cuda.tiling import round_up
from .original_config import OriginalConfig
from .standard import masked_scores


def original_program(
    spec: AttentionSpec, config: OriginalConfig, arch: CudaArch, symbol: str
) -> CudaProgram:
    """symbol(q, k, v, out, lse, *tables, sums, row_max, row_sum, *numbers), one launch.

    Workspaces, all float32 and without initial values: sums (B, H, Sq, Dv), the paper's O, whose
    rows are normalised after every step; row_max, row_sum (B, H, Sq), its m (in log2 units) and l.
    lse where the spec returns it. Raises nothing: ask ``config.reasons`` first.
    """
    launch = _Original(spec, config, symbol).launch()
    results = ("out", "lse") if spec.returns == "out_lse" else ("out",)
    sig = Signature(spec)
    tables, workspaces = (table.name for table in sig.tables), ("sums", "row_max", "row_sum")
    parameters = ("q", "k", "v", *results, *tables, *workspaces, *sig.numbers)
    return CudaProgram(symbol, parameters, (launch,), config.to_json())


class _Original:
    """One kernel being written; the methods follow the order of its body (algorithm 2)."""

    def __init__(self, spec: AttentionSpec, config: OriginalConfig, symbol: str):
        self.spec, self.config, self.sig = spec, config, Signature(spec)
        self.scores, self.product = Scores(self.sig, CudaMath()), product_for(spec.dtype)
        self.softmax = BoundRecurrence(recurrence_of("softmax"), CudaMath())
        self.warp_keys = config.block_k // config.num_warps
        # Shared memory allows few blocks an SM: one block, so that ptxas need not save registers.
        self.kernel = CudaKernel(
            symbol,
            self.sig,
            self._tensors(),
            self._grid,
            config.num_warps,
            tables=True,
            min_blocks=1,
        )

    def _tensors(self) -> list[Tensor]:
        sig, spec = self.sig, self.spec
        statistics = ["row_max", "row_sum"] + ["lse"] * (spec.returns == "out_lse")
        rows = View(sig.rows, ())
        return [
            *parameter_tensors(sig, ("q", "k", "v", "out")),
            Tensor("sums", View((*sig.rows, spec.head_dim_v), ()), "float32"),
            *(Tensor(name, rows, "float32") for name in statistics),
        ]

    def _grid(self, sizes: Mapping[str, Any]):
        return (Work({"entry": sizes["B"], "head": sizes["H"]}).count, 1, 1)

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self._place()
            self._allocate()
            self._clear()
            with loop(blocks(self.keys, self.config.block_k)) as number:
                self._key_tile(number * self.config.block_k)
            self._finish()
        return kernel.launch()

    def _place(self) -> None:
        kernel, sig = self.kernel, self.sig
        heads = int32(sig.heads)
        work = Work({"entry": int32(sig.batch), "head": heads}, arithmetic=TIR)
        place = work.place(kernel.block)
        self.batch, self.head = kernel.scalar(place["entry"]), kernel.scalar(place["head"])
        self.rows, self.keys = lengths_of(sig, self.batch)
        self.sequences = sequences_of(sig)
        self.query = partial(self.sequences.query, self.batch, self.head)
        self.statistic = partial(self.sequences.statistic, self.batch, self.head)
        group = tirx.truncdiv(heads, int32(sig.kv_heads))
        self.kv_head = kernel.scalar(tirx.truncdiv(self.head, group))
        names = ("start", "count", "full_low", "full_high")
        self.held = {name: kernel.scalar(0) for name in names}

    def _allocate(self) -> None:
        kernel, config, dtype = self.kernel, self.config, self.spec.dtype
        depth, depth_v = round_up(self.spec.head_dim, 16), round_up(self.spec.head_dim_v, 16)
        self.q_tile = shared_tile(kernel, config.block_q, depth, dtype)
        self.k_tile = shared_tile(kernel, config.block_k, depth, dtype)
        self.v_tile = shared_tile(kernel, config.block_k, depth_v, dtype)
        each = (config.num_warps, config.block_q)
        self.partial = kernel.shared((*each, depth_v), "float32")
        self.maxima, self.totals = (kernel.shared(each, "float32") for _ in range(2))
        self.s = accumulator(kernel, config.block_q, self.warp_keys)
        self.out = accumulator(kernel, config.block_q, depth_v)
        self.words = fragment(kernel, self.product, self.s.m_tiles)
        self.value = kernel.registers((1,), "float32")

    def _clear(self) -> None:
        """O = 0, l = 0, m = -inf (line 2), which is the lowest number, or a difference were NaN."""
        with self._own_rows(self.rows) as row:
            self._store_statistics(row, self.softmax.start("m"), self.softmax.start("l"))
            for _, at in self._own_columns(row):
                store(self.kernel.buffers["sums"], at, T.float32(0))

    def _key_tile(self, first) -> None:
        """K_j and V_j to shared memory, then every query tile that sees them."""
        config, kernel = self.config, self.kernel
        visits = visibility(self.sig, (self.rows, self.keys)).queries(
            first, first + config.block_k, config.block_q, pad_is_boundary=True
        )
        for name, register in self.held.items():
            assign(register, getattr(visits, name))
        self.visits = visits.held(**self.held)
        with when(self.visits.count > 0):
            place = partial(self.sequences.key, self.batch, self.kv_head)
            for name, tile in (("k", self.k_tile), ("v", self.v_tile)):
                load_rows(kernel, tile, 0, self._rows(name, place), first, self.keys)
        with loop(self.visits.count) as number:
            kernel.forget_offsets()
            self._query_tile(first, self.visits.first(number))

    def _query_tile(self, key_first, q_first) -> None:
        kernel = self.kernel
        load_rows(kernel, self.q_tile, 0, self._rows("q", self.query), q_first, self.rows)
        commit()
        wait()
        barrier()
        self._scores(key_first, q_first)
        self._probabilities()
        self._product()
        barrier()
        with self._own_rows(tirx.min(self.rows - q_first, self.config.block_q)) as row:
            self._combine(row, q_first + row)

    def _scores(self, key_first, q_first) -> None:
        """S of this warp's keys, masked."""
        kernel, product, s = self.kernel, self.product, self.s
        own_key = kernel.warp * self.warp_keys

        def q_fragments(step):
            for m in range(s.m_tiles):
                product.load_a(self.words(m), self.q_tile, 0, m * 16, step)
            return [self.words(m) for m in range(s.m_tiles)]

        s.zero()
        gemm(
            s, product, self.q_tile.columns // product.step, q_fragments,
            lambda b, step, pair: product.load_b(
                b, self.k_tile, 0, own_key + pair * 16, step
            ),
        )  # fmt: skip
        bound = block_scores(kernel, self.scores, self, self.head)
        masked_scores(
            bound, s, self.visits.is_boundary(q_first),
            lambda m, half: q_first + s.row(m, half),
            lambda n, odd: key_first + own_key + s.column(n, odd),
        )  # fmt: skip

    def _probabilities(self) -> None:
        """P = exp(S - the tile's row maximum), which the warps find together; row sums of it."""
        s, held = self.s, self.value
        for m, half in self._row_halves():
            store(held, (0,), self.softmax.nothing("m"))
            for n, r in self._of_row(half):
                store(held, (0,), tirx.max(held[0], s.registers[m, n, r]))
            quad_reduce(held, (0,), tirx.max)
            self._publish(self.maxima, m, half)
        barrier()
        for m, half in self._row_halves():
            peak = self.kernel.scalar(
                self._over_warps(self.maxima, s.row(m, half), tirx.max), "float32"
            )
            store(held, (0,), T.float32(0))
            for n, r in self._of_row(half):
                store(s.registers, (m, n, r), self.softmax.weight(s.registers[m, n, r], peak))
                store(held, (0,), held[0] + s.registers[m, n, r])
            quad_reduce(held, (0,), lambda a, b: a + b)
            self._publish(self.totals, m, half)

    def _product(self) -> None:
        """P V of this warp's keys, to shared memory."""
        kernel, product, out = self.kernel, self.product, self.out

        def p_fragments(step):
            for m in range(self.s.m_tiles):
                product.pack(self.words(m), self.s.values(m, step, product))
            return [self.words(m) for m in range(self.s.m_tiles)]

        out.zero()
        own_key = kernel.warp * self.warp_keys
        gemm(
            out, product, self.warp_keys // product.step, p_fragments,
            lambda b, step, pair: product.load_b_rows(
                b, self.v_tile, 0, own_key + step * product.step, pair
            ),
        )  # fmt: skip
        for m, n, r in out.elements():
            at = (kernel.warp, out.row(m, r // 2), out.column(n, r % 2))
            store(self.partial, at, out.registers[m, n, r])

    def _combine(self, row, q_row) -> None:
        """A row of O, l and m read, this tile's share added, written back (lines 11 to 13)."""
        kernel, softmax = self.kernel, self.softmax
        sums, place = kernel.buffers["sums"], self.statistic(q_row)

        def number(value):
            return kernel.scalar(value, "float32")

        before, count = (number(kernel.buffers[name][place]) for name in ("row_max", "row_sum"))
        peak = number(self._over_warps(self.maxima, row, tirx.max))
        total = number(self._over_warps(self.totals, row, lambda a, b: a + b))
        maximum = number(tirx.max(before, peak))
        old = number(softmax.factor(before, maximum) * count)
        new = number(softmax.factor(peak, maximum))
        weight = number(old + new * total)
        inverse = number(self.softmax.inverse(weight))
        warp_barrier()  # all lanes have read what one of them now writes
        self._store_statistics(q_row, maximum, weight)
        for column, at in self._own_columns(q_row):
            share = self._over_warps(self.partial, row, lambda a, b: a + b, column)
            store(sums, at, (old * sums[at] + new * share) * inverse)

    def _finish(self) -> None:
        """O rounded to the dtype of out, and lse; every thread reads what it wrote itself."""
        buffers = self.kernel.buffers
        with self._own_rows(self.rows) as row:
            for column, at in self._own_columns(row):
                value = tirx.Cast(self.spec.dtype, buffers["sums"][at])
                store(buffers["out"], self.query(row, column), value)
            place = self.statistic(row)
            if "lse" in buffers:
                with when(self.kernel.lane == 0):
                    maximum, weight = buffers["row_max"][place], buffers["row_sum"][place]
                    store(buffers["lse"], place, self.softmax.lse(maximum, weight))

    def _rows(self, name: str, place) -> Rows:
        buffer = self.kernel.buffers[name]
        return Rows(buffer, int(buffer.shape[-1]), place)

    def _row_halves(self):
        return [(m, half) for m in range(self.s.m_tiles) for half in range(2)]

    def _of_row(self, half: int):
        return [(n, 2 * half + odd) for n in range(self.s.n_tiles) for odd in range(2)]

    def _publish(self, target: tirx.Buffer, m: int, half: int) -> None:
        """What the four lanes of a row agree on, for the other warps."""
        with when(self.kernel.lane % 4 == 0):
            store(target, (self.kernel.warp, self.s.row(m, half)), self.value[0])

    def _over_warps(self, parts: tirx.Buffer, row, combine, *column):
        """What the warps left for ``row``, combined in their order."""
        total = parts[(0, row, *column)]
        for warp in range(1, self.config.num_warps):
            total = combine(total, parts[(warp, row, *column)])
        return total

    def _store_statistics(self, row, maximum, weight) -> None:
        with when(self.kernel.lane == 0):
            for name, value in (("row_max", maximum), ("row_sum", weight)):
                store(self.kernel.buffers[name], self.statistic(row), value)

    @contextmanager
    def _own_rows(self, count) -> Iterator:
        """Rows below ``count`` of this warp; a row of O is always the same warp's."""
        warps = self.config.num_warps
        with loop(blocks(count, warps)) as step:
            row = self.kernel.warp + step * warps
            with when(row < count):
                yield row

    def _own_columns(self, row) -> Iterator[tuple]:
        """(column, index into sums) of this lane."""
        for start in range(0, self.spec.head_dim_v, WARP):
            column = self.kernel.lane + start
            at = (*self.statistic(row), column)
            if start + WARP <= self.spec.head_dim_v:
                yield column, at
            else:
                with when(column < self.spec.head_dim_v):
                    yield column, at
