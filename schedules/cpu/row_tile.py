"""Tensor intrinsics of few rows: products whose vector lanes are the head dimension."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as build

from .forms.regions import whole
from .row_lanes import folded, interleaved, slice_of, strided


@dataclass(frozen=True)
class RowTile:
    """Sizes of one intrinsic: ``rows`` of queries, a block of ``keys``, ``columns`` of head_dim.

    A row of K or V is loaded and converted once for all rows of queries. step: keys that the score
    product multiplies at once. dtype: of K or V in memory. staged: K or V is a dense local block,
    not an argument.
    """

    rows: int
    keys: int
    columns: int
    step: int
    vector: int
    dtype: str
    staged: bool

    kind: ClassVar[str] = "row"
    # What Q and the weights hold, and how many elements one holds.
    word: ClassVar[str] = "float32"
    pack: ClassVar[int] = 1
    # Columns of V that one of the two vectors of a load has, before the other has as many.
    run: ClassVar[int] = 1

    def name(self, product: str) -> str:
        place = "staged" if self.staged else "direct"
        sizes = f"{self.rows}x{self.keys}x{self.columns}_s{self.step}_v{self.vector}"
        return f"tvm_flash_{self.kind}_{product}_{sizes}_{self.dtype}_{place}"

    @property
    def row_words(self) -> int:
        """Words of a row of Q or K."""
        return self.columns // self.pack

    @property
    def key_words(self) -> int:
        """Words of a column of V, or of a row of weights."""
        return self.keys // self.pack

    @property
    def k_shape(self) -> tuple[int, ...]:
        """Shape of the block of K; an argument has elements, and keeps its axis of heads."""
        return (self.keys, self.row_words) if self.staged else (self.keys, 1, self.columns)

    @property
    def v_shape(self) -> tuple[int, ...]:
        """Shape of the block of V, as of K."""
        return (self.key_words, self.columns) if self.staged else (self.keys, 1, self.columns)

    def strides(self, row, head) -> list:
        return [row, 1] if self.staged else [row, head, 1]

    def index(self, key, column) -> tuple:
        return (key, column) if self.staged else (key, 0, column)

    def lanes(self, start=0):
        return T.ramp(start, 1, self.vector)

    @property
    def paired(self) -> bool:
        """Whether bf16 is read as words of two: even columns of a load apart from odd ones.

        Half as many instructions as widening, and none of them crosses lanes.
        """
        whole = self.columns % (2 * self.vector) == 0
        return self.dtype == "bfloat16" and not self.staged and whole

    @property
    def load(self) -> int:
        """Columns of one load: one float32 vector, or the two of a pair."""
        return 2 * self.vector if self.paired else self.vector

    def element(self, buffer, key, column):
        """float32 element, or vector, of K or V."""
        value = buffer[self.index(key, column)]
        if self.dtype == "float32":
            return value
        lanes = f"x{self.vector}" if isinstance(column, tirx.Ramp) else ""
        return tirx.Cast(f"float32{lanes}", value)

    def vectors(self, buffer, key, column) -> list:
        """float32 vectors of the ``load`` columns of K or V from ``column`` on."""
        if not self.paired:
            return [self.element(buffer, key, self.lanes(column))]
        row = buffer[self.index(key, T.ramp(column, 1, 2 * self.vector))]
        words = tirx.reinterpret(f"int32x{self.vector}", row)
        bits = (
            tirx.shift_left(words, self._words(16)),
            tirx.bitwise_and(words, self._words(-65536)),
        )
        return [tirx.reinterpret(f"float32x{self.vector}", half) for half in bits]

    def vectors_like(self, buffer, row, column) -> list:
        """The same columns of a float32 block, in the order of ``vectors``."""
        low = buffer[row, self.lanes(column)]
        if not self.paired:
            return [low]
        high = buffer[row, self.lanes(column + self.vector)]
        return [strided(low, high, first, self.vector) for first in (0, 1)]

    def _words(self, value: int):
        return tirx.Broadcast(tirx.const(value, "int32"), self.vector)

    def k_product(self, query, K, key, word):
        """A word of Q times that of a key."""
        return query * self.element(K, key, word)

    def v_product(self, weight, V, word, column):
        """A word of weights times that of a column of V."""
        return weight * self.element(V, word, column)

    def registers_of_row(self, count: int) -> list:
        """Registers that hold ``count`` vectors of K or V while they are multiplied."""
        return registers(count, self)

    def add_scores(self, acc: list, row: list, Q, K, key, column) -> None:
        """Add the products of ``load`` words of ``step`` keys from ``column`` on."""
        keys = [self.vectors(K, key + n, column) for n in range(self.step)]
        queries = [self.vectors_like(Q, i, column) for i in range(self.rows)]
        for part in range(self.load // self.vector):
            for n in range(self.step):
                set_to(row[n], keys[n][part], self)
            for i in range(self.rows):
                for n in range(self.step):
                    sums = acc[i * self.step + n]
                    set_to(sums, get(sums, self) + queries[i][part] * get(row[n], self), self)

    def add_values(self, acc: list, row: list, P, V, key) -> None:
        """Add the products of a row of words of V."""
        vectors = [x for d in range(0, self.columns, self.load) for x in self.vectors(V, key, d)]
        for register, value in zip(row, vectors, strict=True):
            set_to(register, value, self)
        for i in range(self.rows):
            probability = tirx.Broadcast(P[i, key], self.vector)
            for n, register in enumerate(row):
                sums = acc[i * len(row) + n]
                set_to(sums, get(sums, self) + probability * get(register, self), self)


@cache
def register_scores(tile: RowTile) -> str:
    """S[rows, keys] += Q[rows, columns] . K[keys, columns]."""
    name = tile.name("scores")
    TensorIntrin.register(name, _scores_description(tile), _scores(tile), override=True)
    return name


@cache
def register_pv(tile: RowTile) -> str:
    """O[rows, columns] += P[rows, keys] . V[keys, columns]."""
    name = tile.name("pv")
    TensorIntrin.register(name, _pv_description(tile), _pv(tile), override=True)
    return name


def _scores_description(tile: RowTile) -> tirx.PrimFunc:
    rows, keys, words = tile.rows, tile.keys, tile.row_words

    @T.prim_func(s_tir=True)
    def description(q: T.handle, k: T.handle, s: T.handle):
        Q = T.match_buffer(q, (rows, words), tile.word, offset_factor=1)
        K = T.match_buffer(k, tile.k_shape, tile.dtype, offset_factor=1)
        S = T.match_buffer(s, (rows, keys), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(whole([S, Q, K]))
            T.writes(whole([S]))
            for i, j, d in T.grid(rows, keys, words):
                with T.sblock("update"):
                    vi, vj, vd = T.axis.remap("SSR", [i, j, d])
                    S[vi, vj] = S[vi, vj] + tile.k_product(Q[vi, vd], K, vj, vd)

    return description


def _pv_description(tile: RowTile) -> tirx.PrimFunc:
    rows, words, columns = tile.rows, tile.key_words, tile.columns

    @T.prim_func(s_tir=True)
    def description(p: T.handle, v: T.handle, o: T.handle):
        P = T.match_buffer(p, (rows, words), tile.word, offset_factor=1)
        V = T.match_buffer(v, tile.v_shape, tile.dtype, offset_factor=1)
        O = T.match_buffer(o, (rows, columns), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(whole([O, P, V]))
            T.writes(whole([O]))
            for i, d, j in T.grid(rows, columns, words):
                with T.sblock("update"):
                    vi, vd, vj = T.axis.remap("SSR", [i, d, j])
                    O[vi, vd] = O[vi, vd] + tile.v_product(P[vi, vj], V, vj, vd)

    return description


def _scores(tile: RowTile) -> tirx.PrimFunc:
    rows, keys, words, step = tile.rows, tile.keys, tile.row_words, tile.step

    @T.prim_func(s_tir=True)
    def implementation(q: T.handle, k: T.handle, s: T.handle):
        q_row = T.int32()
        k_row = T.int64()
        k_head = T.int64()
        s_row = T.int32()
        Q = T.match_buffer(q, (rows, words), tile.word, offset_factor=1, strides=[q_row, 1])
        K = T.match_buffer(
            k, tile.k_shape, tile.dtype, offset_factor=1, strides=tile.strides(k_row, k_head)
        )
        S = T.match_buffer(s, (rows, keys), "float32", offset_factor=1, strides=[s_row, 1])
        with T.sblock("root"):
            T.reads(whole([S, Q, K]))
            T.writes(whole([S]))
            acc = T.meta_var(registers(rows * step, tile))
            row = T.meta_var(tile.registers_of_row(step))
            for j in T.serial(keys // step):
                zero(acc, tile)
                for d in T.serial(words // tile.load):
                    tile.add_scores(acc, row, Q, K, j * step, d * tile.load)
                store_scores(S, acc, j * step, tile)

    return implementation


def _pv(tile: RowTile) -> tirx.PrimFunc:
    rows, words, columns = tile.rows, tile.key_words, tile.columns

    @T.prim_func(s_tir=True)
    def implementation(p: T.handle, v: T.handle, o: T.handle):
        p_row = T.int32()
        v_row = T.int64()
        v_head = T.int64()
        o_row = T.int32()
        P = T.match_buffer(p, (rows, words), tile.word, offset_factor=1, strides=[p_row, 1])
        V = T.match_buffer(
            v, tile.v_shape, tile.dtype, offset_factor=1, strides=tile.strides(v_row, v_head)
        )
        O = T.match_buffer(o, (rows, columns), "float32", offset_factor=1, strides=[o_row, 1])
        with T.sblock("root"):
            T.reads(whole([O, P, V]))
            T.writes(whole([O]))
            acc = T.meta_var(registers(rows * columns // tile.vector, tile))
            row = T.meta_var(tile.registers_of_row(columns // tile.vector))
            zero(acc, tile)
            for j in T.serial(words):
                tile.add_values(acc, row, P, V, j)
            add_output(O, acc, tile)

    return implementation


# Statements of the intrinsics. Loops over registers are Python's: each is a buffer of its own,
# because TVM moves a buffer of 1024 bytes or more to the heap, where LLVM cannot drop the stores.


def registers(count: int, tile: RowTile) -> list:
    return [build.alloc_buffer((tile.vector,), "float32") for _ in range(count)]


def get(register, tile: RowTile):
    return register[tile.lanes()]


def set_to(register, value, tile: RowTile) -> None:
    build.buffer_store(register, value, [tile.lanes()])


def zero(registers: list, tile: RowTile) -> None:
    for register in registers:
        set_to(register, tirx.Broadcast(tirx.const(0, "float32"), tile.vector), tile)


def store_scores(S, acc: list, key, tile: RowTile) -> None:
    """Add the sum of each accumulator's lanes; ``vector`` of them give one vector of sums."""
    for first in range(0, len(acc), tile.vector):
        sums = _sum_lanes(acc[first : first + tile.vector], tile)
        for n in range(0, tile.vector, tile.step):
            target = [(first + n) // tile.step, T.ramp(key, 1, tile.step)]
            value = S[tuple(target)] + slice_of(get(sums, tile), n, tile.step)
            build.buffer_store(S, value, target)


def _sum_lanes(registers: list, tile: RowTile):
    """The register whose lane n becomes the sum of the lanes of register n.

    Each step halves the number of registers: 16 take 30 shuffles, where one by one takes 64.
    """
    run = tile.vector
    while len(registers) > 1:
        half, run = len(registers) // 2, run // 2
        # Pairs (n, n + half) bring the lanes into the order of the registers.
        for low, high in zip(registers[:half], registers[half:], strict=True):
            set_to(low, folded(get(low, tile), get(high, tile), tile.vector, run), tile)
        registers = registers[:half]
    return registers[0]


def add_output(O, acc: list, tile: RowTile) -> None:
    """Add the sums of this block of keys: in long running sums rounding would add up."""
    values = [get(register, tile) for register in acc]
    if tile.paired:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [half for pair in pairs for half in interleaved(*pair, tile.vector, tile.run)]
    places = [(i, d) for i in range(tile.rows) for d in range(0, tile.columns, tile.vector)]
    for value, (i, d) in zip(values, places, strict=True):
        build.buffer_store(O, O[i, tile.lanes(d)] + value, [i, tile.lanes(d)])
