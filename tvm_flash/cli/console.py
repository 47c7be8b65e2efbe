"""How all commands talk: one console, progress bars, errors without tracebacks."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from ..errors import TvmFlashError
from .error_text import error_text
from .streams import INTERRUPTED, NOBODY_READS, discard


class Output(Console):
    """rich's, but for output that nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Leave; with rich's own status, 1, some commands say something else."""
        discard(sys.stderr if self.stderr else sys.stdout)
        raise SystemExit(NOBODY_READS)


console = Output()
# Progress and complaints go to stderr: what a program reads from stdout stays clean.
notes = Output(stderr=True)

# Options that print a line as it is: no colours, no line breaks.
PLAIN: dict[str, bool] = {"highlight": False, "soft_wrap": True}

# Columns that tables and help need: a narrower terminal wraps them, which loses nothing.
_LEAST_WIDTH = 60

# Seconds without a word where progress is told in lines.
_SILENCE = 5.0

Advance = Callable[[str], None]


def keep_wide() -> None:
    """Let nothing be laid out for so few columns, or none, that it would be cut off."""
    if console.width < _LEAST_WIDTH:
        os.environ["COLUMNS"] = str(_LEAST_WIDTH)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """How far ``total`` steps have come; the function it gives marks one done and names it.

    A bar on a terminal; elsewhere a line now and then, and none of what is done at once.
    """
    with _bar(title, total) if notes.is_terminal else nullcontext(_lines(title, total)) as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Advance]:
    columns = (
        SpinnerColumn("dots" if notes.encoding.startswith("utf") else "line"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}", table_column=Column(overflow="fold")),
    )
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task(escape(title), total=total)
        yield lambda text: bar.update(task, advance=1, description=escape(f"{title}: {text}"))


def _lines(title: str, total: int) -> Advance:
    begun = told = time.monotonic()
    done = 0

    def advance(text: str) -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - told >= _SILENCE:
            told = now
            notes.print(f"{title}: {done} of {total} in {now - begun:.0f} s, {text}", **PLAIN)

    return advance


@contextmanager
def counted_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that begins when its length is known: at the first step(done, total, text).

    Steps come one by one, from the start (0 done) or from the first that is done.
    """
    with ExitStack() as stack:
        opened: list[Advance] = []

        def step(done: int, total: int, text: str) -> None:
            if not opened:
                opened.append(stack.enter_context(progress(title, total)))
            if done:
                opened[0](text)

        yield step


def reporting_errors(command: Callable) -> Callable:
    """``command`` with errors that are the caller's printed as one message and exit status 2.

    These are the package's own, and what Python says of values (ValueError, which the package's
    functions raise too), of files (OSError) and of text nested too deeply (RecursionError). Ctrl-C
    is one line and exit status 130.
    """

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except BrokenPipeError as error:
            raise typer.Exit(NOBODY_READS) from error
        except KeyboardInterrupt as error:
            notes.print("stopped", **PLAIN)
            raise typer.Exit(INTERRUPTED) from error
        except (TvmFlashError, ValueError, OSError, RecursionError) as error:
            if hasattr(error, "in_strategy"):
                raise  # a fault of a strategy's code, whose author needs the place
            notes.print(
                f"[bold red]error:[/] {escape(error_text(error))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(2) from error

    return run


def refuse_unwritable(file: Path | None) -> None:
    """Raise ValueError unless ``file`` can be written: before minutes of work, not after.

    A device is refused too, since the file would replace it.
    """
    if file is None:
        return
    folder = file.resolve().parent
    if not folder.is_dir():
        raise ValueError(f"{file} cannot be written: the folder {folder} does not exist")
    if (file.exists() and not file.is_file()) or not os.access(folder, os.W_OK):
        raise ValueError(f"{file} cannot be written: name a file in a folder that can be")
