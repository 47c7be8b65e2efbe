"""Folders and files that others may hold a hand on: opened once, regular, and not too large."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path

_OPEN_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
# O_PATH, where there is one: a folder that may be searched but not listed will do.
_OPEN_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC

# Numbers the drafts of files: threads of one process may write to one path.
_number = count(1)


class Folder(AbstractContextManager):
    """An opened folder: what is read through it lay in one folder, whatever is renamed meanwhile.

    Raises OSError when ``path`` cannot be opened or is no folder.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, _OPEN_FOLDER)

    def __exit__(self, *error) -> None:
        os.close(self._descriptor)

    def read(self, name: str, limit: int) -> bytes:
        """As ``read_file``, of a file in this folder."""
        return read_file(name, limit, folder=self._descriptor)

    def was_replaced(self) -> bool:
        """Whether another folder has its path by now."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False


def read_file(path: str | Path, limit: int, *, folder: int | None = None) -> bytes:
    """The bytes of the regular file ``path``, at most ``limit``; relative to an opened ``folder``.

    Raises OSError for anything else: it neither waits for a pipe's writer nor reads a device.
    """
    descriptor = os.open(path, _OPEN_FILE, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > limit:
            text = f"{status.st_size} bytes, more than the {limit} that are read"
            raise OSError(errno.EFBIG, text, str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:  # ``open`` leaves that of a folder open
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path``, what is written to which takes its place when the block ends.

    After an error ``path`` is as before, and nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{next(_number)}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_to_all(path: Path) -> list[Path]:
    """``path`` and the folders above it that anybody may write to, links followed.

    The sticky bit, as on /tmp, keeps others from replacing what is not theirs.
    """
    path = Path(os.path.realpath(path))
    return [part for part in (path, *path.parents) if _is_open_to_all(part)]


def _is_open_to_all(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:  # replaced just now
        return False
    return bool(mode & stat.S_IWOTH) and not mode & stat.S_ISVTX


def trust_problems(folder: Path) -> list[str]:
    """Why code in ``folder`` may be somebody else's, each with its remedy (empty: it is ours).

    As ssh asks of keys: it belongs to this user or root, and nobody else may write to it.
    """
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if problem := owner_problem(folder):
        return [problem]
    above = open_to_all(Path(os.path.realpath(folder)).parent)
    return [f"anybody may replace what is in {part}; `chmod +t {part}`" for part in above]


def owner_problem(path: Path) -> str:
    """Why others may have changed ``path`` itself, with the remedy; empty: only this user may."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {status.st_uid}, not to this one ({os.geteuid()})"
    others = stat.S_IWOTH | (0 if _is_private_group(status) else stat.S_IWGRP)
    if status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        return f"others may write to it (mode {mode:03o}); `chmod -R go-w {path}`"
    return ""


def _is_private_group(status: os.stat_result) -> bool:
    """Whether the group is the owner's alone, as most Linux systems make one for every user."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return status.st_uid != 0 and group.gr_name == owner and set(group.gr_mem) <= {owner}
