"""Launch arguments to parameter bytes."""

import struct

import numpy as np

from .errors import LaunchError
from .memory import Buffer

FORMATS = {
    "u8": "B", "s8": "b", "b8": "B", "u16": "H", "s16": "h", "b16": "H", "u32": "I", "s32": "i",
    "b32": "I", "u64": "Q", "s64": "q", "b64": "Q", "f32": "f", "f64": "d",
}  # fmt: skip


def pack(kernel, args):
    """The parameter block of a launch as uint8; raises LaunchError where args do not fit."""
    if len(args) != len(kernel.params):
        names = [f"{p.name}: {p.type}" for p in kernel.params]
        raise LaunchError(f"{kernel.name} takes {len(names)} arguments {names}, got {len(args)}")
    size = max((p.offset + p.size for p in kernel.params), default=0)
    block = np.zeros(-(-size // 128) * 128 + 128, np.uint8)
    for parameter, value in zip(kernel.params, args, strict=True):
        data = _bytes(parameter, value)
        if len(data) != parameter.size:
            raise LaunchError(
                f"{kernel.name}: {parameter.name} takes {parameter.size} bytes, got {len(data)}"
            )
        block[parameter.offset : parameter.offset + len(data)] = np.frombuffer(data, np.uint8)
    return block


def _bytes(parameter, value):
    if hasattr(value, "to_bytes") and not isinstance(value, (int, np.integer)):
        return value.to_bytes()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, Buffer):
        value = value.address
    code = FORMATS.get(parameter.type)
    if code is None:
        raise LaunchError(f"{parameter.name} is a structure: pass bytes, got {value!r}")
    if code in "fd":
        return struct.pack("<" + code, float(value))
    if isinstance(value, (float, np.floating)) or not hasattr(value, "__int__"):
        raise LaunchError(f"{parameter.name} is {parameter.type}: pass an integer, got {value!r}")
    return (int(value) % (1 << 8 * parameter.size)).to_bytes(parameter.size, "little")
