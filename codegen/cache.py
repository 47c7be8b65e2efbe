"""The disk cache: one directory per key, made once even when processes race for it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..artifact import verify
from ..errors import ArtifactError, BuildError

logger = logging.getLogger("tvm_flash")


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
    folder = cache_dir()
    path = folder / name
    if _usable(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not _usable(path):
                _discard(path)
                make(path)
    except OSError as error:
        raise BuildError(
            f"cannot write the cache directory {folder} ({error}); "
            "set TVM_FLASH_CACHE_DIR to one that can be written"
        ) from error
    return path


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
