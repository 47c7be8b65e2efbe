"""Gradients of captured tables: a block per query tile, S and dP again, then their sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ...problem.spec import AttentionSpec
from ...score.loads import Load
from .arch import FULL_WARP, CudaArch
from .backward_dq import QueryTileGradient, ordered_reasons
from .builder import WARP, Tensor, store, when
from .defaults import ordered_configs
from .forward import ForwardConfig
from .program import Launch
from .recompute import Recompute
from .row_kernels import join_lanes
from .softmax import quad_reduce
from .table_sums import FloatSums


@dataclass(frozen=True)
class TableGradientConfig(ForwardConfig):
    """As ``ForwardConfig``, read as by the ordered dQ."""

    schedule = "cuda.table_gradients"

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        return ordered_reasons(spec, self, arch)


class OrderedTableGradientConfig(TableGradientConfig):
    """As ``TableGradientConfig``, of sums that do not depend on the order of blocks."""

    schedule = "cuda.table_gradients_ordered"


def table_configs(
    spec: AttentionSpec, arch: CudaArch, bucket: str = "", ordered: bool = False
) -> list[TableGradientConfig]:
    """The configs of the ordered dQ, the best first. Raises UnsupportedSpec."""
    kind = OrderedTableGradientConfig if ordered else TableGradientConfig
    return [kind(**vars(config)) for config in ordered_configs(spec, arch)]


class _DotProducts(Recompute):
    """Keeps the dot products, of which the derivatives by elements of tables are made."""

    def held(self, bound, raw, q_idx, k_idx):
        return raw

    def raw(self, at: tuple):
        return self._gradient[at]


class TableGradient(QueryTileGradient):
    """What the pairs of a query tile add to gradients of tables, kept in registers over the axes
    that an index has not; ``sums``: where it goes then."""

    outputs = ()
    recompute_of = _DotProducts

    def __init__(self, spec, config, arch, symbol, sums: type[FloatSums]):
        self.sums = sums
        super().__init__(spec, config, arch, symbol)

    def other_tensors(self) -> list[Tensor]:
        self.sums = self.sums(self.sig)
        return self.sums.tensors()

    def allocate_sums(self) -> None:
        spec = self.spec
        loads = [load for load in spec.table_loads if load.table in spec.learned]
        self.reads = [_Read(self, number, load) for number, load in enumerate(loads)]

    def start_sums(self) -> None:
        self.sums.start(self.kernel)
        for read in self.reads:
            read.start()

    def add_sums(self, delta: Callable | None) -> None:
        kernel, recompute = self.kernel, self.recompute
        for read in self.reads:
            read.start_tile()
        for at in self.s.elements():
            own = None if delta is None else delta(*at)
            by_score = recompute.by_score(at, self.dp.registers[at], own)
            by_score = kernel.scalar(by_score, "float32") if len(self.reads) > 1 else by_score
            for read, found in zip(self.reads, self._by_tables(at), strict=True):
                share = self.scores.dscore(recompute.weight(at), by_score, found.slope)
                read.take(at, share, found)
        for read in self.reads:
            read.finish_tile()

    def finish_sums(self) -> None:
        for read in self.reads:
            read.finish()

    def _by_tables(self, at: tuple) -> list:
        """``TableGradient`` of each read at element ``at`` of S."""
        query, key = self.site
        return self.bound.by_tables(self.recompute.raw(at), query(*at), key(*at))

    def at(self, number: int, at: tuple):
        """``TableGradient`` of read ``number`` at element ``at`` of S."""
        return self._by_tables(at)[number]


class _Read:
    """The share of one read of a table: in registers until its element is known."""

    def __init__(self, owner: TableGradient, number: int, load: Load):
        self.owner, self.number, self.table = owner, number, load.table
        self.by_row, self.by_key = (
            bool({"score", axis} & load.symbols) for axis in ("q_idx", "k_idx")
        )
        s = owner.s
        shapes = {
            (True, False): (s.m_tiles, 2),
            (False, True): (s.n_tiles, 2),
            (False, False): (1,),
        }
        shape = shapes.get((self.by_row, self.by_key))
        self.held = owner.kernel.registers(shape, "float32") if shape else None
        self.places = [] if shape is None else _places(shape)

    def start(self) -> None:
        if not self.by_key:
            self._zero()

    def start_tile(self) -> None:
        if self.by_key and not self.by_row:
            self._zero()

    def take(self, at: tuple, share, found) -> None:
        """Add the share of element ``at`` of S."""
        if self.held is None:
            share = self.owner.kernel.scalar(share, "float32")
            self._add(share, found)
            return
        m, n, r = at
        place = (m, r // 2) if self.by_row else (n, r % 2) if self.by_key else (0,)
        store(self.held, place, self.held[place] + share)

    def finish_tile(self) -> None:
        """Sums of keys, over the lanes that hold one."""
        if self.held is None or self.by_row or not self.by_key:
            return
        for n, odd in self.places:
            for distance in (4, 8, 16):
                other = partial(T.tvm_warp_shuffle_xor, T.uint32(FULL_WARP))
                held = self.held[n, odd]
                store(self.held, (n, odd), held + other(held, distance, WARP, WARP))
            with when(self.owner.kernel.lane < 4):
                self._add(self.held[n, odd], self.owner.at(self.number, (0, n, odd)))

    def finish(self) -> None:
        """Sums of rows, or of the whole tile."""
        if self.held is None or self.by_key:
            return
        lane = self.owner.kernel.lane
        if not self.by_row:
            join_lanes(self.held[0], lambda a, b: a + b)
            with when(lane == 0):
                self._add(self.held[0], self.owner.at(self.number, (0, 0, 0)))
            return
        for m, half in self.places:
            quad_reduce(self.held, (m, half), lambda a, b: a + b)
            with when(lane % 4 == 0):
                self._add(self.held[m, half], self.owner.at(self.number, (m, 0, 2 * half)))

    def _zero(self) -> None:
        for place in self.places:
            store(self.held, place, T.float32(0))

    def _add(self, share, found) -> None:
        with when(tirx.And(share != T.float32(0), found.kept)):
            self.owner.sums.add(self.owner.kernel, self.table, found.index, share)


def _places(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    if len(shape) == 1:
        return [(n,) for n in range(shape[0])]
    return [(n, m) for n in range(shape[0]) for m in range(shape[1])]


def table_gradient_launch(
    spec: AttentionSpec, config: TableGradientConfig, arch: CudaArch, symbol: str,
    sums: type[FloatSums] = FloatSums,
) -> Launch:  # fmt: skip
    """One pass over all pairs."""
    return TableGradient(spec, config, arch, symbol, sums).launch()
