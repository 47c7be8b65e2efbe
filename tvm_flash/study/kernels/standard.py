"""Standard attention in three kernels: S = Q K^T, P = softmax(S), O = P V, S and P in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...definition.arithmetic import visibility
from ...definition.scores import BoundScores, Scores
from ...definition.signature import Signature
from ...problem.spec import AttentionSpec
from ...schedules.config_fields import Config
from ...schedules.cuda.arch import CudaArch, limit_reasons
from ...schedules.cuda.builder import CudaKernel, Tensor, barrier, loop
from ...schedules.cuda.copies import commit, load_rows, store_rows, wait
from ...schedules.cuda.entries import query_grid
from ...schedules.cuda.fragments import Accumulator, accumulator, fragment, gemm
from ...schedules.cuda.math import CudaMath
from ...schedules.cuda.parameters import parameter_tensors
from ...schedules.cuda.program import CudaProgram, Launch, blocks
from ...schedules.cuda.rows import Rows
from ...schedules.cuda.shared_tile import SharedTile, shared_tile
from ...schedules.cuda.softmax import block_scores, mask_scores, scale_scores
from ...schedules.cuda.tensor_core import product_for
from ...schedules.cuda.tiling import QueryTile, held, round_up
from .standard_softmax import softmax_launch, square


@dataclass(frozen=True)
class StandardConfig(Config):
    """Numbers of standard attention; they change speed, never results beyond rounding.

    block_q, block_k: rows and keys of a tile of S and P. num_warps: they split the rows evenly.
    """

    schedule = "cuda.standard"
    block_q: int = 128
    block_k: int = 64
    num_warps: int = 4

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why this config cannot serve ``spec`` on ``arch`` (empty: it can)."""
        checks = [
            (
                self.block_q % (16 * self.num_warps),
                f"block_q={self.block_q} must be a multiple of 16 * {self.num_warps=}",
            ),
            (self.block_k % 16, f"block_k={self.block_k} must be a multiple of 16"),
        ]
        own = [text for wrong, text in checks if wrong]
        return [*half_reasons(spec, arch, self.shared_bytes(spec)), *own]

    def shared_bytes(self, spec: AttentionSpec) -> int:
        """Shared memory of the larger of the two products' blocks, bytes."""
        depth, depth_v = round_up(spec.head_dim, 16), round_up(spec.head_dim_v, 16)
        tile, both = self.block_q * self.block_k, self.block_q + self.block_k
        scores = tile + both * depth
        return 2 * max(scores, tile + self.block_k * depth_v, self.block_q * depth_v)


DEFAULT = StandardConfig()


def half_reasons(spec: AttentionSpec, arch: CudaArch, shared_bytes: int) -> list[str]:
    """What the two schedules made for study do not serve."""
    checks = [
        (spec.dtype == "float32", "dtype=float32: use float16 or bfloat16"),
        (not arch.asynchronous_copy, f"{arch.name} has no cp.async: use sm_80 or later"),
    ]
    own = [text for wrong, text in checks if wrong]
    return [*own, *limit_reasons(spec, arch, shared_bytes, widest=128)]


def standard_program(
    spec: AttentionSpec, config: StandardConfig, arch: CudaArch, symbol: str
) -> CudaProgram:
    """symbol(q, k, v, out, lse, *tables, s, p, *numbers); lse where the spec returns it.

    s, p: workspaces (B, H, Sq, keys_pad) of the dtype of q, with keys_pad = Sk rounded up to
    block_k; they need no initial values. As in PyTorch, scores are rounded to that dtype, and so
    are the normalised probabilities. Every tile of S is computed, hidden or not. Raises nothing:
    ask ``config.reasons`` first.
    """
    sig = Signature(spec)
    launches = (
        _Scores(spec, config, f"{symbol}_scores").launch(),
        softmax_launch(spec, f"{symbol}_softmax"),
        _Output(spec, config, f"{symbol}_output").launch(),
    )
    results = ("out", "lse") if spec.returns == "out_lse" else ("out",)
    tables = tuple(table.name for table in sig.tables)
    parameters = ("q", "k", "v", *results, *tables, "s", "p", *sig.numbers)
    return CudaProgram(symbol, parameters, launches, config.to_json(), {"block_k": config.block_k})


def masked_scores(
    bound: BoundScores, s: Accumulator, boundary, q_index: Callable, k_index: Callable
) -> None:
    """Dot products in ``s`` become scores, -inf where hidden.

    q_index(m, half), k_index(n, odd); only a ``boundary`` tile pays for the mask.
    """
    scale_scores(bound, s, q_index, k_index)
    mask_scores(bound, s, boundary, q_index, k_index)


def _tensors(sig: Signature, spec: AttentionSpec, names: Sequence[str]) -> list[Tensor]:
    own = [name for name in names if name not in ("s", "p")]
    known = {tensor.name: tensor for tensor in parameter_tensors(sig, own)}
    return [known.get(name) or Tensor(name, square(sig), spec.dtype) for name in names]


