"""Linear attention on GPUs: sums of parts of the keys, the state before each part, its rows.

docs/linear_attention.md has the equations, problem/linear.py the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import int32
from ...definition.linear import out_factor
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from .arch import FULL_WARP, WARP, CudaArch
from .builder import CudaKernel, assign, barrier, loop, name_registers, store, when
from .copies import store_rows
from .fragments import accumulator, fragment, gemm, reloading
from .linear_config import EXTRA_COLUMNS, LinearConfig
from .linear_state import State
from .linear_walk import KEY_NUMBERS, QUERY_NUMBERS, Walk, chunks_of_part, linear_grid, power
from .parameters import parameter_tensors
from .program import Launch, blocks
from .shared_tile import shared_tile
from .tensor_core import product_for

_JOINERS = 8  # warps of a block of ``join_launch``


def linear_launches(
    spec: AttentionSpec, configs: tuple[LinearConfig], arch: CudaArch, symbol: str
) -> tuple[list[Launch], dict[str, int]]:
    """Three passes, as schedules/cpu/forms/linear.py has them; a part alone has no first."""
    (config,) = configs
    launches = [
        sums_launch(spec, config, arch, f"{symbol}_sums"),
        join_launch(spec, config, f"{symbol}_join"),
        LinearRows(spec, config, arch, f"{symbol}_rows").launch(),
    ]
    return launches, {
        "block_q": config.chunk,
        "block_k": config.chunk,
        "block_v": config.columns,
    }


def sums_launch(spec: AttentionSpec, config: LinearConfig, arch: CudaArch, symbol: str) -> Launch:
    """The sums of each part of the keys, to ``parts``; of a causal spec's last part none."""
    sig = Signature(spec, "linear")
    names = ("k", "v", *KEY_NUMBERS, "decay", "parts")
    grid = linear_grid(config.tiles(spec), less=int(spec.causal))
    with CudaKernel(symbol, sig, parameter_tensors(sig, names), grid, config.num_warps) as kernel:
        walk = Walk(kernel, spec, config, arch, "kv")
        state = State(kernel, spec, config, walk)
        state.make_sums()
        walk.start()
        with walk.chunks():
            state.add(age=1)
            walk.done_reading()
        state.publish()
        walk.finish()
        state.write("parts", walk.part)
    return kernel.launch()


def join_launch(spec: AttentionSpec, config: LinearConfig, symbol: str) -> Launch:
    """The state before each part in the place of its sums; without an order that behind all."""
    sig = Signature(spec, "linear")
    tensors = parameter_tensors(sig, ("k", "decay", "state", "parts"))
    elements = (spec.head_dim + 1) * (spec.head_dim_v + 1)
    threads = _JOINERS * WARP

    def grid(sizes) -> tuple:
        return blocks(sizes["B"] * sizes["H"] * elements, threads), 1, 1

    with CudaKernel(symbol, sig, tensors, grid, _JOINERS) as kernel:
        number = tirx.Cast("int64", kernel.block) * threads + tirx.Cast("int64", kernel.thread)
        number = kernel.scalar(number, "int64", name="number")
        with when(number < sig.batch * sig.heads * elements):
            _Join(kernel, spec, config, number).write()
    return kernel.launch()


