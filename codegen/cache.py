"""The disk cache: a directory or file per key, made once even when processes race for it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ..artifact.folder import owner_problem, read_file, trust_problems
from ..artifact.library import LIBRARY_LIMIT, refuse, verify
from ..errors import ArtifactError, BuildError, remedy_for
from .file_lock import locked
from .staging import is_replaceable, sweep

logger = logging.getLogger("tvm_flash")

T = TypeVar("T")

# Contents by the hash of what they are made from: PTX, machine code and objects of CUDA kernels.
_CONTENTS = "cuda"

# Folders that could not be written, of which was told.
_unkept: set[Path] = set()


def cache_dir() -> Path:
    """$TVM_FLASH_CACHE_DIR, else tvm_flash in the user's cache folder; it need not exist.

    Raises BuildError where the user has no home folder.
    """
    try:
        if chosen := os.environ.get("TVM_FLASH_CACHE_DIR"):
            return Path(chosen).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "tvm_flash"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm_flash"
    except RuntimeError as error:
        raise _refusal(f"no folder for compiled kernels ({error})") from error


def trusted_cache_dir(inside: str = "") -> Path:
    """``cache_dir``, or a folder in it.

    BuildError when it may not be searched, or others may have written to it.
    """
    if inside:
        trusted_cache_dir()
    folder = cache_dir() / inside
    try:
        problems = trust_problems(folder)
    except FileNotFoundError:
        return folder  # made when something is kept, for this user alone
    except OSError as error:
        problem = f"cannot use the cache directory {folder} ({error.strerror})"
        raise _refusal(problem, error) from error
    if problems:
        raise _refusal(f"the cache directory {folder} is not safe: {problems[0]}")
    return folder


def digest(parts: dict[str, Any]) -> str:
    """sha256 of ``parts``, which must be JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def verified(path: Path) -> Path:
    """``path``, once its library is known to be what was built; raises ArtifactError."""
    verify(path)
    return path


def entry(name: str, make: Callable[[Path], object], use: Callable[[Path], T] = verified) -> T:
    """What ``use(path)`` gives of the artifact ``name``, by default its path once it is verified.

    ``make(path)`` writes it when it is not there. Look, lock, look again: of several processes that
    want it one makes it and the others wait. An entry that ``use`` refuses with an ArtifactError,
    being corrupt or another machine's, or that others may have changed, is made again, with a
    warning that says why; it stays until then, since another process may have room to use what this
    one could not. Raises BuildError when the cache directory cannot be written or is not this
    user's alone.
    """
    path = trusted_cache_dir() / name
    try:
        return _used(path, use)
    except ArtifactError as error:
        logger.debug("not in the cache: %s", error)
    with _alone(path):
        try:
            return _used(path, use)
        except ArtifactError as error:
            why = error
        with _writing(path.parent):
            _give_up(path, why)
            sweep(path.parent, marked=False)
            make(path)
    return use(path)


def content(
    name: str,
    make: Callable[[], bytes],
    folder: str = _CONTENTS,
    read: Callable[[bytes], T] = bytes,
) -> T:
    """What ``read`` gives of the bytes ``name``, a hash of all that decides what ``make()`` gives.

    Look, lock, look again, as ``entry``. Bytes that are cut off or changed, or that ``read`` cannot
    read, are made again, with a warning; where the cache cannot be written they are used and not
    kept.
    """
    path = trusted_cache_dir(folder) / name
    kept = _kept(path, read)
    if kept is not None:
        return kept[0]
    with ExitStack() as stack:
        try:
            stack.enter_context(_alone(path))
            kept = _kept(path, read, warn=True)
        except BuildError as error:
            _warn_unkept(path.parent, error)
        if kept is None:
            _sweep_once(path.parent)
            kept = (read(keep(path, make())),)
    return kept[0]


def keep(path: Path, data: bytes) -> bytes:
    """Let ``path`` hold ``data`` in one step, if it can be written; gives ``data``."""
    try:
        with _writing(path.parent):
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with open(descriptor, "wb") as file:
                    file.write(_stamp(data) + b"\n" + data)
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
    except BuildError as error:
        _warn_unkept(path.parent, error)
    return data


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Alone with ``path``, whose folder exists; BuildError when it cannot be written."""
    with ExitStack() as stack:
        with _writing(path.parent):
            make_private(path.parent)
            stack.enter_context(locked(path.with_name(f"{path.name}.lock")))
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(f"cannot write the cache directory {folder} ({error})", error) from error


def _refusal(problem: str, error: Exception | None = None) -> BuildError:
    remedy = "set TVM_FLASH_CACHE_DIR to a directory of yours"
    return BuildError(f"{problem}; {remedy_for(error, remedy)}")


def make_private(folder: Path) -> None:
    """Make ``folder``, and those above it that are missing, for this user alone."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)


def _kept(path: Path, read: Callable[[bytes], T], *, warn: bool = False) -> tuple[T] | None:
    """What ``keep`` wrote, read: a digest, a line end, the bytes."""
    try:
        stamp, _, data = read_file(path, LIBRARY_LIMIT).partition(b"\n")
        if stamp != _stamp(data):
            raise ValueError("changed or cut off")
        if problem := owner_problem(path):
            raise ValueError(problem)
        return (read(data),)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # foreign bytes may fail ``read`` in any way
        if warn:
            logger.warning("%s in the cache cannot be used (%r): making it again", path, error)
        return None


def _stamp(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _used(path: Path, use: Callable[[Path], T]) -> T:
    with suppress(OSError):  # what is not there, or cannot be searched, ``use`` refuses
        for part in (path, *path.iterdir()):
            if problem := owner_problem(part):
                raise refuse(part, problem.partition(";")[0])
    return use(path)


def _give_up(path: Path, why: ArtifactError) -> None:
    """Warn that ``path``, if there, is made again; delete what making it would not replace."""
    if not os.path.lexists(path):
        return
    reason = str(why).rpartition("; ")[0] or why
    text = "the cached kernel %s cannot be used (%s): building it again"
    logger.warning(text, path, reason)
    if is_replaceable(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@lru_cache(maxsize=64)
def _sweep_once(folder: Path) -> None:
    # Once a process: a folder of many small contents is listed in more time than making one takes.
    sweep(folder, marked=False)


def _warn_unkept(folder: Path, why: BuildError) -> None:
    """Once a process and folder: what is not kept is made again by each."""
    if folder not in _unkept:
        _unkept.add(folder)
        logger.warning("what is made for it is used and not kept: %s", why)
