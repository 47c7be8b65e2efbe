"""Importing this module imports tvm whole: no signal interrupts it, too little memory is refused.

tvm registers its functions with tvm_ffi while it is imported, each name once in a process: an
import that stops half way can be neither completed nor repeated.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import BuildError
from .room import require_memory

# Address space that importing tvm 0.27 takes beside torch (measured: 421 MB), and lowering (50 MB).
_MEMORY = 512 << 20


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Handlers written in Python run when the block is over: Ctrl-C raises there, not inside.

    They run in the main thread alone, so that elsewhere there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {n: h for n in signal.valid_signals() if callable(h := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, lambda *arrived: came.append(arrived))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)


def _import_tvm() -> None:
    if "tvm" in sys.modules:
        return
    require_memory(_MEMORY, "importing apache-tvm")
    try:
        importlib.import_module("tvm")
    except Exception as error:
        raise BuildError(
            f"apache-tvm cannot be imported ({error}); start a new process before the next try"
        ) from error


with signals_deferred():
    _import_tvm()
