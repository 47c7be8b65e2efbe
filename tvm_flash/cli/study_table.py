"""``tvm-flash study table``: measure every point of a space, for searches to be replayed on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import console, progress, refuse_unwritable, reporting_errors
from .direction import LISTED, Direction
from .show import require_tvm
from .spec_text import parse_spec

if TYPE_CHECKING:
    from ..schedules.space import Value
    from ..tune.trial import SearchTask


@reporting_errors
def table(
    spec: Annotated[str, typer.Option(help="As in `tvm-flash show`, e.g. f32,d=64.")],
    knob: Annotated[list[str], typer.Option(help="A knob and its values: block_q=64,128,256.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="FILE.jsonl.gz to write.")],
    direction: Annotated[
        Direction,
        typer.Option(metavar="DIRECTION", help=f"{LISTED}."),
    ] = Direction.forward,
    seqlen: Annotated[int, typer.Option(min=1, help="Queries and keys.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="Heads, of queries and of keys.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    passes: Annotated[int, typer.Option(help="Passes over the table, in random order.")] = 5,
    pairs: Annotated[int, typer.Option(help="Repeats of a point in a pass.")] = 5,
    workers: Annotated[int, typer.Option(help="Processes that compile.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds to compile and check a point.")] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of measuring.")] = 0,
) -> None:
    """Compile, check and time every valid point of a space: hardware for `study search`.

    Knobs that are not given keep the value of the default config.

    The same command continues an interrupted run.
    """
    require_tvm()
    refuse_unwritable(output)
    from ..study.replay import table as replay_table
    from ..study.replay.make import Effort, make

    try:
        values = dict(map(knob_values, knob))
        effort = Effort(passes, pairs, workers, timeout, seed)
        task = _task(spec, direction.value, (batch, heads, heads, seqlen, seqlen), threads, values)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console.print(f"{len(task.space.points)} points around {task.space.start}")
    with progress("table", len(task.space.points) * (1 + passes)) as advance:
        make(task, output, effort, advance)
    made = replay_table.read(output)
    best = made.seconds[made.best]
    console.print(f"{output}: best {dict(zip(made.head['knobs'], made.best, strict=True))}")
    console.print(f"{best * 1e3:.3f} ms, {best / made.seconds[made.start]:.3f} of the start's")


def knob_values(text: str) -> tuple[str, tuple[Value, ...]]:
    """A name and its values from name=1,2,3; ValueError for anything else."""
    name, equals, values = text.partition("=")
    try:
        numbers = tuple(int(value) for value in values.split(","))
    except ValueError:
        numbers = ()
    if not equals or not name or len(set(numbers)) < max(1, len(numbers)):
        raise ValueError(f"--knob {text!r} must be a name and distinct numbers: block_q=64,128")
    return name, numbers


def _task(spec_text: str, direction: str, sizes, threads: int, values) -> SearchTask:
    from ..problem.lengths import bucket_of
    from ..schedules.select import space_of
    from ..schedules.target import host_target
    from ..study.replay.make import restricted
    from ..tune.trial import SearchTask, Sizes

    spec, target, sizes = parse_spec(spec_text), host_target(), Sizes(*sizes)
    bucket = bucket_of(direction, sizes.seqlen_q, sizes.seqlen_k)
    space = restricted(space_of(spec, direction, target, bucket), values)
    return SearchTask(space, spec, direction, target.name, sizes, threads)
