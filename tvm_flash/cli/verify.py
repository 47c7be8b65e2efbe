"""``tvm-flash verify``: a library's or a spec's kernels held to the error rule."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..artifact.library import MANIFEST
from ..errors import ArtifactError, UnsupportedSpec
from .answer import Answer
from .console import counted_progress
from .direction import LISTED, Direction
from .json_output import AsJson
from .loop_table import PREDICTED, loop_table, without_loops
from .spec_text import is_spec_text, parse_specs
from .verdict_table import verdict_table

if TYPE_CHECKING:
    from ..tune.simulation.artifact import KernelLoop
    from ..verify.verdict import Verification


def verify(
    subject: Annotated[
        str, typer.Argument(metavar="LIB|SPEC", help="A library's folder, or a spec's text.")
    ],
    arch: Annotated[
        str,
        typer.Option(metavar="NAMES", help="CUDA architectures, as in sm_80,sm_90. Default: all."),
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
        int,
        typer.Option(metavar="N", help="Seed of the inputs and of the order in which threads run."),
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
    as_json: AsJson = False,
) -> None:
    """Compare a library's or a spec's kernels with float64, on problems of all kinds.

    GPU kernels run in the PTX interpreter, all accesses checked, those of a CPU library as they
    are; with --gpu those of a CUDA library too. A spec's are compiled for GPUs.

    Exit status 1: a kernel is wrong. 2: nothing could be verified, such as a changed file.
    """
    archs = [name.strip() for name in arch.split(",") if name.strip()] or None
    directions = [one.value for one in direction] if direction else None
    settings = {"quick": quick, "seed": seed}
    if time:
        _refuse_unpredictable(subject)
    if gpu:
        settings["gpu"] = True
    answer = Answer(as_json)
    found = _verify(subject, archs, directions, settings)
    answer.table(verdict_table(found, verbose))
    _tell_failures(answer, found)
    ok = all(verification.ok for verification in found)
    document: dict[str, Any] = {"ok": ok, "verified": [one.to_json() for one in found]}
    if time:
        loops = _predict(subject, archs, directions)
        _tell_loops(answer, loops)
        document["predicted"] = {"kind": PREDICTED, "loops": [loop.to_json() for loop in loops]}
    answer.document(document)
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
    """What the main loops of the library are predicted to take."""
    from ..tune.simulation.artifact import predicted_loops

    with counted_progress("predict") as step:
        return predicted_loops(subject, archs, directions, progress=step)


def _tell_loops(answer: Answer, found: list[KernelLoop]) -> None:
    from ..tune.simulation.artifact import NO_LOOP

    answer.table(loop_table(found))
    for line in without_loops([kernel for kernel in found if kernel.reason != NO_LOOP]):
        answer.line(f"not predicted: {line}")


def _verify(
    subject: str,
    archs: list[str] | None,
    directions: list[str] | None,
    settings: dict[str, Any],
) -> list[Verification]:
    path = Path(subject)
    if not is_spec_text(subject):
        _refuse_missing(path)
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


def _refuse_missing(path: Path) -> None:
    """Raise ArtifactError for what is neither a spec nor there; say what is, nearly so."""
    if path.is_dir() or path.name == MANIFEST:
        return
    if path.exists():
        raise ArtifactError(f"{path} is a file: name the folder of a library, or give a spec")
    above = path.parent
    libraries = [each.parent.name for each in above.glob(f"*/{MANIFEST}")]
    near = [str(above / name) for name in get_close_matches(path.name, libraries)]
    meant = f"did you mean {' or '.join(near)}? Else " if near else ""
    raise ArtifactError(
        f"{path} does not exist: {meant}build it with tvm-flash build -o {path}, or give a spec "
        "such as bf16,d=64,causal"
    )


def _tell_failures(answer: Answer, found: list[Verification]) -> None:
    failures = [
        (f"{kernel.symbol} {outcome.problem.name}", outcome.failure)
        for verification in found
        for kernel in verification.kernels
        for outcome in kernel.outcomes
        if not outcome.ok
    ]
    for place, failure in failures:
        answer.parts(("wrong:", "bold red"), f" {place}: {failure}")
    total = sum(len(k.outcomes) for verification in found for k in verification.kernels)
    if not failures:
        answer.line(f"{total} run{'s' * (total != 1)}, nothing wrong", "green")
    else:
        answer.line(f"{len(failures)} of {total} runs are wrong", "red")
