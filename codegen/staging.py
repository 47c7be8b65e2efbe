"""An artifact is made in a scratch folder and put in its place in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import Lock

from ..artifact.library import MANIFEST, PTX
from ..errors import BuildError, remedy_for
from .file_lock import locked

LIBRARY = "kernels.so"

Progress = Callable[[int, int, str], None]

# In a scratch folder: held by its maker, so that nobody takes a build that lasts for a dead one.
_LOCK = "tvm_flash.lock"
_DEAD_AFTER_SECONDS = 24 * 3600

# How often another may get in between two steps of putting an artifact in its place.
_ATTEMPTS = 100
# EISDIR: shutil.move takes for a file what was gone when it looked, and is a folder again.
_OVERTAKEN = (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR)

# renameat2(2) of Linux and renamex_np(2) of macOS: two names change places.
_RENAME_EXCHANGE, _RENAME_SWAP, _AT_FDCWD = 2, 2, -100


@contextmanager
def publishing(path: Path, *, guarded: bool = False) -> Iterator[Path]:
    """An empty folder that becomes ``path`` when the block ends without an error.

    Its parent is scratch space. guarded: only this user may write to it, whatever the umask. Raises
    BuildError when something else than an artifact is there, or the place cannot be written.
    """
    try:
        _refuse_to_replace(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, f".{path.name}.")
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise _unwritable(path, error) from error
    owner = os.getpid()
    try:
        with locked(scratch / _LOCK):
            staging = scratch / "artifact"
            staging.mkdir()
            yield staging
            if os.getpid() != owner:
                return
            try:
                if guarded:
                    _guard(staging)
                _publish(staging, path)
            except OSError as error:
                raise _unwritable(path, error) from error
    finally:
        if os.getpid() == owner:  # not a child that was forked meanwhile
            shutil.rmtree(scratch, ignore_errors=True)


def _guard(folder: Path) -> None:
    for part in (folder, *folder.iterdir()):
        part.chmod(part.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))


def sweep(folder: Path, prefix: str = ".", *, marked: bool = True) -> None:
    """Delete scratch in ``folder``, named ``prefix`` and more, whose makers were killed long ago.

    marked: only folders with a lock in them, which a folder of the user's has not.
    """
    with suppress(OSError):  # a folder that may be written need not be one that may be listed
        for entry in list(folder.iterdir()):
            with suppress(OSError):  # another may be sweeping too, or still building
                if entry.name.startswith(prefix) and (not marked or (entry / _LOCK).is_file()):
                    _delete_if_old(entry)


def _delete_if_old(entry: Path) -> None:
    if time.time() - entry.lstat().st_mtime < _DEAD_AFTER_SECONDS:
        return
    if not stat.S_ISDIR(entry.lstat().st_mode):
        entry.unlink()
        return
    with locked(entry / _LOCK, wait=False):
        shutil.rmtree(entry)


def counting(total: int, progress: Progress | None) -> Callable[[str], None]:
    """A function that reports one more of ``total`` as done, one call at a time."""
    done = count(1)
    lock = Lock()

    def finished(symbol: str) -> None:
        with lock:
            number = next(done)
            if progress:
                progress(number, total, symbol)

    return finished


def _unwritable(path: Path, error: OSError) -> BuildError:
    remedy = remedy_for(error, "choose another path")
    return BuildError(f"path={str(path)!r} cannot be written ({error}); {remedy}")


def require_place(path: Path) -> None:
    """Raise BuildError unless an artifact can be put at ``path``: before hours of work, not after.

    The folder that it lies in is made.
    """
    _refuse_to_replace(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise _unwritable(path, error) from error


def _refuse_to_replace(path: Path) -> None:
    """Only an artifact, or nothing, may be at ``path``: a typing error must not cost a folder."""
    if not is_replaceable(path):
        raise BuildError(f"path={str(path)!r} exists and is not an artifact; choose another path")


def is_replaceable(path: Path) -> bool:
    """Whether ``path`` is an artifact, or nothing; asked once, since it may come and go."""
    try:
        return _is_artifact(path)
    except NotADirectoryError:  # a file, or below one
        return not os.path.lexists(path)
    except FileNotFoundError:
        return not path.is_symlink()


def _is_artifact(path: Path) -> bool:
    return {entry.name for entry in path.iterdir()} <= {MANIFEST, LIBRARY, PTX}


def _publish(staging: Path, path: Path) -> None:
    """Make ``staging`` the folder ``path``; what was there goes away with the scratch folder.

    Others may publish there at the same time: the last one stays, and none fails.
    """
    for attempt in range(_ATTEMPTS):
        try:
            if not os.path.lexists(path):
                staging.rename(path)
                return
            _exchange(staging, path)
            if staging.is_symlink() or (staging.is_dir() and _is_artifact(staging)):
                return
            _exchange(staging, path)
        except OSError as error:
            # Somebody was quicker: something is there, or not any more.
            if error.errno not in _OVERTAKEN or attempt == _ATTEMPTS - 1:
                raise
        _refuse_to_replace(path)


def _exchange(staging: Path, path: Path) -> None:
    """The two change places: in one step where the system can, else by way of a third name."""
    try:
        _exchange_in_one_step(staging, path)
    except NotImplementedError:
        aside = Path(tempfile.mkdtemp(dir=staging.parent), "replaced")
        # Not rename alone: a layered filesystem copies folders of a lower layer.
        shutil.move(path, aside)
        try:
            staging.rename(path)
        except OSError:
            with suppress(OSError):
                aside.rename(path)
            raise
        aside.rename(staging)


def _exchange_in_one_step(one: Path, other: Path) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, ctypes.c_uint(_RENAME_SWAP))
        else:
            exchange = ctypes.c_uint(_RENAME_EXCHANGE)
            failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], exchange)
    except AttributeError as error:  # an old C library
        raise NotImplementedError from error
    if failed:
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            raise FileNotFoundError(number, os.strerror(number), str(other))
        raise NotImplementedError(os.strerror(number))
