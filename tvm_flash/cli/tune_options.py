"""Options of ``tvm-flash tune``: what is searched, by what, where, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..problem.lengths import FORWARD_BUCKETS

Target = Annotated[
    str,
    typer.Option(
        metavar="TARGET",
        help="llvm (this machine), a CPU level behind --rpc, cuda or cuda:sm_90.",
    ),
]
Trials = Annotated[int, typer.Option(metavar="N", min=1, help="Configs to try for each kernel.")]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        help="Seed of the random choices; another one is another search.",
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name in docs/search-strategies.md, or your own as module:Class. "
        "Default: analytical-measured, or mlp where no analytical model serves.",
    ),
]
CostModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Cost model of evolutionary or ranked: xgb, mlp or random."),
]
Rpc = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A TVM RPC tracker.")]
RpcKey = Annotated[str, typer.Option(metavar="KEY", help="The devices' key at the tracker.")]
WorkDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for MetaSchedule's database files, and for records while --logs is full.",
    ),
]
Logs = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of the records. Default: where builds look."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--out",
        metavar="DIR",
        help="Build what was tuned into this folder at the end. Default: on a GPU kernels_ARCH.",
    ),
]
Directions = Annotated[str, typer.Option(metavar="NAMES", help="Directions to tune.")]
Buckets = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help=f"CPUs: length buckets to tune for, of {', '.join(FORWARD_BUCKETS)}. Default: all.",
        show_default=False,
    ),
]
Seqlen = Annotated[
    int | None,
    typer.Option(metavar="N", help="Sequence length to time, of the one bucket in --buckets."),
]
Threads = Annotated[int, typer.Option(metavar="N", min=1, help="Threads of a timed kernel.")]
Seconds = Annotated[float, typer.Option(metavar="SECONDS", min=0.01, help="Timing of each trial.")]
Timeout = Annotated[
    float,
    typer.Option(metavar="SECONDS", min=1, help="What a compilation may take, and a check."),
]
Jobs = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Compilers at once. Default: one per core."),
]
Carry = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Only build the candidates for one GPU into this folder, to be timed.",
    ),
]
Carried = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Time the candidates in this folder; needs neither TVM nor nvcc."
    ),
]
CheckLogs = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Only say which lines of this folder's logs are valid."),
]
