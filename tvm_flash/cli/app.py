"""The Typer application that gathers the commands."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from .. import __version__
from .bench import bench
from .build import build
from .cache import cache
from .console import reporting_errors
from .demo import demo
from .doctor import doctor
from .show import show
from .spec_text import GRAMMAR
from .study import study
from .tune import tune
from .verify import verify

app = typer.Typer(
    name="tvm-flash",
    help="Attention kernels from one TensorIR definition: build, check, look at, measure.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (demo, build, tune, verify, bench, show, doctor):
    words = escape(GRAMMAR) if command is show else None
    app.command(epilog=words)(reporting_errors(command))
app.add_typer(study, name="study")
app.add_typer(cache, name="cache")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"tvm-flash {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Options before a command."""