class _Join:
    """An element of the state, of all parts."""

    def __init__(self, kernel: CudaKernel, spec: AttentionSpec, config: LinearConfig, number):
        self.kernel, self.is_causal, sizes = kernel, spec.causal, kernel.sig.sizes
        columns = spec.head_dim_v + 1
        both = tirx.truncdiv(number, (spec.head_dim + 1) * columns)
        within = int32(tirx.truncmod(number, (spec.head_dim + 1) * columns))
        entry, head = (rule(both, sizes["H"]) for rule in (tirx.truncdiv, tirx.truncmod))
        head = kernel.scalar(head, "int64", name="head")
        self.at = (entry, head, tirx.truncdiv(within, columns), tirx.truncmod(within, columns))
        self.splits, self.keys = int32(sizes["splits"]), int32(sizes["Sk"])
        self.run = kernel.scalar(
            chunks_of_part(self.keys, self.splits, config.chunk) * config.chunk
        )

    def write(self) -> None:
        """What is before each part to its place; without an order the sum of all to each."""
        kernel, parts = self.kernel, self.kernel.buffers["parts"]
        before = kernel.scalar(T.float32(0), "float32", name="before")
        with when(self.at[2] < kernel.sig.sizes["Ds"]):
            assign(before, kernel.buffers["state"][self.at])
        own = kernel.scalar(T.float32(0), "float32", name="own")
        with loop(self.splits, "part") as part:
            # No part is behind a causal call's last one, whose sums are not made.
            with when(part < self.splits - 1) if self.is_causal else nullcontext():
                assign(own, parts[(part, *self.at)])
            if self.is_causal:
                store(parts, (part, *self.at), before)
                assign(before, before * self._passed(part))
            assign(before, before + own)
        if not self.is_causal:
            with loop(self.splits, "part") as part:
                store(parts, (part, *self.at), before)

    def _passed(self, part):
        """What is left behind a part of the state before it."""
        rows = tirx.max(tirx.min(self.keys - part * self.run, self.run), 0)
        age = tirx.Select(part == 0, self.kernel.sig.numbers["state_age"], 1)
        steps = tirx.max(rows - 1 + age, 0)
        return power(self.kernel.buffers["decay"][self.at[1]], steps)


