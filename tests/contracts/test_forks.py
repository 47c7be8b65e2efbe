"""A forked child never waits for what a thread of its parent held, nor harms what it was doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
from small_artifact import SPEC, compiled, in_child

from tvm_flash.codegen import cache
from tvm_flash.codegen.file_lock import locked
from tvm_flash.codegen.staging import publishing
from tvm_flash.import_lock import importing
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime import kernels
from tvm_flash.runtime.loader import registered


@contextmanager
def held(enter: Callable):
    """A thread is inside the context that ``enter()`` gives."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with enter():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    yield
    leave.set()
    thread.join()


def _property_lock():
    # None since Python 3.12.
    return getattr(AttentionSpec.__dict__["name"], "lock", nullcontext())


_HELD = {
    "the compiler": lambda: kernels._compiling,
    "an entry of the cache": lambda: cache._alone(cache.trusted_cache_dir() / "another"),
    "a cached property": _property_lock,
}


@pytest.mark.parametrize("what", _HELD)
def test_a_child_gets_kernels_while_a_thread_of_its_parent_compiles(what, monkeypatch):
    compiled()
    monkeypatch.delitem(registered, (SPEC.name, "forward", "cpu", "long"), raising=False)
    again = AttentionSpec(dtype=SPEC.dtype, head_dim=SPEC.head_dim)  # its name is not computed yet
    with held(_HELD[what]):
        assert in_child(lambda: kernels.resolve(again, "forward"))


def test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path):
    """It inherits the descriptor: without closing it, it would wait for itself."""
    read, write = os.pipe()

    def child_of(parent: int):
        while os.getppid() == parent:
            time.sleep(0.01)
        with locked(tmp_path / "lock"):
            os.write(write, b"got it")

    def killed():
        with held(lambda: locked(tmp_path / "lock")):
            parent = os.getpid()
            if os.fork() == 0:
                signal.alarm(20)
                child_of(parent)
                os._exit(0)
            os.kill(parent, signal.SIGKILL)

    assert not in_child(killed)
    os.close(write)
    assert os.read(read, 6) == b"got it"


def test_a_parent_keeps_its_lock_when_a_child_ends(tmp_path):
    with locked(tmp_path / "lock"):
        assert in_child(lambda: None)
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
            pass


def test_a_fork_waits_for_a_thread_that_imports_the_compiler():
    """Half an import would be left to the child, and nobody to finish it."""
    inside, done = threading.Event(), []

    def imports():
        with importing:
            inside.set()
            time.sleep(0.2)
            done.append(True)

    thread = threading.Thread(target=imports)
    thread.start()
    inside.wait()

    def child():
        assert done
        with importing:
            pass

    assert in_child(child)
    thread.join()


IMPORTING = """
import importlib.abc, os, signal, sys, threading, time
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime import kernels

call = AttentionSpec(dtype="float32", head_dim=64), "forward"

inside = threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == "tvm_flash.codegen.cache":
            inside.set()
            time.sleep(0.3)

sys.meta_path.insert(0, Slow())
threading.Thread(target=kernels._compiler, args=call).start()
assert inside.wait(60)
if child := os.fork():
    sys.exit(os.waitpid(child, 0)[1])
signal.alarm(20)
kernels._compiler(*call)
"""


def test_a_fork_waits_for_a_thread_that_imports_us():
    assert subprocess.run([sys.executable, "-c", IMPORTING]).returncode == 0


def test_a_child_that_ends_leaves_what_its_parent_is_building(tmp_path):
    path = tmp_path / "kernels"
    with ExitStack() as stack:
        staging = stack.enter_context(publishing(path))
        (staging / "manifest.json").write_text("built")
        assert in_child(stack.close)
        assert not path.exists()
    assert (path / "manifest.json").read_text() == "built"
