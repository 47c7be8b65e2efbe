"""Functions that worker processes of tests run: spawned ones import them by this module's name."""

import ctypes
import os
import sys
import time


def toy(what, value=None):
    """Answers, or fails in one of the ways that a candidate may."""
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        print("LLVM error: out of registers", file=sys.stderr, flush=True)
        os._exit(3)
    while what == "hang":
        time.sleep(600)
    if what == "raise":
        raise RuntimeError(f"no {value}")
    return os.getpid() if what == "pid" else value


def cannot_start():
    raise RuntimeError("no compiler here")