class _Tiles:
    """What the two products share: a block per query tile, whose warps split the rows."""

    def __init__(self, spec: AttentionSpec, config: StandardConfig, symbol: str, names: str):
        self.spec, self.config, self.sig = spec, config, Signature(spec)
        self.product = product_for(spec.dtype)
        self.warp_rows = config.block_q // config.num_warps
        self.kernel = CudaKernel(
            symbol, self.sig, _tensors(self.sig, spec, names.split()),
            query_grid(config.block_q), config.num_warps,
            tables="q" in names.split(),
        )  # fmt: skip

    def launch(self) -> Launch:
        with self.kernel as kernel:
            self.tile = QueryTile(kernel, self.config.block_q)
            self.keys = self.tile.keys
            self._start()
            with loop(blocks(self.keys, self.config.block_k)) as number:
                kernel.forget_offsets()
                self._key_tile(number * self.config.block_k)
            self._finish()
        return kernel.launch()

    def _squares(self, name: str, first) -> Rows:
        """Columns first .. of the rows of this head of S or P."""
        tile = self.tile
        return Rows(
            self.kernel.buffers[name], self.config.block_k,
            lambda row, column: (*tile.statistic(row), first + column),
        )  # fmt: skip

    def _row(self, m: int, half: int):
        return self.kernel.warp * self.warp_rows + m * 16 + half * 8 + self.kernel.lane // 4

    def _fragments(self, tile: SharedTile, words: Callable, m_tiles: int) -> Callable:
        """a_of for ``gemm``: the warp's rows of ``tile``."""

        def a_of(step):
            for m in range(m_tiles):
                row = self.kernel.warp * self.warp_rows + m * 16
                self.product.load_a(words(m), tile, 0, row, step)
            return [words(m) for m in range(m_tiles)]

        return a_of

    def _stage(self, acc: Accumulator, target: SharedTile) -> None:
        """The warp's accumulators into a shared tile, rounded."""
        for m in range(acc.m_tiles):
            for half in range(2):
                for n in range(acc.n_tiles):
                    pair = (acc.registers[m, n, 2 * half + odd] for odd in range(2))
                    place = (self._row(m, half), acc.column(n, 0))
                    self.product.store_pair(target, *place, *pair)

    def _start(self) -> None: ...

    def _key_tile(self, first) -> None: ...

    def _finish(self) -> None: ...


class _Scores(_Tiles):
    """S: a block holds its rows of Q and walks over the keys."""

    def __init__(self, spec: AttentionSpec, config: StandardConfig, symbol: str):
        super().__init__(spec, config, symbol, "q k s")
        self.scores = Scores(self.sig, CudaMath())

    def _start(self) -> None:
        kernel, config, tile = self.kernel, self.config, self.tile
        depth = round_up(self.spec.head_dim, 16)
        self.q_tile = shared_tile(kernel, config.block_q, depth, self.spec.dtype)
        self.k_tile = shared_tile(kernel, config.block_k, depth, self.spec.dtype)
        self.staged = shared_tile(kernel, config.block_q, config.block_k, self.spec.dtype)
        self.s = accumulator(kernel, self.warp_rows, config.block_k)
        self.words = fragment(kernel, self.product, self.s.m_tiles)
        seen = visibility(kernel.sig, (tile.rows, tile.keys))
        visits = seen.keys(tile.first, tile.first + config.block_q, config.block_k)
        self.visits = held(kernel, visits, "full_low", "full_high")
        self.bound = block_scores(kernel, self.scores, tile, tile.head)
        load_rows(kernel, self.q_tile, 0, tile.query_rows("q"), tile.first, tile.rows)

    def _key_tile(self, first) -> None:
        kernel, tile, s = self.kernel, self.tile, self.s
        load_rows(kernel, self.k_tile, 0, tile.key_rows("k"), first, self.keys)
        commit()
        wait()
        barrier()
        s.zero()
        gemm(
            s, self.product, self.q_tile.columns // self.product.step,
            self._fragments(self.q_tile, self.words, s.m_tiles),
            lambda b, step, pair: self.product.load_b(b, self.k_tile, 0, pair * 16, step),
        )  # fmt: skip
        masked_scores(
            self.bound, s, self.visits.is_boundary(first),
            lambda m, half: tile.first + self._row(m, half),
            lambda n, odd: first + s.column(n, odd),
        )  # fmt: skip
        self._stage(s, self.staged)
        barrier()
        store_rows(kernel, self.staged, self._squares("s", first), tile.first, tile.rows)

    def _finish(self) -> None:
        wait()


class _Output(_Tiles):
    """O: a block walks over its rows of P and over V."""

    def __init__(self, spec: AttentionSpec, config: StandardConfig, symbol: str):
        super().__init__(spec, config, symbol, "v p out")

    def _start(self) -> None:
        kernel, config, dtype = self.kernel, self.config, self.spec.dtype
        depth_v = round_up(self.spec.head_dim_v, 16)
        self.p_tile = shared_tile(kernel, config.block_q, config.block_k, dtype)
        self.v_tile = shared_tile(kernel, config.block_k, depth_v, dtype)
        self.out = accumulator(kernel, self.warp_rows, depth_v)
        self.words = fragment(kernel, self.product, self.out.m_tiles)
        self.out.zero()

    def _key_tile(self, first) -> None:
        kernel, tile, product = self.kernel, self.tile, self.product
        load_rows(kernel, self.p_tile, 0, self._squares("p", first), tile.first, tile.rows)
        load_rows(kernel, self.v_tile, 0, tile.key_rows("v"), first, self.keys)
        commit()
        wait()
        barrier()
        gemm(
            self.out, product, self.config.block_k // product.step,
            self._fragments(self.p_tile, self.words, self.out.m_tiles),
            lambda b, step, pair: product.load_b_rows(
                b, self.v_tile, 0, step * product.step, pair
            ),
        )  # fmt: skip
        barrier()

    def _finish(self) -> None:
        kernel, tile = self.kernel, self.tile
        with kernel.overlay():
            staged = shared_tile(kernel, self.config.block_q, self.v_tile.columns, self.spec.dtype)
        self._stage(self.out, staged)
        barrier()
        store_rows(kernel, staged, tile.query_rows("out"), tile.first, tile.rows)
