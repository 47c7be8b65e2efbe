"""A block's part of the rows of a head of linear attention: what is brought of each chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import TIR, int32
from ...definition.linear import place
from ...problem.spec import AttentionSpec
from ...problem.work import Work
from .arch import CudaArch
from .builder import CudaKernel, assign, barrier, loop, name_registers, store, typed, when
from .copies import Copies
from .linear_config import LinearConfig
from .program import Grid, blocks
from .rows import RowCursor, Rows
from .shared_tile import shared_tile

# Numbers of rows, float32, by what they belong to.
QUERY_NUMBERS = ("q_extra", "out_weight")
KEY_NUMBERS = ("k_extra", "v_extra", "key_weight")


def linear_grid(tiles: int, less: int = 0) -> Grid:
    """A block for each part of the rows but the last ``less``, entry, head and tile of columns."""
    return lambda sizes: (_work(sizes, tiles, less).count, 1, 1)


def _work(sizes: Mapping[str, Any], tiles: int, less: int) -> Work:
    extents = {"part": sizes["splits"] - less, "entry": sizes["B"], "head": sizes["H"]}
    return Work({**extents, "tile": tiles}, arithmetic=TIR)


def chunks_of_part(rows, splits, chunk: int):
    """Chunks of a part of ``rows`` rows, int32."""
    return blocks(blocks(rows, chunk), splits)


def power(base, steps):
    """base^steps: float32, int32. 1 of no steps, whatever the base."""
    source = (
        "__device__ __forceinline__ float tvm_flash_power(float g, int n)"
        " { return n == 0 ? 1.0f : exp2f(log2f(g) * (float)n); }"
    )
    return T.cuda.func_call(
        "tvm_flash_power", base, steps, source_code=source, return_type="float32"
    )


class Walk:
    """The chunks of a block's part, one after the other, in the order that ``reverse`` says.

    part, entry, head, tile: the block's place; first_column: of V. rows: of the sequence; first:
    the chunk at hand begins there; stage: where its tiles lie. names: what is read, of "q", "k"
    and "v".
    """

    def __init__(
        self, kernel: CudaKernel, spec: AttentionSpec, config: LinearConfig, arch: CudaArch,
        names: str,
    ):  # fmt: skip
        self.kernel, self.spec, self.config, self.arch = kernel, spec, config, arch
        self._take_place(has_keys="k" in names)
        self._take_chunks(kernel.sig.seqlen_q if "q" in names else kernel.sig.seqlen_k)
        self._copies = Copies(kernel, asynchronous=arch.asynchronous_copy)
        self._make_tiles(names)
        name_registers(self)

    def _take_place(self, has_keys: bool) -> None:
        kernel, config = self.kernel, self.config
        sizes = {name: int32(kernel.sig.sizes[name]) for name in ("splits", "B", "H")}
        at = _work(sizes, config.tiles(self.spec), 0).place(kernel.block)
        self.part, self.entry = kernel.scalar(at["part"]), kernel.scalar(at["entry"])
        self.head, self.tile = kernel.scalar(at["head"]), kernel.scalar(at["tile"])
        if has_keys:
            group = tirx.truncdiv(sizes["H"], int32(kernel.sig.kv_heads))
            self.kv_head = kernel.scalar(tirx.truncdiv(self.head, group))
        self.first_column = self.tile * config.columns

    def _take_chunks(self, rows) -> None:
        kernel, chunk = self.kernel, self.config.chunk
        self.rows = int32(rows)
        run = chunks_of_part(self.rows, int32(kernel.sig.sizes["splits"]), chunk)
        run = kernel.scalar(run)
        self.first = kernel.scalar(self.part * run * chunk)
        left = tirx.max(self.rows - self.first, 0)
        self.count = kernel.scalar(tirx.min(run, blocks(left, chunk)))
        self.stage = kernel.scalar(0) if self.config.stages == 2 else 0

    def _make_tiles(self, names: str) -> None:
        kernel, spec, config = self.kernel, self.spec, self.config
        depth, widths = config.depth(spec), {"v": config.columns}
        self.tiles = {
            name: shared_tile(
                kernel, config.chunk, widths.get(name, depth), spec.dtype, config.stages
            )
            for name in names
        }
        name_registers(SimpleNamespace(**{f"{name}_tile": x for name, x in self.tiles.items()}))
        self._numbers = (*QUERY_NUMBERS * ("q" in names), *KEY_NUMBERS * ("k" in names))
        self.numbers = kernel.shared((config.stages, len(self._numbers), config.chunk), "float32")
        self.powers = kernel.shared((config.chunk + 1,), "float32") if spec.causal else None

    def start(self) -> None:
        """Ask for the first chunk; fill the table of powers, to be read after a barrier."""
        kernel, chunk = self.kernel, self.config.chunk
        self._asked = kernel.scalar(self.first, name="asked")
        self._cursors = [
            RowCursor(kernel, tile, self.rows_of(name), self.first, chunk)
            for name, tile in self.tiles.items()
        ]
        self._ask(0)
        if self.powers is not None:
            base = kernel.scalar(kernel.buffers["decay"][self.head], "float32", name="base")
            for start in range(0, chunk + 1, kernel.threads):
                steps = kernel.thread + start
                with when(steps <= chunk):
                    store(self.powers, (steps,), power(base, steps))

    @contextmanager
    def chunks(self) -> Iterator[None]:
        """A loop over the chunks; inside, the tiles of the one at hand have landed."""
        with loop(self.count, "chunk"):
            self.kernel.forget_offsets()
            self._copies.landed()
            if self.config.stages == 2:
                self._ask(1 - self.stage)
            yield
            if self.config.stages == 2:
                assign(self.stage, 1 - self.stage)
            assign(self.first, self.first + self.config.chunk)

    def done_reading(self) -> None:
        """All threads of the block meet: nobody reads the tiles of the chunk at hand any more."""
        barrier()
        if self.config.stages == 1:
            self._ask(0)

    def finish(self) -> None:
        """All threads meet, and nothing is on its way: what is written before may be read."""
        self._copies.landed()

    def rows_of(self, name: str) -> Rows:
        """The rows of this head in "q", "k", "v" or "out", of "v" and "out" the tile's columns."""
        head = self.kv_head if name in "kv" else self.head
        is_tiled = name in ("v", "out")
        first = self.first_column if is_tiled else 0
        width = self.spec.head_dim_v if is_tiled else self.spec.head_dim
        is_cut = is_tiled and width % self.config.columns and self.config.tiles(self.spec) > 1
        return Rows(
            self.kernel.buffers[name], width,
            lambda row, column: (self.entry, self.place(row), head, first + column),
            left=width - first if is_cut else None,
        )  # fmt: skip

    def place(self, row):
        """Where the row lies that is walked after ``row`` others."""
        return place(self.kernel.sig, typed(row, "int32"), self.rows)

    def number(self, name: str, row):
        """A number of a row of the chunk at hand."""
        return self.numbers[self.stage, self._numbers.index(name), row]

    def decayed(self, value, steps):
        """value g^steps, of at most as many steps as a chunk has rows."""
        return value if self.powers is None else value * self.powers[steps]

    def _ask(self, stage) -> None:
        """Ask for the next chunk that was not asked for: rows, and the numbers beside them."""
        kernel, chunk = self.kernel, self.config.chunk
        left = kernel.scalar(self.rows - self._asked)
        for cursor in self._cursors:
            self._copies.tile(cursor, stage, left)
        with when(kernel.thread < chunk) if chunk < kernel.threads else nullcontext():
            row = self.place(self._asked + kernel.thread)
            for n, name in enumerate(self._numbers):
                head = self.head if name in QUERY_NUMBERS else self.kv_head
                origin = kernel.buffers[name].ptr_to([self.entry, head, row])
                target = self.numbers.ptr_to([stage, n, kernel.thread])
                self._copies.piece(target, origin, 4, kernel.thread < left)
        self._copies.commit()
        assign(self._asked, self._asked + chunk)
