"""Processes that do one thing to many items; an item that crashes or hangs costs itself alone."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .errors import HardwareFailure

# Seconds until a worker answers: importing libraries is no item's fault, and a loaded machine may
# need long for it.
_START_SECONDS = 300.0

Function = Callable[..., Any]


@dataclass(frozen=True)
class Failure:
    """What became of an item without an answer: "crash" or "timeout", and what is known of why."""

    outcome: str
    note: str


class Workers:
    """Up to ``jobs`` processes of ``function(*item)``, which start when they are needed.

    prepare: called first in each process, for what costs time once; no item pays for it. Functions
    and items must pickle. Processes are spawned: nothing of this one's state goes with them.
    """

    def __init__(self, function: Function, jobs: int, prepare: Function | None = None):
        self._functions = (function, prepare)
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, int] = {}
        self.jobs = jobs

    def map(self, items: Sequence[tuple], timeout: float) -> Iterator[tuple[int, Any | Failure]]:
        """Each item's index and answer, or Failure, as they finish; ``timeout`` seconds for each.

        A process whose item failed is ended. Raises HardwareFailure when processes do not start.
        """
        left = list(enumerate(items))[::-1]
        try:
            while left or self._busy:
                while left and len(self._busy) < self.jobs:
                    index, item = left.pop()
                    self._give(index, item)
                yield from self._finished(timeout)
        finally:
            # Whoever asked has gone: what is still under way is nobody's.
            for worker in list(self._busy):
                self._drop(worker)

    def start(self) -> None:
        """Have a process that is ready; raises HardwareFailure where none starts."""
        if self._idle:
            return
        worker = _Worker(*self._functions)
        try:
            worker.wait_ready()
        except BaseException:
            worker.end()
            raise
        self._idle.append(worker)

    def renew(self) -> None:
        """End the idle processes: the next item finds fresh ones."""
        while self._idle:
            self._idle.pop().end()

    def close(self) -> None:
        """End all processes, whatever they do."""
        for worker in list(self._busy):
            self._drop(worker)
        self.renew()

    def _give(self, index: int, item: tuple) -> None:
        worker = self._idle.pop() if self._idle else _Worker(*self._functions)
        worker.give(item)
        self._busy[worker] = index

    def _finished(self, timeout: float) -> Iterator[tuple[int, Any | Failure]]:
        """Answers there are now; waits until there is one, or until something is overdue."""
        due = min(worker.due(timeout) for worker in self._busy)
        wait([worker.link for worker in self._busy], max(0.0, due - time.monotonic()))
        for worker, index in list(self._busy.items()):
            answer = worker.answer(timeout)
            if answer is None:
                continue
            if isinstance(answer, Failure):
                self._drop(worker)
            else:
                del self._busy[worker]
                self._idle.append(worker)
                (answer,) = answer
            yield index, answer

    def _drop(self, worker: _Worker) -> None:
        self._busy.pop(worker, None)
        worker.end()


class _Worker:
    """One process, what it is connected by, and since when it has had its item."""

    def __init__(self, function: Function, prepare: Function | None):
        context = get_context("spawn")
        self.link, theirs = context.Pipe()
        # What a crash prints belongs to its record, not on the terminal.
        handle, name = tempfile.mkstemp(prefix="tvm_flash_worker_")
        self._output, self._path = os.fdopen(handle, encoding="utf-8", errors="replace"), Path(name)
        arguments = (theirs, name, function, prepare)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False
        self._since = time.monotonic()

    def give(self, item: tuple) -> None:
        with suppress(OSError):  # it has died meanwhile: ``answer`` sees the same
            self.link.send(item)
        self._since = time.monotonic()

    def wait_ready(self) -> None:
        """Until it can be given items; raises HardwareFailure when it ends instead."""
        while not self._ready:
            wait([self.link], max(0.0, self.due(0) - time.monotonic()))
            self.answer(0)

    def due(self, timeout: float) -> float:
        """When it is overdue."""
        return self._since + (timeout if self._ready else _START_SECONDS)

    def answer(self, timeout: float) -> tuple | Failure | None:
        """A 1-tuple with its answer, Failure, or None: not yet."""
        try:
            if self.link.poll():
                return self._received(self.link.recv())
        except (EOFError, OSError):
            return self._ended("crash", f"the process died: {self._why()}")
        if time.monotonic() < self.due(timeout):
            return None
        return self._ended("timeout", f"no answer within {timeout:g} s")

    def _received(self, message: tuple) -> tuple | Failure | None:
        kind, value = message
        if kind == "ready":
            self._ready, self._since = True, time.monotonic()
            self._path.unlink(missing_ok=True)  # both have it open: it ends with them
            return None
        return Failure("crash", value) if kind == "raised" else (value,)

    def _ended(self, outcome: str, note: str) -> Failure:
        if not self._ready:
            raise HardwareFailure(f"a worker process did not start: {note}")
        return Failure(outcome, note)

    def _why(self) -> str:
        """The signal or status it ended with, and the last it printed."""
        self._process.join(5)
        code = self._process.exitcode
        how = f"exit status {code}" if code is None or code >= 0 else signal.Signals(-code).name
        lines = self._output.read().split("\n")
        fatal = [line for line in lines if "rror" in line] or [line for line in lines if line]
        return f"{how}; {fatal[0][:200]}" if fatal else how

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.link.close()
        self._output.close()
        self._path.unlink(missing_ok=True)


def _serve(link: Connection, output: str, function: Function, prepare: Function | None) -> None:
    """A worker process: it ends when the other side of ``link`` does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; ours decides
    printed = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    faulthandler.enable(all_threads=False)
    if prepare is not None:
        prepare()
    link.send(("ready", None))
    while True:
        try:
            item = link.recv()
        except EOFError:
            return
        link.send(_tried(function, item))


def _tried(function: Function, item: tuple) -> tuple[str, Any]:
    try:
        return "done", function(*item)
    except Exception as error:
        return "raised", f"{type(error).__name__}: {error}"
