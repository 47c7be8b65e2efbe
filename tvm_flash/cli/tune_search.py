"""The searches of ``tvm-flash tune``: run, told of, and built from what they recorded."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from ..errors import TvmFlashError
from .answer import Answer
from .console import PLAIN, notes
from .termination import as_interrupt
from .tune_rebuild import built_lines, on_gpu, rebuild, record_lines
from .tune_tables import Found, found_document, found_lines, found_table
from .tune_view import LiveView, PlainView, clock_text

if TYPE_CHECKING:
    from ..tune.hardware import Hardware
    from ..tune.request import Request

# 128 and the number of SIGINT, as shells have it.
_INTERRUPTED = 130


def search(
    request: Request, hardware: Hardware, out: Path | None, named: list[str], answer: Answer
) -> None:
    """Run the sessions, then say what was found; also what an interrupted one had found.

    out: where the tuned kernels are built; named: the words that name their specs.
    """
    found: list[Found] = []
    started = time.monotonic()
    if request.strategy is None:
        notes.print(f"strategy: {', '.join(request.strategies)}", **PLAIN)
    view = (LiveView if notes.is_terminal else PlainView)(notes, len(request.tasks))
    stopped: BaseException | None = None
    try:
        with as_interrupt(), hardware, view:
            for session in request.sessions(hardware, view.tell):
                found.append(Found(session.state, None))
                view.begin(session.task)
                found[-1] = Found(session.state, session.run())
    except (KeyboardInterrupt, TvmFlashError) as error:
        stopped = error
    seconds = time.monotonic() - started
    if found:
        answer.table(found_table(found))
    for line in found_lines(found):
        answer.line(line)
    _report(request, found, seconds)
    built = None
    try:
        if stopped is None and out is not None:
            built = rebuild(request, out)
            for line in built_lines(built):
                answer.line(line)
    except (KeyboardInterrupt, TvmFlashError) as error:
        stopped = error
    if out is not None or on_gpu(request.tasks):
        for line in record_lines(request, named):
            notes.print(escape(line), **PLAIN)
    ended = {"seconds": seconds, "built": built and str(built), "stopped": _why(stopped)}
    searches = [found_document(one) for one in found]
    answer.document({"records": str(request.logs), **ended, "searches": searches})
    if stopped is not None:
        _stop(stopped)


def _report(request: Request, found: list[Found], seconds: float) -> None:
    """In how much time it was found, and where it is kept."""
    if waiting := request.waiting():
        notes.print(f"{waiting} could not be written to {request.logs}: the next run will", **PLAIN)
    again = sum(one.state.replayed for one in found)
    known = f", {again} trials were in the log" if again else ""
    total = clock_text(seconds)
    notes.print(escape(f"{total} in all{known}; records are in {request.logs}"), **PLAIN)


def _why(stopped: BaseException | None) -> str | None:
    return "interrupted" if isinstance(stopped, KeyboardInterrupt) else stopped and str(stopped)


def _stop(reason: BaseException) -> None:
    """Leave with what a shell expects: 130 after Ctrl-C, 1 after a failure."""
    if isinstance(reason, KeyboardInterrupt):
        command = escape(shlex.join(["tvm-flash", *sys.argv[1:]]))
        notes.print(f"stopped; every trial is recorded. To go on: {command}", **PLAIN)
        raise typer.Exit(_INTERRUPTED)
    notes.print(f"[bold red]error:[/] {escape(str(reason))}", **PLAIN)
    raise typer.Exit(1) from reason
