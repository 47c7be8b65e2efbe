"""Options of ``tvm-flash build``: which kernels, for which machines, as what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..artifact.manifest import DIRECTIONS
from ..problem.lengths import FORWARD_BUCKETS

ALL_BUCKETS = ",".join(FORWARD_BUCKETS)
# Parameters that change nothing of what is made, by its form.
ONE = "a build of one library"
UNREAD = {
    ONE: {"name", "repo_version"},
    "--wheel": {"kernels_repo", "repo_version", "verbose"},
    "--kernels-repo": {"wheel", "name", "verbose"},
}

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="TARGET",
        help="llvm (this machine), a CPU level, cuda or cuda:sm_80,sm_90. Of a wheel or a "
        "repository any number, also cpu, all levels of this architecture. Default: llvm, of "
        "those cpu.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--out",
        metavar="DIR",
        help="Folder of the library (Default: kernels), of the wheel (dist) or of the repository "
        "(kernels-repo).",
        show_default=False,
    ),
]
Wheel = Annotated[
    bool,
    typer.Option(
        "--wheel", help="A wheel with a library for each target: installed, it needs no load."
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Of the wheel. Default: tvm-flash-kernels.", show_default=False
    ),
]
KernelsRepo = Annotated[
    bool,
    typer.Option("--kernels-repo", help="A repository that Hugging Face's kernels library loads."),
]
RepoVersion = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Of the repository, for those who ask for one: raised when calls change.",
    ),
]
Directions = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help=f"In place of forward and backward, of {', '.join(DIRECTIONS)}.",
        show_default=False,
    ),
]
ForwardOnly = Annotated[bool, typer.Option("--forward-only", help="No backward.")]
Split = Annotated[
    bool,
    typer.Option(
        "--split", help="GPUs: also the forward that divides keys, for few queries and many keys."
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="GPUs: also the backward whose gradients have the same bits every run.",
    ),
]
Buckets = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help=f"CPUs: length buckets to make kernels for, of {', '.join(FORWARD_BUCKETS)}. "
        "Those with equal configs share one, and the nearest kernel serves other lengths. "
        "Default: all.",
        show_default=False,
    ),
]
Logs = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of tuning records that come before the package's own."
    ),
]
ShowList = Annotated[
    bool, typer.Option("--list", help="Only print the kernels of the presets, for --specs.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="GPUs: what each kernel costs.")]


def directions_of(
    listed: str | None, forward_only: bool, split: bool, deterministic: bool
) -> tuple[str, ...]:
    """The directions to build; ValueError for unknown ones, and for a list beside flags."""
    if listed is None:
        forwards = ("forward", *["forward_split"] * split)
        if forward_only:
            return forwards
        return (*forwards, "backward", *["backward_deterministic"] * deterministic)
    if forward_only or split or deterministic:
        raise ValueError("--directions names all: give no --forward-only, --split, --deterministic")
    names = tuple(word.strip() for word in listed.split(","))
    if unknown := [name for name in names if name not in DIRECTIONS]:
        raise ValueError(f"--directions {unknown[0]!r} must be of {', '.join(DIRECTIONS)}")
    return names


def unread_by(targets: Sequence[str]) -> set[str]:
    """Parameters of ``build`` that none of ``targets`` reads."""
    of_gpus = {target.startswith("cuda") for target in targets}
    of_one = {True: {"buckets"}, False: {"split", "deterministic", "verbose"}}
    return set.intersection(*(of_one[is_gpu] for is_gpu in of_gpus))
