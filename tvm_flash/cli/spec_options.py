"""How commands take the problems that they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Specs = Annotated[
    list[str] | None,
    typer.Argument(help="bf16,d=64,causal or a case name or a file of them"),
]
SpecsFile = Annotated[
    list[Path] | None,
    typer.Option("--specs", help="JSON or text file with one spec per entry or line."),
]
