"""Tensor maps: how a dense operand (B, S, H, D) looks to TMA, on the host and in a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import DataType, tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as build

from ....definition.arithmetic import int32
from ..builder import emit, typed

# Columns of a box: its rows are the 128 bytes within which TMA swizzles.
BOX_BYTES = 128
# As the driver numbers them (CUtensorMapSwizzle, CUtensorMapL2promotion).
_SWIZZLE_128B, _L2_128B = 3, 2
# A stride that means nothing, since its axis has one element, must still be one that TMA takes.
_ANY_STRIDE = 16

_LOAD = "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
_STORE = "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group"


@dataclass(frozen=True)
class TensorMap:
    """Boxes of ``rows`` rows x 128 bytes of one head of the argument ``tensor``.

    Axes are numbered as TMA does, the fastest first: column, head, row, entry. A box may reach past
    the last row or column: zeros are loaded there, and nothing is stored. In shared memory its rows
    lie 128 bytes apart, 16-byte chunks swizzled (``BoxTile``).
    """

    tensor: str
    rows: int

    @property
    def name(self) -> str:
        """The name of the kernel's parameter that it is."""
        return f"{self.tensor}_map"

    def box(self, element_bytes: int) -> tuple[int, int, int, int]:
        """Elements of a box along each axis."""
        return BOX_BYTES // element_bytes, 1, self.rows, 1

    def fields(self, shape: Sequence, strides: Sequence, element_bytes: int) -> tuple:
        """(extents, byte strides of axes 1 to 3) of a tensor of ``shape`` and element ``strides``.

        Ints, or expressions of a call. Packed rows, (total, H, D), are those of one entry.
        """
        *entries, rows, heads, columns = shape
        extents = (columns, heads, rows, *(entries or [1]))
        steps = (*strides[-2:-4:-1], *(strides[:1] if entries else [0]))
        return extents, tuple(
            _stride(step, extent, element_bytes)
            for step, extent in zip(steps, extents[1:], strict=True)
        )

    def encode(self, buffer: tirx.Buffer):
        """Host code that makes the map of ``buffer`` in each call; what kernels call it."""
        size = DataType(buffer.dtype).bits // 8
        extents, strides = self.fields(buffer.shape, buffer.strides, size)
        made = build.Bind(T.tvm_stack_alloca("tensormap", 1), T.handle("tensormap"))
        IRBuilder.name(self.name, made)
        emit(
            T.tensormap_encode_tiled(
                made, buffer.data, *extents, *strides, *self.box(size), 1, 1, 1, 1,
                descriptor_dtype=str(buffer.dtype), rank=4, interleave=0, swizzle=_SWIZZLE_128B,
                l2_promotion=_L2_128B, oob_fill=0,
            )
        )  # fmt: skip
        return made


def _stride(step, extent, element_bytes: int):
    """Bytes from an element to the next along an axis, which TMA wants above zero.

    A tensor that repeats its heads or entries has a step of zero: kernels then ask for the first
    (``repeated``).
    """
    if isinstance(step, int):
        return step * element_bytes if extent > 1 and step else _ANY_STRIDE
    extent, step = typed(extent, "int64"), typed(step, "int64")
    meaningless = tirx.Or(extent <= 1, step == 0)
    return tirx.Select(meaningless, tirx.const(_ANY_STRIDE, "int64"), step * element_bytes)


def repeated(index, step):
    """The coordinate of ``index`` on an axis with ``step``: 0 where all its elements are one."""
    return tirx.Select(step == 0, 0, index)


def box_place(buffer: tirx.Buffer, index: Sequence) -> tuple:
    """Where a box begins whose first element ``buffer`` has at ``index``: head, row and entry.

    index: (entry, row, head, column), or of packed rows without the entry.
    """
    *entries, row, head, _ = index
    steps = buffer.strides
    entry = repeated(entries[0], steps[0]) if entries else 0
    return repeated(head, steps[-2]), int32(row), entry


def load_box(tensor_map, target, place: Sequence, barrier) -> None:
    """Ask for a box; ``barrier`` counts its bytes. By one thread.

    target: its address in shared memory; place: its first (column, head, row, entry), int32.
    """
    emit(T.ptx[_LOAD](target, T.address_of(tensor_map), *place, barrier))


def store_box(tensor_map, source, place: Sequence) -> None:
    """Store a box from shared memory, in the thread's current bulk group; as ``load_box``."""
    emit(T.ptx[_STORE](T.address_of(tensor_map), *place, source))


def stores_read() -> None:
    """Close the bulk group and wait until its boxes have been read from shared memory."""
    emit(T.ptx.cp.async_.bulk.commit_group())
    emit(T.ptx.cp.async_.bulk.wait_group.read(0))


def proxy_fence() -> None:
    """What threads wrote to shared memory is there for TMA and wgmma (fence.proxy.async)."""
    emit(T.ptx.fence.proxy.async_.shared__cta())
