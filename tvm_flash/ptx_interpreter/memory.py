"""Device memory: buffers at virtual addresses, with a record of which bytes were written."""

from bisect import bisect_right

import numpy as np

from .errors import LaunchError, Uninitialised

FIRST_ADDRESS = 0x1000_0000_0000
GUARD = 0x10000
# A gather moves opaque items; complex128 is numpy's only plain dtype of 16 bytes.
RAW = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
ALL_BYTES = {n: np.frombuffer(b"\1" * n, RAW[n])[0] for n in (1, 2, 4, 8)}


class Buffer:
    """Bytes of device memory: .name, .address, .nbytes."""

    def __init__(self, name, address, data, shape, dtype, state, writable):
        self.name, self.address, self.nbytes = name, address, data.nbytes
        self.writable, self.shape, self.dtype = writable, shape, dtype
        self.bytes = data
        self.base = np.uint64(address)
        self.initialised = state  # uint8 per byte, None when every byte is
        self.written = (
            state if state is not None else np.zeros(data.nbytes if writable else 0, "u1")
        )
        self._raw = {}

    def __int__(self):
        return self.address

    def numpy(self):
        """The contents as an array of the shape and dtype given (a view, live)."""
        if self.dtype is None:
            return self.bytes
        return self.bytes[: self._size()].view(self.dtype).reshape(self.shape)

    def _size(self):
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def unwritten(self):
        """(how many bytes no kernel ever wrote, offset of the first one or None)."""
        if not self.writable:
            return self.nbytes, 0
        missing = np.flatnonzero(self.written == 0)
        return len(missing), (int(missing[0]) if len(missing) else None)

    def written_mask(self):
        """Boolean per byte: written by a kernel."""
        return self.written != 0

    def expect_written(self, mask=None):
        """Raise InterpreterError unless every byte (or every byte of a boolean mask) is written."""
        missing = self.written == 0
        if mask is not None:
            missing &= np.asarray(mask, bool).reshape(-1)
        count = int(missing.sum())
        if count:
            first = int(np.flatnonzero(missing)[0])
            raise Uninitialised(
                f"buffer {self.name!r}: {count} of {self.nbytes} bytes were never written, first "
                f"at offset {first}. Look at the bounds of the kernel's stores."
            )

    def raw(self, size):
        """The bytes as items of 1, 2, 4, 8 or 16 bytes."""
        return self._view("data", self.bytes, size)

    def raw_state(self, size):
        """The initialised flags, one byte each, as items of `size` bytes."""
        return self._view("state", self.initialised, size)

    def raw_written(self, size):
        """The written flags as items of `size` bytes."""
        return self._view("written", self.written, size)

    def _view(self, which, array, size):
        key = which, size
        if key not in self._raw:
            whole = len(array) // size * size
            self._raw[key] = array[:whole].view(RAW[size])
        return self._raw[key]


class DeviceMemory:
    """The global memory that a sequence of launches shares."""

    def __init__(self):
        self.buffers = []
        self._starts = []
        self._next = FIRST_ADDRESS
        self.variables = {}

    def array(self, name, array, *, writable=False):
        """A copy of a host array, initialised. Kernels may write it only if `writable`."""
        array = np.ascontiguousarray(array)
        data = _aligned(array.nbytes)
        data[:] = array.reshape(-1).view(np.uint8)
        return self._place(name, data, array.shape, array.dtype, None, writable)

    def empty(self, name, shape, dtype):
        """An output: 0xFF bytes (NaN in every float format), uninitialised."""
        data, shape = self._sized(shape, dtype)
        data[:] = 0xFF
        state = _aligned(data.nbytes)
        return self._place(name, data, shape, dtype, state, True)

    def zeros(self, name, shape, dtype):
        """A zeroed buffer that counts as initialised and not yet written."""
        data, shape = self._sized(shape, dtype)
        return self._place(name, data, shape, dtype, None, True)

    def map(self, name, address, array, initialised=True, writable=False):
        """A host array of uint8 at the virtual `address`; writes go to the array.

        initialised: a boolean, or one boolean per byte."""
        if array.dtype != np.uint8 or array.ndim != 1 or not array.flags.c_contiguous:
            raise LaunchError(f"map({name!r}): give a contiguous 1-D array of uint8")
        if address % 16:
            raise LaunchError(f"map({name!r}): the address {address:#x} is no multiple of 16")
        if initialised is True:
            state = None
        else:
            state = _aligned(array.nbytes)
            state[:] = initialised
        return self._place(name, array, array.shape, np.uint8, state, writable, address)

    def remove(self, buffer):
        """Forget a buffer; an access to it is out of bounds from now on."""
        at = self.buffers.index(buffer)
        del self.buffers[at], self._starts[at]

    def _sized(self, shape, dtype):
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = int(np.prod(shape, dtype=np.int64))
        return _aligned(count * np.dtype(dtype).itemsize), shape

    def _place(self, name, data, shape, dtype, state, writable, address=None):
        if address is None:
            address = self._next
            self._next += -(-(data.nbytes + GUARD) // 4096) * 4096
        buffer = Buffer(name, address, data, shape, dtype, state, writable)
        at = bisect_right(self._starts, address)
        before = self.buffers[at - 1] if at else None
        after = self.buffers[at] if at < len(self.buffers) else None
        if (before and before.address + before.nbytes > address) or (
            after and address + buffer.nbytes > after.address
        ):
            raise LaunchError(f"buffer {name!r} at {address:#x} overlaps another one")
        self._starts.insert(at, address)
        self.buffers.insert(at, buffer)
        return buffer

    def find(self, address):
        """The buffer whose start is the last one at or before `address`, or None."""
        at = bisect_right(self._starts, address)
        return self.buffers[at - 1] if at else None

    def nearest(self, address):
        """A description of `address` relative to the closest buffer."""
        if not self.buffers:
            return f"address {address:#x} (device memory is empty)"

        def distance(b):
            return max(b.address - address, address - (b.address + b.nbytes - 1), 0)

        buffer = min(self.buffers, key=distance)
        offset = address - buffer.address
        return f"buffer {buffer.name!r} of {buffer.nbytes} bytes at offset {offset}"


def _aligned(nbytes):
    """Zeroed bytes whose host address is a multiple of 16, so that all views are aligned."""
    return np.zeros(-(-nbytes // 16), np.complex128).view(np.uint8)[:nbytes]
