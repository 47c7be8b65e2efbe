"""How all commands talk: one console, progress bars, errors without tracebacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

from ..errors import TvmFlashError
from .spec_text import SpecTextError

console = Console()
# Progress and complaints go to stderr: what a program reads from stdout stays clean.
notes = Console(stderr=True)

Advance = Callable[[str], None]


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """A bar of ``total`` steps; the function it gives marks one done and names the next."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=notes, transient=True) as bar:
        task = bar.add_task(escape(title), total=total)
        yield lambda text: bar.update(task, advance=1, description=escape(f"{title}: {text}"))


def reporting_errors(command: Callable) -> Callable:
    """``command`` with the package's own errors printed as one message and exit status 2."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except (TvmFlashError, SpecTextError) as error:
            notes.print(
                f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(2) from error

    return run
