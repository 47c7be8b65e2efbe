"""The disk cache: a directory or file per key, made once even when processes race for it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..artifact import verify
from ..errors import ArtifactError, BuildError

logger = logging.getLogger("tvm_flash")

# Contents by the hash of what they are made from: PTX, machine code and objects of CUDA kernels.
_CONTENTS = "cuda"


def cache_dir() -> Path:
    """$TVM_FLASH_CACHE_DIR, else tvm_flash in the user's cache folder."""
    if chosen := os.environ.get("TVM_FLASH_CACHE_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tvm_flash"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm_flash"


def digest(parts: dict[str, Any]) -> str:
    """sha256 of ``parts``, which must be JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def entry(name: str, make: Callable[[Path], object]) -> Path:
    """The verified artifact called ``name``; ``make(path)`` writes it when it is not there.

    Look, lock, look again: of several processes that want it one makes it and the others wait. A
    corrupt entry is deleted, with a warning, and made again. Raises BuildError when the cache
    directory cannot be written.
    """
    path = cache_dir() / name
    if _usable(path):
        return path
    with _locked(path):
        if not _usable(path):
            _discard(path)
            make(path)
    return path


def content(name: str, make: Callable[[], bytes], folder: str = _CONTENTS) -> bytes:
    """The bytes called ``name``, a hash of what decides them; ``make()`` gives them the first time.

    Look, lock, look again, as ``entry``; a file that is cut off or changed is made again.
    """
    path = cache_dir() / folder / name
    kept = _read(path)
    if kept is not None:
        return kept
    with _locked(path):
        kept = _read(path)
        if kept is None:
            kept = make()
            _write(path, kept)
    return kept


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with ``path``, whose folder exists; BuildError when it cannot be written."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{path.name}.lock"):
            yield
    except OSError as error:
        raise BuildError(
            f"cannot write the cache directory {folder} ({error}); "
            "set TVM_FLASH_CACHE_DIR to one that can be written"
        ) from error


def _read(path: Path) -> bytes | None:
    """What ``_write`` wrote: a digest, a line end, the bytes."""
    try:
        stamp, _, kept = path.read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return kept if stamp == _stamp(kept) else None


def _write(path: Path, kept: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_bytes(_stamp(kept) + b"\n" + kept)
    temporary.replace(path)


def _stamp(kept: bytes) -> bytes:
    return hashlib.sha256(kept).hexdigest().encode()


def _usable(path: Path) -> bool:
    try:
        verify(path)
    except ArtifactError as error:
        logger.debug("not in the cache: %s", error)
        return False
    return True


def _discard(path: Path) -> None:
    if not os.path.lexists(path):
        return
    logger.warning("the cached kernel %s is corrupt: deleting it and building it again", path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
