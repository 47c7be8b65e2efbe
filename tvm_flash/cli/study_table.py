"""``tvm-flash study table``: measure every point of a space, for searches to be replayed on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import PLAIN, console, progress, refuse_unwritable
from .direction import LISTED, Direction
from .json_output import AsJson, print_json
from .show import require_tvm
from .spec_text import parse_spec

if TYPE_CHECKING:
    from ..schedules.space import Value
    from ..tune.trial import SearchTask


def _number(text: str, least: int = 1) -> Any:
    return typer.Option(metavar="N", min=least, help=text)


def table(
    spec: Annotated[str, typer.Option(metavar="SPEC", help="As in `tvm-flash show`: f32,d=64.")],
    knob: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=N,...",
            help="A knob and its values, as block_q=64,128,256; may be repeated.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="FILE.jsonl.gz to write.")
    ],
    direction: Annotated[
        Direction,
        typer.Option(metavar="DIRECTION", help=f"{LISTED}."),
    ] = Direction.forward,
    seqlen: Annotated[int, _number("Queries and keys.")] = 512,
    batch: Annotated[int, _number("Sequences.")] = 1,
    heads: Annotated[int, _number("Heads, of queries and of keys.")] = 8,
    threads: Annotated[int, _number("Threads of torch.")] = 1,
    passes: Annotated[int, _number("Passes over the table, in random order.")] = 5,
    pairs: Annotated[int, _number("Repeats of a point in a pass.")] = 5,
    workers: Annotated[int, _number("Processes that compile.")] = 2,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="For compiling and checking a point.")
    ] = 120.0,
    seed: Annotated[int, _number("Seed of the order of measuring.", least=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Compile, check and time every valid point of a space: hardware for `study search`.

    Knobs that are not given keep the value of the default config.

    The same command continues an interrupted run.
    """
    require_tvm()
    refuse_unwritable(out)
    from ..study.replay import table as replay_table
    from ..study.replay.make import Effort, make

    values = dict(map(knob_values, knob))
    effort = Effort(passes, pairs, workers, timeout, seed)
    task = _task(spec, direction.value, (batch, heads, heads, seqlen, seqlen), threads, values)
    points = len(task.space.points)
    with progress("table", points * (1 + passes)) as advance:
        make(task, out, effort, advance)
    made = replay_table.read(out)
    best, start = made.seconds[made.best], made.seconds[made.start]
    knobs = dict(zip(made.head["knobs"], made.best, strict=True))
    if as_json:
        times = {"seconds": best, "start_seconds": start}
        print_json({"file": str(out), "points": points, "best": knobs, **times})
        return
    console.print(f"{out}: {points} points around {task.space.start}", **PLAIN)
    console.print(f"best: {knobs}", **PLAIN)
    console.print(f"{best * 1e3:.3f} ms, {best / start:.3f} of the start's", **PLAIN)


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
