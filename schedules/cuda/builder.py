"""A TIRx kernel under construction: parameters, threads, shared memory, registers, statements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as build

from ...definition.signature import SEQUENCES, Signature, View, declare
from .arch import WARP
from .program import Grid, Launch

if TYPE_CHECKING:
    from .hopper.tensor_maps import TensorMap

# What TVM calls buffers and variables that nobody named.
_UNNAMED = ("", "buffer", "v")


@dataclass(frozen=True)
class Tensor:
    """A parameter of a kernel: its public name, shape and strides, dtype."""

    name: str
    view: View
    dtype: str


class CudaKernel:
    """Context of one kernel: statements made inside it become its body.

    block: the block's number; thread, warp, lane: int32. Unrolling is Python's: a loop written as
    ``for`` gives straight code, so that registers are only ever indexed by constants (a register
    array indexed by a variable would live in local memory).
    """

    def __init__(
        self,
        symbol: str,
        sig: Signature,
        tensors: Sequence[Tensor],
        grid: Grid,
        num_warps: int,
        *,
        tables: bool = False,
        min_blocks: int = 0,
        tensor_maps: Sequence[TensorMap] = (),
    ):
        """tensor_maps: what the launcher makes of arguments in each call; ``maps`` has them, by
        the arguments' names."""
        self.symbol, self.sig, self.grid, self.num_warps = symbol, sig, grid, num_warps
        self.tensors, self.min_blocks = tensors, min_blocks
        self.tensor_maps = tuple(tensor_maps)
        # Parameters after the tensors: what says where entries lie, then captured tables.
        self._own = [*sig.spans.values(), *(sig.tables if tables else ())]
        self._has_tables = tables
        self.buffers: dict[str, tirx.Buffer] = {}
        self._builder, self._func = IRBuilder(), build.prim_func()
        self._attributes: list = []
        self._offsets: dict[tuple, tirx.Expr] = {}

    def __enter__(self) -> CudaKernel:
        self._builder.__enter__()
        self._func.__enter__()
        build.func_name(self.symbol)
        kind = {SEQUENCES: self.sig.spec.sequences} if self.sig.spans else {}
        build.func_attr({"global_symbol": self.symbol, "tirx.noalias": True, **kind})
        for tensor in self.tensors:
            self.buffers[tensor.name] = _declare(tensor)
        for own in self._own:
            build.arg(own.name, own)
        for name, number in self.sig.numbers.items():
            build.arg(name, number)
        self.maps = {m.tensor: m.encode(self.buffers[m.tensor]) for m in self.tensor_maps}
        build.device_entry()
        if self._has_tables:
            self.sig.tables = tuple(map(_readable, self.sig.tables))
        if self.min_blocks:
            self._enter_attribute("tirx.launch_bounds_min_blocks_per_sm", self.min_blocks)
        blocks = self.grid(self.sig.sizes)
        ids = build.cta_id([tirx.Cast("int32", extent) for extent in blocks])
        self.block = ids[0]
        self.thread = build.thread_id([self.num_warps * WARP])
        self.warp = build.warp_id([self.num_warps])
        self.lane = build.lane_id([WARP])
        name_registers(self)
        self._pool = T.SMEMPool()
        return self

    def __exit__(self, *error) -> None:
        if error[0] is None:
            self._pool.commit()
        for frame in reversed(self._attributes):
            frame.__exit__(*error)
        self._func.__exit__(*error)
        self._builder.__exit__(*error)

    def launch(self) -> Launch:
        """The finished kernel."""
        names = [tensor.name for tensor in (*self.tensors, *self._own)]
        return Launch(
            self._builder.get(), (*names, *self.sig.numbers), self.grid,
            self.num_warps * WARP, self._pool.max_offset, tensor_maps=self.tensor_maps,
        )  # fmt: skip

    def shared(
        self, shape: Sequence[int], dtype: str, name: str = "", align: int = 128
    ) -> tirx.Buffer:
        """A tile in shared memory, aligned to the 128 bytes that all banks serve at once.

        name: in the generated code, for a tile that is no attribute (``name_registers``).
        """
        buffer = self._pool.alloc(tuple(shape), dtype, align=align)
        return IRBuilder.name(name, buffer) if name else buffer

    def registers(self, shape: Sequence[int], dtype: str) -> tirx.Buffer:
        """An array of registers of this thread, to be indexed by constants."""
        return T.alloc_local(tuple(shape), dtype)

    def kept_offset(self, key: tuple, value, once: bool = False):
        """The register for ``key``, made of ``value`` where it is new.

        value: an offset in shared memory that differs by thread, uint32. once: a new one is not
        kept, since what is made inside a statement cannot be read outside.
        """
        if key in self._offsets:
            return self._offsets[key]
        register = self.scalar(value, "uint32")
        if not once:
            self._offsets[key] = register
        return register

    def forget_offsets(self) -> None:
        """Let the compiler think that they have changed (at the start of a loop's body).

        It would else compute every address made of them once, before the loop, and run out of
        registers; one xor an address in the loop costs less.
        """
        for register in self._offsets.values():
            forget(register)

    @contextmanager
    def overlay(self) -> Iterator[None]:
        """Shared memory from the start again: tiles made here replace those made before."""
        end, self._pool.offset = self._pool.offset, 0
        yield
        self._pool.offset = max(end, self._pool.offset)

    def scalar(self, value, dtype: str = "int32", name: str = ""):
        """A register that holds ``value``: its expression is not repeated at every use.

        name: as of ``shared``.
        """
        held = self.registers((1,), dtype)
        if name:
            IRBuilder.name(name, held)
        store(held, (0,), value)
        return held[0]

    def _enter_attribute(self, key: str, value) -> None:
        """An attribute of the rest of the kernel."""
        self._attributes.append(build.attr({key: value}))
        self._attributes[-1].__enter__()

    @property
    def softmax_scale(self):
        """The factor of scores, a number of every call; float32."""
        return self.sig.numbers["softmax_scale"]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.num_warps * WARP


