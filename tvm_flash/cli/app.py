"""The application that gathers the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .bench import bench
from .build import build
from .cache import cache
from .command import App
from .demo import demo
from .doctor import doctor
from .show import show
from .spec_text import GRAMMAR
from .study import study
from .tune import tune
from .verify import verify

_HELP = "Attention kernels from one TensorIR definition: build, check, look at, measure."
app = App("tvm-flash", _HELP)

for command in (demo, build, tune, verify, bench, show, doctor):
    app.command(epilog=GRAMMAR if command is show else None)(command)
app.add_typer(study)
app.add_typer(cache)


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