class LinearRows:
    """The kernel of the rows of each part: out, out_extra and the state behind the last row."""

    def __init__(self, spec: AttentionSpec, config: LinearConfig, arch: CudaArch, symbol: str):
        self.spec, self.config, self.arch = spec, config, arch
        self.sig = Signature(spec, "linear")
        self.reads = "qkv" if spec.causal else "q"
        keys = (*"kv", *KEY_NUMBERS) if spec.causal else ()
        names = ("q", *QUERY_NUMBERS, *keys, "decay", "parts", "out", "out_extra", "state_out")
        self.kernel = CudaKernel(
            symbol, self.sig, parameter_tensors(self.sig, names),
            linear_grid(config.tiles(spec)), config.num_warps,
        )  # fmt: skip
        self.rows_product = product_for(spec.dtype, turing=not arch.asynchronous_copy)
        self.warp_rows = config.chunk // config.num_warps

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self._open()
            walk, state = self.walk, self.state
            walk.start()
            state.read("parts", walk.part)
            barrier()
            if self.spec.causal:
                state.take()
            with walk.chunks():
                self._earlier()
                if self.spec.causal:
                    self._within()
                    state.add(self.age)
                self._stage_out()
                walk.done_reading()
                if self.spec.causal:
                    state.publish()
                    assign(self.age, 1)
                store_rows(kernel, self.out_tile, walk.rows_of("out"), walk.first, walk.rows)
            walk.finish()
            with when(walk.part + 1 == int32(self.sig.sizes["splits"])):
                state.write("state_out")
        return kernel.launch()

    def _open(self) -> None:
        kernel, config, spec = self.kernel, self.config, self.spec
        self.walk = Walk(kernel, spec, config, self.arch, self.reads)
        self.state = State(kernel, spec, config, self.walk)
        self.product = self.state.product
        self.out_tile = shared_tile(kernel, config.chunk, config.columns, spec.dtype)
        self.out = accumulator(kernel, self.warp_rows, config.columns + EXTRA_COLUMNS)
        self.fragment = fragment(kernel, self.product, self.out.m_tiles)
        if spec.causal:
            self.state.make_sums()
            self.p = accumulator(kernel, self.warp_rows, config.chunk)
            self.q_fragment = fragment(kernel, self.rows_product, self.p.m_tiles)
            # The age of the state at hand: as the call says at the first row.
            first = self.sig.numbers["state_age"]
            self.age = kernel.scalar(tirx.Select(self.walk.part == 0, first, 1))
        name_registers(self)

    def _earlier(self) -> None:
        """O = g^(i + age) Q^ M."""
        walk, state, product = self.walk, self.state, self.product
        self.out.zero()
        gemm(
            self.out, product, state.depth // product.step,
            reloading(
                self.fragment, self.out.m_tiles,
                lambda a, m, step: product.load_a_paired(
                    a, walk.tiles["q"], walk.stage, self._first_row(m), step
                ),
            ),
            lambda b, step, pair: product.load_b_rows(b, state.tile, 0, step * product.step, pair),
        )  # fmt: skip
        extra = self._of_rows(partial(walk.number, "q_extra"))
        passed = None
        if self.spec.causal:
            passed = self._of_rows(lambda row: walk.powers[row + self.age])

        def whole(value, m, n, r):
            last = state.tile.buffer[state.tile.index(0, state.depth, self.out.column(n, r % 2))]
            value = value + extra[m][r // 2] * last
            return value if passed is None else value * passed[m][r // 2]

        self.out.map(whole)

    def _within(self) -> None:
        """P = w g^(i - j) Q^ K^T where j <= i; O += P V^."""
        walk, product = self.walk, self.rows_product
        self.p.zero()
        gemm(
            self.p, product, self.state.depth // product.step,
            reloading(
                self.q_fragment, self.p.m_tiles,
                lambda a, m, step: product.load_a(
                    a, walk.tiles["q"], walk.stage, self._first_row(m), step
                ),
            ),
            lambda b, step, pair: product.load_b(b, walk.tiles["k"], walk.stage, pair * 16, step),
        )  # fmt: skip
        extra = self._of_rows(partial(walk.number, "q_extra"))

        def weight(value, m, n, r):
            row, key = self._row(m, r // 2), self.p.column(n, r % 2)
            value = value + extra[m][r // 2] * walk.number("k_extra", key)
            value = walk.decayed(value, tirx.max(row - key, 0))
            # A product would keep what is not finite of later keys.
            return tirx.Select(key <= row, value * walk.number("key_weight", key), T.float32(0))

        self.p.map(weight)
        gemm(
            self.out, self.product, self.config.chunk // self.product.step, self._weights,
            self.state.load_values,
        )  # fmt: skip

    def _weights(self, step: int) -> list[list]:
        for m in range(self.p.m_tiles):
            self.product.pack(self.fragment(m), self.p.values(m, step, self.product))
        return [self.fragment(m) for m in range(self.p.m_tiles)]

    def _stage_out(self) -> None:
        """r O, rounded, to its tile; the column beside it to out_extra."""
        kernel, walk, registers = self.kernel, self.walk, self.out.registers
        beside = self.config.columns // 8
        for m in range(self.out.m_tiles):
            for half in range(2):
                own = registers[m, beside, 2 * half]
                first_lane = kernel.lane - kernel.lane % 4
                total = T.tvm_warp_shuffle(T.uint32(FULL_WARP), own, first_lane, WARP, WARP)
                total = kernel.scalar(total, "float32", name="total")
                row = self._row(m, half)
                weight = walk.number("out_weight", row)
                factor = kernel.scalar(
                    out_factor(self.sig, total, weight), "float32", name="factor"
                )
                for n in range(beside):
                    pair = (registers[m, n, 2 * half + odd] * factor for odd in range(2))
                    self.rows_product.store_pair(self.out_tile, row, self.out.column(n, 0), *pair)
                row = walk.first + row
                inside = tirx.And(row < walk.rows, kernel.lane % 4 == 0)
                with when(tirx.And(inside, walk.tile == 0)):
                    at = (walk.entry, walk.head, walk.place(row))
                    store(kernel.buffers["out_extra"], at, total)

    def _of_rows(self, number: Callable) -> list[list]:
        """number(row) of each row that this lane holds, in registers."""
        kernel = self.kernel
        return [
            [kernel.scalar(number(self._row(m, half)), "float32") for half in range(2)]
            for m in range(self.out.m_tiles)
        ]

    def _first_row(self, m: int):
        return self.kernel.warp * self.warp_rows + m * 16

    def _row(self, m: int, half: int):
        return self.kernel.warp * self.warp_rows + self.out.row(m, half)