def _declare(tensor: Tensor) -> tirx.Buffer:
    view = tensor.view
    return build.arg(tensor.name, declare(tensor.name, view.shape, tensor.dtype, view.strides))


@dataclass(frozen=True)
class _Number:
    """A captured table without dimensions, of which TIRx has no way to read: a view of one."""

    view: tirx.Buffer
    shape = ()

    @property
    def dtype(self) -> str:
        return self.view.dtype

    def __getitem__(self, index: tuple):
        return self.view[0]


def _readable(table: tirx.Buffer) -> tirx.Buffer | _Number:
    """A parameter as the kernel's body reads it."""
    return table if table.shape else _Number(T.decl_buffer((1,), table.dtype, data=table.data))


def opaque(value):
    """``value``, int64 or uint32, of which the compiler knows nothing any more."""
    dtype = value.ty.dtype
    kind, letter = {"int64": ("long long", "l"), "uint32": ("unsigned", "r")}[dtype]
    name = f"tvm_flash_opaque_{dtype}"
    source = (
        f"__device__ __forceinline__ {kind} {name}({kind} x)"
        f' {{ asm volatile("" : "+{letter}"(x)); return x; }}'
    )
    return T.cuda.func_call(name, value, source_code=source, return_type=dtype)


def name_registers(owner) -> None:
    """Name each register and tile that ``owner`` keeps in an attribute after the attribute.

    The generated code then reads as the code that wrote it: what is ``self.k_tile`` here is
    ``k_tile`` there. Names change nothing that is computed; what has one already keeps it.
    """
    for name, value in vars(owner).items():
        buffer = _buffer_of(value)
        if buffer is not None and buffer.name in _UNNAMED:
            IRBuilder.name(name.strip("_"), buffer)


def _buffer_of(value) -> tirx.Buffer | None:
    """The buffer behind an attribute, or None: of a tile, of an accumulator, of a scalar."""
    value = getattr(value, "registers", value)  # Accumulator.registers
    value = getattr(value, "buffer", value)  # SharedTile.buffer
    value = getattr(value, "source", value)  # the element that CudaKernel.scalar gives
    return value if isinstance(value, tirx.Var) else None


def store(buffer: tirx.Buffer, index: Sequence, value) -> None:
    """buffer[index] = value."""
    build.buffer_store(buffer, value, list(index))


def typed(value, dtype: str):
    """``value``, an int or an expression, as ``dtype``."""
    return tirx.const(value, dtype) if isinstance(value, int) else tirx.Cast(dtype, value)


def assign(register, value) -> None:
    """Give a register of ``CudaKernel.scalar`` another value."""
    store(register.source, register.indices, value)


def forget(register) -> None:
    """Let the compiler think that a 32-bit register has changed: it keeps nothing made of it."""
    kind = register.source.dtype
    assign(register, tirx.reinterpret(kind, opaque(tirx.reinterpret("uint32", register))))


def emit(call) -> None:
    """A call for its effect."""
    build.evaluate(call)


@contextmanager
def when(condition) -> Iterator[None]:
    """Statements under a condition."""
    with build.If(condition), build.Then():
        yield


def if_else(condition, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    """The statements of ``then`` where the condition holds, those of ``otherwise`` where not."""
    with build.If(condition):
        with build.Then():
            then()
        with build.Else():
            otherwise()


@contextmanager
def loop(extent, name: str = "i") -> Iterator[tirx.Var]:
    """A loop that is not unrolled; gives its counter from 0 on."""
    with build.serial(extent) as counter:
        yield IRBuilder.name(name, counter)


@contextmanager
def loop_while(condition) -> Iterator[None]:
    """A loop that is not unrolled, of as many rounds as begin with the condition."""
    with build.While(condition):
        yield


def leave_unless(condition) -> None:
    """End this thread here where the condition does not hold."""
    with when(tirx.Not(condition)):
        emit(T.thread_return())


def barrier() -> None:
    """All threads of the block meet; shared memory is visible among them (bar.sync)."""
    emit(T.cuda.cta_sync())


def warp_barrier() -> None:
    """The threads of a warp meet (bar.warp.sync)."""
    emit(T.cuda.warp_sync())
