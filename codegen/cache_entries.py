"""What the disk cache holds, and how it is taken out again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..artifact.library import MANIFEST
from .cache import trusted_cache_dir
from .file_lock import locked

# Names of kernels, and of what ``cache.content`` keeps.
_KERNEL, _PART = re.compile(r".+-[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}(\.(?!lock)\w+)?")


class Entry(NamedTuple):
    """A kernel (a folder), or a part of one: a plan, PTX or machine code (a file).

    size: bytes. used: when it was last read or written, in seconds since the epoch; filesystems
    keep the day of reading at best.
    """

    path: Path
    is_kernel: bool
    size: int
    used: float

    @property
    def name(self) -> str:
        """Its name in the cache folder: a kernel's, or with its folder a part's."""
        return str(self.path.relative_to(trusted_cache_dir()))


def entries() -> list[Entry]:
    """All entries, the one used last first. BuildError for a folder that is not safe."""
    return sorted(_found(trusted_cache_dir()), key=lambda entry: entry.used, reverse=True)


def remove(entry: Entry) -> bool:
    """Take ``entry`` out, unless somebody makes it just now; whether it was.

    Processes that have loaded it keep what they have. OSError where it cannot be deleted.
    """
    try:
        # Its lock file stays: a process may be waiting for it.
        with locked(entry.path.with_name(f"{entry.path.name}.lock"), wait=False):
            if entry.is_kernel:
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True


def _found(folder: Path) -> Iterator[Entry]:
    """What the cache wrote in ``folder`` and the folders in it: all else is somebody's own."""
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if path.is_symlink() or path.name.startswith("."):
                continue
            if path.is_file():
                if _PART.fullmatch(path.name):
                    yield _entry(path, [path])
            elif _KERNEL.fullmatch(path.name) and (path / MANIFEST).is_file():
                yield _entry(path, [*path.iterdir()])
            elif folder == trusted_cache_dir():
                yield from _found(path)


def _entry(path: Path, files: list[Path]) -> Entry:
    found = [file.lstat() for file in files]
    used = max((max(file.st_atime, file.st_mtime) for file in found), default=0.0)
    return Entry(path, path.is_dir(), sum(file.st_size for file in found), used)
