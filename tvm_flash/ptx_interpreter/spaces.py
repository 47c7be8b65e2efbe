"""Windows of the generic address space (PTX ISA 5.1), and the bytes behind them."""

import numpy as np

from .memory import RAW

WINDOW = 1 << 40
SHARED_BASE = 1 << 40
LOCAL_BASE = 2 << 40
PARAM_BASE = 3 << 40
CONST_BASE = 4 << 40
# Hopper reserves the first KiB; starting there also makes a null shared pointer an error.
SHARED_ORIGIN = 1024
UNWRITTEN, VALID, IN_FLIGHT = 0, 1, 2


class BlockBytes:
    """One array of bytes for all blocks (or lanes) of a chunk, `stride` bytes each, with states."""

    def __init__(self, count, size):
        self.size = size
        self.stride = max(-(-size // 128) * 128, 128)
        total = count * self.stride // 16
        self.bytes = np.zeros(total, np.complex128).view(np.uint8)
        self.state = np.zeros(total, np.complex128).view(np.uint8)
        self.raw = {n: self.bytes.view(dtype) for n, dtype in RAW.items()}
        self.raw_state = {n: self.state.view(dtype) for n, dtype in RAW.items()}


def pattern(value, size):
    """A state byte repeated to an item of `size` bytes."""
    return np.frombuffer(bytes([value]) * size, RAW[size])[0]


STATE = {(value, n): pattern(value, n) for value in (UNWRITTEN, VALID, IN_FLIGHT) for n in RAW}


def all_state(items, value):
    """Whether every byte of state items equals `value`."""
    if items.dtype == np.complex128:
        items = items.view(np.uint64)
    size = items.dtype.itemsize
    return bool((items == STATE[value, size]).all())


def state_bytes(items):
    """State items as uint8 [n, size]."""
    return items.view(np.uint8).reshape(len(items), -1)
