"""Tensor maps: what a TMA copy knows of a tensor (the fields of cuTensorMapEncodeTiled)."""

import struct
from dataclasses import dataclass

import numpy as np

from .errors import LaunchError
from .memory import Buffer

MAGIC = b"PTX TMAP"
LAYOUT = struct.Struct("<8sQ8B5Q4Q5H5B")
SIZES = {
    "uint8": 1, "uint16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8, "float16": 2,
    "float32": 4, "float64": 8, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "tfloat32": 4,
}  # fmt: skip
NAMES = list(SIZES)
SWIZZLES = (0, 32, 64, 128)


@dataclass(frozen=True)
class TensorMap:
    """A tile-mode tensor map.

    buffer: Buffer or its address (16-byte aligned). dtype: a name of SIZES. shape: elements,
    fastest dimension first (1-5 of them). strides: bytes, of dimensions 1 and up (multiples of 16).
    box: elements of a tile, each at most 256. swizzle: 0, 32, 64 or 128 bytes. element_strides,
    interleave, l2: as the driver takes them; only unit strides and no interleave are interpreted.
    oob: 0 fills elements outside with zeros, 1 with NaN. Raises LaunchError where the driver would
    refuse."""

    buffer: object
    dtype: str
    shape: tuple
    strides: tuple
    box: tuple
    swizzle: int = 0
    interleave: int = 0
    l2: int = 0
    oob: int = 0
    element_strides: tuple = ()

    def __post_init__(self):
        reasons = list(self._refusals())
        if reasons:
            raise LaunchError("TensorMap: " + "; ".join(reasons))

    @property
    def address(self):
        """The virtual address of the tensor."""
        return self.buffer.address if isinstance(self.buffer, Buffer) else int(self.buffer)

    @property
    def itemsize(self):
        """Bytes of an element."""
        return SIZES[self.dtype]

    @property
    def box_bytes(self):
        """Bytes that one copy writes."""
        return int(np.prod(self.box)) * self.itemsize

    def _refusals(self):
        rank = len(self.shape)
        if self.dtype not in SIZES:
            yield f"dtype {self.dtype!r} is none of {', '.join(SIZES)}"
            return
        if not 1 <= rank <= 5 or len(self.box) != rank or len(self.strides) != rank - 1:
            yield "shape, box and strides must have n, n and n - 1 entries, n from 1 to 5"
            return
        if self.address % 16:
            yield f"address {self.address:#x} is not a multiple of 16"
        if any(s % 16 or not 0 < s < 1 << 40 for s in self.strides):
            yield f"strides {self.strides} must be multiples of 16 bytes below 2^40"
        if any(not 1 <= n <= 1 << 32 for n in self.shape):
            yield f"shape {self.shape} must be in 1..2^32"
        if any(not 1 <= n <= 256 for n in self.box):
            yield f"box {self.box} must be in 1..256"
        inner = self.box[0] * self.itemsize
        if inner % 16:
            yield f"the inner box is {inner} bytes, not a multiple of 16"
        if self.swizzle not in SWIZZLES or (self.swizzle and inner > self.swizzle):
            yield f"the inner box of {inner} bytes does not fit swizzle {self.swizzle}"
        if self.interleave or any(s != 1 for s in self.element_strides):
            yield "interleave and element strides are not interpreted"

    def to_bytes(self):
        """The 128 bytes that stand for the driver's opaque structure here."""

        def padded(values, count):
            return (*values, *([0] * (count - len(values))))

        flags = (
            NAMES.index(self.dtype), len(self.shape), SWIZZLES.index(self.swizzle),
            self.interleave, self.l2, self.oob, 0, 0,
        )  # fmt: skip
        packed = LAYOUT.pack(
            MAGIC, self.address, *flags, *padded(self.shape, 5), *padded(self.strides, 4),
            *padded(self.box, 5), *padded(self.element_strides, 5),
        )  # fmt: skip
        return packed.ljust(128, b"\0")

    @classmethod
    def from_bytes(cls, data):
        """The map that to_bytes wrote; raises LaunchError for other bytes."""
        magic, address, *rest = LAYOUT.unpack(bytes(data)[: LAYOUT.size])
        if magic != MAGIC:
            raise LaunchError("these 128 bytes are no tensor map of TensorMap.to_bytes")
        flags, shape, strides = rest[:8], rest[8:13], rest[13:17]
        box, steps, rank = rest[17:22], rest[22:27], flags[1]
        return cls(
            address, NAMES[flags[0]], tuple(shape[:rank]), tuple(strides[: rank - 1]),
            tuple(box[:rank]), SWIZZLES[flags[2]], flags[3], flags[4], flags[5],
            tuple(s for s in steps[:rank] if s),
        )  # fmt: skip

    def rows(self, coordinates):
        """(byte offsets of the tile's rows from the address, in-bounds rows as booleans, first
        valid byte and one past the last in a row), rows in the order of shared memory."""
        offsets, inside = np.zeros(1, np.int64), np.ones(1, bool)
        for axis in range(len(self.shape) - 1, 0, -1):
            at = coordinates[axis] + np.arange(self.box[axis])
            offsets = (offsets[:, None] + at * self.strides[axis - 1]).reshape(-1)
            fine = (at >= 0) & (at < self.shape[axis])
            inside = (inside[:, None] & fine).reshape(-1)
        start, size = coordinates[0], self.itemsize
        low, high = max(0, -start), max(min(self.box[0], self.shape[0] - start), 0)
        low = min(low, high)
        return offsets + start * size, inside, low * size, high * size


def swizzled(address, swizzle):
    """Shared addresses after the XOR of 16-byte chunk bits with row bits."""
    mask = {0: 0, 32: 0x10, 64: 0x30, 128: 0x70}[swizzle]
    return address ^ ((address >> 3) & mask)
