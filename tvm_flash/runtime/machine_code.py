"""Machine code of a library, mapped from the very bytes that were checked."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import tvm_ffi

try:
    import fcntl
    import resource
except ImportError:  # not Unix: no descriptors of memory either
    fcntl = resource = None  # type: ignore[assignment]

# dlopen knows libraries by name and answers a known name with what it has. A descriptor's number is
# used again, and so is the path of a library that was built anew: each copy gets a name of its own.
_number = count(1)


class CodeError(Exception):
    """A library that the dynamic linker refuses; the message is the linker's."""


@dataclass(frozen=True, eq=False)
class Code:
    """A mapped library: tvm_ffi's view of it, and its plain symbols."""

    module: tvm_ffi.Module
    symbols: ctypes.CDLL


# By sha256, for ever: pointers into the code are everywhere. The same bytes need no second copy.
_mapped: dict[str, Code] = {}


def mapped(data: bytes, sha256: str, name: str) -> Code:
    """The library whose bytes are ``data``, of this ``sha256``; raises CodeError.

    Lists of what is mapped, as /proc/self/maps, show ``name``.

    A copy of ours, and not the file: it may be exchanged, overwritten or cut off at any time, while
    we look at it or long after, and pages of code are read when they are first run.
    """
    if sha256 not in _mapped:
        _mapped[sha256] = _first_that_works(data, name)
    return _mapped[sha256]


def _is_cut_off(data: bytes) -> bool:
    """Whether an ELF file ends before its segments do: the linker would map what is not there."""
    if data[:6] != b"\x7fELF\x02\x01":
        return False  # not of 64 bits and this byte order: the linker says what it is
    try:
        (headers,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        places = range(headers, headers + size * count, size)
        segments = [struct.unpack_from("<8xQ16xQ", data, place) for place in places]
    except (struct.error, ValueError):
        return True
    return any(offset + length > len(data) for offset, length in segments)


def _first_that_works(data: bytes, name: str) -> Code:
    if _is_cut_off(data):
        raise CodeError("it is cut off")
    problems = []
    for copied in (_in_memory, _in_a_folder):
        try:
            with copied(data, name) as path:
                return Code(_load(path, "so"), ctypes.CDLL(path))
        except Exception as error:
            problems.append(str(error))
    raise CodeError(", ".join(dict.fromkeys(problems)))


# Not tvm_ffi.load_module: it goes by the end of the file's name, which a descriptor has not.
_load = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")


@contextmanager
def _in_memory(data: bytes, name: str) -> Iterator[str]:
    """Linux: needs no folder that may be written, nor one whose files may be run.

    The linker keeps the path, and who prints a stack (libbacktrace in tvm_ffi) opens it again and
    maps what it finds: where a descriptor's number is used again, another file, and an empty one
    ends the process. So it is a number that nobody gets before all lower ones are taken.
    """
    descriptor = _renumbered(os.memfd_create(name[:60], os.MFD_CLOEXEC))
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        # The same place, spelled anew for each: binary digits of "/" and "/.".
        spelled = f"{next(_number):b}".replace("1", "/.").replace("0", "/")
        yield f"/proc/self/fd{spelled}/{descriptor}"
    finally:
        os.close(descriptor)


def _renumbered(descriptor: int) -> int:
    """``descriptor`` moved to the upper half of those that this process may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if limit == resource.RLIM_INFINITY else min(limit, _MOST_DESCRIPTORS)
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, most // 2)
    finally:
        os.close(descriptor)


# A table of descriptors is as long as its highest number.
_MOST_DESCRIPTORS = 1 << 14


@contextmanager
def _in_a_folder(data: bytes, name: str) -> Iterator[str]:
    """Elsewhere, and where memory may hold no code: a folder that only this user may enter."""
    with tempfile.TemporaryDirectory(prefix="tvm_flash_") as folder:
        path = Path(folder, f"{name[:60]}.{next(_number)}.so")
        path.write_bytes(data)
        yield str(path)
