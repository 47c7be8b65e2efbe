"""Options of ``tvm-flash bench``: what is measured, of what, for how long, and what is kept."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class SuiteName(str, Enum):
    """What is measured: bench/suite.py."""

    cpu = "cpu"
    short = "short"
    quick = "quick"
    sequences = "sequences"
    gpu = "gpu"
    gpu_quick = "gpu-quick"


SuiteChoice = Annotated[
    SuiteName,
    typer.Option(
        metavar="SUITE",
        help="cpu: everything, an hour or two. short: minutes. quick: a few cells. sequences: "
        "packed, paged and cached ones, minutes. gpu: the error rule and times on a CUDA "
        "device. gpu-quick: a part of that.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--out",
        metavar="FILE",
        help="Keep all cells here, as JSON; a file of the same suite is continued.",
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the ratios into this file.")]
Artifact = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A built library to measure: neither TVM nor a compiler is needed then.",
    ),
]
Candidates = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="GPU configs to compare, which `tvm-flash tune --carry DIR` built.",
    ),
]
Logs = Annotated[
    Path, typer.Option(metavar="DIR", help="Where what --candidates gives is recorded.")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="The suite quick, or gpu-quick of --suite gpu.")
]
Match = Annotated[str, typer.Option(metavar="TEXT", help="Only cells whose key contains this.")]
Threads = Annotated[str, typer.Option(metavar="N,...", help="Numbers of threads. Default: 1,2.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Measure again the cells that the file has.")]
Stale = Annotated[
    bool,
    typer.Option("--stale", help="Measure again the cells of kernels that have changed since."),
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="Begin no cell after so long: sections come in the order of their worth.",
    ),
]
Patience = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0,
        help="How long to go on with a noisy cell. Default: 12 in the suite cpu.",
    ),
]
