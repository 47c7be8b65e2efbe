"""``tvm-flash verify``: a library's or a spec's kernels held to the error rule."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import ArtifactError, UnsupportedSpec
from .console import console, counted_progress, refuse_unwritable
from .direction import LISTED, Direction
from .loop_table import PREDICTED, loop_table, without_loops
from .show_table import show
from .spec_text import parse_specs
from .verdict_table import verdict_table

if TYPE_CHECKING:
    from ..tune.simulation.artifact import KernelLoop
    from ..verify.verdict import Verification


def verify(
    subject: Annotated[
        str, typer.Argument(metavar="LIB|SPEC", help="An artifact's directory, or a spec's text.")
    ],
    arch: Annotated[
        str, typer.Option(help="CUDA architectures, as in sm_80,sm_90. Default: all.")
    ] = "",
    direction: Annotated[
        list[Direction] | None,
        typer.Option(
            metavar="DIRECTION",
            help=f"{LISTED}; may be repeated. Default: all.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One problem for each kernel.")] = False,
    seed: Annotated[
        int, typer.Option(help="Seed of the inputs and of the order in which threads run.")
    ] = 0,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Run a CUDA library on this machine's GPU.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="One line for each problem.")
    ] = False,
    time: Annotated[
        bool,
        typer.Option(
            "--time",
            help="Also predict the clocks of each main loop of a CUDA library, from machine code.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything found to this file.")
    ] = None,
) -> None:
    """Run GPU kernels in the PTX interpreter, all accesses checked, and compare with float64.

    Kernels of a CPU library run as they are, with --gpu those of a CUDA library too.

    Exit status 1: a kernel is wrong. 2: nothing could be verified, such as a changed file.
    """
    refuse_unwritable(json_file)
    archs = [name.strip() for name in arch.split(",") if name.strip()] or None
    directions = [one.value for one in direction] if direction else None
    settings = {"quick": quick, "seed": seed}
    if time:
        _refuse_unpredictable(subject)
    if gpu:
        settings["gpu"] = True
    found = _verify(subject, archs, directions, settings)
    show(verdict_table(found, verbose))
    _print_failures(found)
    loops = _predict(subject, archs, directions) if time else None
    ok = all(verification.ok for verification in found)
    if json_file is not None:
        document: dict[str, Any] = {"ok": ok, "verified": [one.to_json() for one in found]}
        if loops is not None:
            document["predicted"] = {"kind": PREDICTED, "loops": [loop.to_json() for loop in loops]}
        text = json.dumps(document, indent=1, allow_nan=False)
        json_file.write_text(text + "\n", encoding="utf-8")
        console.print(f"written to {json_file}", soft_wrap=True)
    if not ok:
        raise typer.Exit(1)


def _refuse_unpredictable(subject: str) -> None:
    """Raise ValueError, before anything is verified, for what has no main loops to predict."""
    from ..artifact.library import verify as read_artifact
    from ..tune.simulation.artifact import refuse_cpu_library

    if not (Path(subject) / "manifest.json").is_file() and Path(subject).name != "manifest.json":
        raise ValueError(
            f"--time needs a built library, and {subject!r} is none: build it with tvm-flash build"
        )
    refuse_cpu_library(subject, read_artifact(subject)[1])


def _predict(
    subject: str, archs: list[str] | None, directions: list[str] | None
) -> list[KernelLoop]:
    """Show what the main loops of the library are predicted to take."""
    from ..tune.simulation.artifact import NO_LOOP, predicted_loops

    with counted_progress("predict") as step:
        found = predicted_loops(subject, archs, directions, progress=step)
    show(loop_table(found))
    for line in without_loops([kernel for kernel in found if kernel.reason != NO_LOOP]):
        console.print(f"not predicted: {escape(line)}", highlight=False, soft_wrap=True)
    return found


def _verify(
    subject: str,
    archs: list[str] | None,
    directions: list[str] | None,
    settings: dict[str, Any],
) -> list[Verification]:
    path = Path(subject)
    is_spec = "=" in subject  # whose score_mod may name a file in a folder
    if os.sep in subject and not is_spec and not path.exists():
        raise ArtifactError(
            f"{subject} does not exist: build it with tvm-flash build, or give a spec"
        )
    if path.is_dir() or path.name == "manifest.json":
        from ..verify.library import verify_library

        with counted_progress("verify") as step:
            named: dict[str, Any] = {"directions": directions, "archs": archs, **settings}
            return [verify_library(path, **named, progress=step)]
    if settings.get("gpu"):
        raise UnsupportedSpec(f"--gpu takes a library, not {subject}: tvm-flash build makes one")
    from ..verify.compiled import verify_spec

    chosen: dict[str, Any] = {"directions": directions} if directions else {}
    found = []
    for spec in parse_specs(subject):
        with counted_progress("verify") as step:
            found.append(verify_spec(spec, archs=archs, **chosen, **settings, progress=step))
    return found


def _print_failures(found: list[Verification]) -> None:
    failures = [
        (f"{kernel.symbol} {outcome.problem.name}", outcome.failure)
        for verification in found
        for kernel in verification.kernels
        for outcome in kernel.outcomes
        if not outcome.ok
    ]
    for place, failure in failures:
        text = f"[bold red]wrong:[/] {escape(place)}: {escape(failure)}"
        console.print(text, highlight=False, soft_wrap=True)
    total = sum(len(k.outcomes) for verification in found for k in verification.kernels)
    if not failures:
        console.print(f"[green]{total} run{'s' * (total != 1)}, nothing wrong[/]", highlight=False)
    else:
        console.print(f"[red]{len(failures)} of {total} runs are wrong[/]", highlight=False)
