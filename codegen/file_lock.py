"""Alone with a file's name, among threads and processes, whatever happens to them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Descriptors of locks that are held or waited for. A forked child has copies: with them it would
# hold what its parent holds, also when that is gone, and then wait for itself.
_descriptors: set[int] = set()

# Filesystems without locks. What is locked here is put in place in one step besides.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file ``path``, which is made and stays.

    BlockingIOError when another has it and this is not to ``wait``; OSError when it cannot be made.
    """
    owner = os.getpid()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    _descriptors.add(descriptor)
    try:
        _lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        if os.getpid() == owner:
            _lock(descriptor, fcntl.LOCK_UN)  # closing does not, while a child has a copy
            _descriptors.discard(descriptor)
            os.close(descriptor)


def _lock(descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _let_go() -> None:
    for descriptor in _descriptors:
        with suppress(OSError):  # closed by a program that closes whatever is open
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_let_go)
