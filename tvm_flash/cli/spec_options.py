"""How commands take the problems that they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Specs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Specs such as bf16,d=64,causal (`tvm-flash show --help` lists the words), names of "
        "cases (attn_...), or files of them."
    ),
]
SpecsFile = Annotated[
    list[Path] | None,
    typer.Option("--specs", help="File of specs: one a line, or a JSON list."),
]
