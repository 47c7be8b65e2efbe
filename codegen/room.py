"""Room on disks and in memory: what is missing becomes a BuildError and not the process's end.

LLVM calls abort() when it cannot write a file or gets no memory, so that its needs are looked at
before it starts, and its output goes to memory first.
"""

from __future__ import annotations

import mmap
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BuildError, remedy_for

# Where a file in memory has a path that LLVM can open.
_OPEN_FILES = "/proc/self/fd"

# Address space that lowering a kernel and LLVM take at once. Measured: 55 MB for the first kernel
# of a process, then up to 20 MB, whatever the head dimension; a thread's first malloc maps 64 MB.
COMPILING = 128 << 20


class _Compiling:
    """How many kernels are being compiled; a forked child begins with none."""

    def __init__(self):
        self.changed = threading.Condition()
        self.running = 0


_compiling = _Compiling()
os.register_at_fork(after_in_child=_compiling.__init__)


def require_memory(nbytes: int, what: str) -> None:
    """BuildError unless this process may map ``nbytes`` more (RLIMIT_AS, overcommit)."""
    try:
        mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, ValueError) as error:
        raise BuildError(
            f"{what} needs {nbytes >> 20} MiB of memory, which this process cannot get ({error}); "
            "free some or raise its limit (ulimit -v)"
        ) from error


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """Room for one more compilation beside those that run; waits for them where it is short."""
    with _compiling.changed:
        while True:
            try:
                require_memory((_compiling.running + 1) * COMPILING, what)
                break
            except BuildError:
                if not _compiling.running:
                    raise
            _compiling.changed.wait()
        _compiling.running += 1
    try:
        yield
    finally:
        with _compiling.changed:
            _compiling.running -= 1
            _compiling.changed.notify_all()


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Failed writes (a full disk, a limit, no permission) and lack of memory as BuildErrors."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise failure(f"{what} failed: {str(error) or 'out of memory'}", error) from error


def failure(what: str, error: BaseException) -> BuildError:
    """``what`` as a BuildError, with what to do where that is known of ``error``."""
    return BuildError("; ".join(filter(None, (what, remedy_for(error)))))


@contextmanager
def scratch_folder(what: str) -> Iterator[Path]:
    """A temporary folder; BuildError says that ``what`` failed when it or a file has no room."""
    with writing(what), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def written_bytes(write: Callable[[str], object]) -> bytes:
    """What ``write(path)`` writes, kept in memory: no disk can be full.

    Without files in memory (not Linux, no /proc, a sandbox) ``path`` is on disk.
    """
    try:
        descriptor = os.memfd_create("tvm_flash")
    except (AttributeError, OSError) as error:
        if remedy_for(error):  # a file on disk would need a descriptor too
            raise
        descriptor = None
    if descriptor is None or not os.path.isdir(_OPEN_FILES):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "written")
            write(str(path))
            return path.read_bytes()
    with open(descriptor, "rb") as file:
        write(f"{_OPEN_FILES}/{descriptor}")
        return file.read()


def file_size_limit() -> int | None:
    """Bytes that a file of this process may have, in memory too (RLIMIT_FSIZE); None: any."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit
