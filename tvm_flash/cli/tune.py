"""``tvm-flash tune``: search the config of each spec, direction and length bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UnsupportedSpec
from ..problem.lengths import FORWARD_BUCKETS, check_buckets
from ..tune.directions import check_directions
from .answer import Answer
from .console import notes
from .json_output import AsJson
from .show import require_tvm
from .spec_options import PresetNames, Specs, SpecsFile, grouped, own_specs
from .tune_carried import carry_candidates, tune_carried
from .tune_cuda import Groups, gpu_hardware, rank_without_gpu, request_on_gpu
from .tune_rebuild import require_out
from .tune_search import search
from .tune_tables import log_table
from .unread import refuse_unread

if TYPE_CHECKING:
    from ..tune.hardware import Hardware
    from ..tune.request import Request

# Options that say what is searched, as --carry reads them; those that --carried reads.
_SEARCHED = ("specs", "specs_file", "preset", "target", "directions", "trials", "seed", "strategy")
_TIMED = ("seconds", "timeout", "logs")


def tune(
    context: typer.Context,
    specs: Specs = None,
    specs_file: SpecsFile = None,
    preset: PresetNames = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="TARGET",
            help="llvm (this machine), a CPU level behind --rpc, cuda or cuda:sm_90.",
        ),
    ] = "llvm",
    trials: Annotated[
        int, typer.Option(metavar="N", min=1, help="Configs to try for each kernel.")
    ] = 100,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Seed of the random choices; another one is another search.",
        ),
    ] = 0,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name in docs/search-strategies.md, or your own as module:Class. "
            "Default: analytical-measured, or mlp where no analytical model serves.",
        ),
    ] = None,
    cost_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Cost model of evolutionary or ranked: xgb, mlp or random."
        ),
    ] = None,
    rpc: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="A TVM RPC tracker.")] = None,
    rpc_key: Annotated[
        str, typer.Option(metavar="KEY", help="The devices' key at the tracker.")
    ] = "",
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for MetaSchedule's database files, and for records while --logs is full.",
        ),
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the records. Default: where builds look."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Build what was tuned into this folder at the end. Default: on a GPU "
            "kernels_ARCH.",
        ),
    ] = None,
    directions: Annotated[
        str, typer.Option(metavar="NAMES", help="Directions to tune.")
    ] = "forward,backward",
    buckets: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"CPUs: length buckets to tune for, of {', '.join(FORWARD_BUCKETS)}. Default: "
            "all.",
            show_default=False,
        ),
    ] = ",".join(FORWARD_BUCKETS),
    seqlen: Annotated[
        int | None,
        typer.Option(metavar="N", help="Sequence length to time, of the one bucket in --buckets."),
    ] = None,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, help="Threads of a timed kernel.")
    ] = 1,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.01, help="Timing of each trial.")
    ] = 1.0,
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, help="What a compilation may take, and a check."),
    ] = 120.0,
    jobs: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Compilers at once. Default: one per core."),
    ] = None,
    carry: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Only build the candidates for one GPU into this folder, to be timed.",
        ),
    ] = None,
    carried: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Time the candidates in this folder; needs neither TVM nor nvcc."
        ),
    ] = None,
    check_logs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Only say which lines of this folder's logs are valid."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the fastest configs of the kernels for each SPEC; log them where builds look.

    Stop it with Ctrl-C; the same command goes on where it was.

    Exit status 1: a search failed. 130: it was stopped.
    """
    answer = Answer(as_json)
    if check_logs is not None:
        _check(check_logs, answer)
        return
    folder = logs or _own_logs()
    if carried is not None:
        refuse_unread(context, "--carried", ("carried", "as_json", *_TIMED))
        tune_carried(carried, seconds, timeout, folder, answer)
        return
    if carry is not None:
        refuse_unread(context, "--carry", ("carry", "as_json", *_SEARCHED))
    require_tvm()
    groups = grouped(own_specs(specs, specs_file, preset), preset, _directions(directions))
    groups = _dense(_attention(groups))
    if carry is not None:
        carry_candidates(groups, target, trials, seed, strategy, carry, answer)
        return
    if cost_model is not None:
        strategy = strategy or "evolutionary"
    searched = (strategy, cost_model, seed, trials, seconds, folder, work_dir)
    if target.partition(":")[0] == "cuda":
        if rpc is not None:
            raise UnsupportedSpec("--rpc is for CPU targets: run on the machine with the GPU")
        on_gpu = request_on_gpu(groups, target, searched)
        if on_gpu is None:
            _refuse_out(out)
            rank_without_gpu(groups, target, trials, seed, folder, answer)
            return
        request, out = on_gpu, out or Path(f"kernels_{on_gpu.target.name}")
        hardware: Callable[[], Hardware] = partial(gpu_hardware, jobs, timeout)
    else:
        cpu_options = (buckets, seqlen, threads)
        request = _request_on_cpu(groups, target, rpc is not None, cpu_options, searched)
        hardware = partial(_hardware, rpc, rpc_key, request.target.name, jobs, timeout)
    require_out(out)
    if restored := request.prepare():
        notes.print(f"{restored} records that an earlier run could not write are in {folder} now")
    named = [*(specs or []), *_options("--specs", specs_file), *_options("--preset", preset)]
    search(request, hardware(), out, named, answer)


def _attention(groups: Groups) -> Groups:
    """``groups``; UnsupportedSpec where none of the specs has a direction that is searched."""
    if not groups:
        raise UnsupportedSpec(
            "linear attention, the softmax of rows and gradients of tables have one config: "
            "nothing is searched, build them with tvm-flash build"
        )
    return groups


def _dense(groups: Groups) -> Groups:
    """``groups`` without packed and paged specs, which take the numbers of the dense ones.

    Raises UnsupportedSpec where no other is left.
    """
    kept = [([s for s in specs if s.sequences == "dense"], found) for specs, found in groups]
    left_out = sum(len(specs) for specs, _ in groups) - sum(len(specs) for specs, _ in kept)
    said = f"{left_out} packed and paged specs take the numbers of the dense ones"
    kept = [(specs, found) for specs, found in kept if specs]
    if left_out and not kept:
        raise UnsupportedSpec(f"{said}: search those")
    if left_out:
        notes.print(f"{said}: not searched")
    return kept


def _refuse_out(out: Path | None) -> None:
    """Raise UnsupportedSpec for a library of what no GPU has measured."""
    if out is not None:
        raise UnsupportedSpec(
            f"--out {out}: there is no CUDA GPU here, so nothing is tuned that could be built; "
            "leave it out to rank configs by a model, or build the defaults with tvm-flash build"
        )


def _options(name: str, values: Sequence[object] | None) -> list[str]:
    return [word for value in values or [] for word in (name, str(value))]


def _request_on_cpu(
    groups: Groups, target: str, remote: bool, options: tuple, searched: tuple
) -> Request:
    """The searches on ``target``; options: buckets, seqlen, threads as the command has them."""
    from ..tune.plan import find_target, tasks
    from ..tune.request import Request

    buckets, seqlen, threads = options
    cpu = find_target(target, remote=remote)
    lengths = check_buckets(word.strip() for word in buckets.split(","))
    planned = [
        task
        for specs, directions in groups
        for task in tasks(specs, cpu, directions, lengths, seqlen=seqlen, threads=threads)
    ]
    return Request(tuple(planned), cpu, *searched)


def _hardware(rpc: str | None, key: str, target: str, jobs: int | None, timeout: float) -> Hardware:
    if rpc is None:
        from ..bench.host import usable_cores
        from ..tune.local import LocalHardware

        return LocalHardware(jobs or usable_cores(), timeout)
    from ..tune.rpc.hardware import RpcHardware

    host, _, port = rpc.rpartition(":")
    if not host or not port.isdecimal() or not key:
        raise ValueError(f"--rpc {rpc!r} --rpc-key {key!r} must be HOST:PORT and the devices' key")
    return RpcHardware(host, int(port), key, target, limit=timeout, jobs=jobs)


def _directions(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    check_directions(words)
    return words


def _own_logs() -> Path:
    """The logs that builds read."""
    from ..schedules.records import log_folders

    if not (folders := log_folders()):
        raise UnsupportedSpec("this installation has no tuning_logs folder: give --logs DIR")
    return folders[0]


def _check(folder: Path, answer: Answer) -> None:
    """Print what is in the logs of ``folder``; leave with status 1 where lines are invalid."""
    if not folder.is_dir():
        raise UnsupportedSpec(f"--check-logs {folder} is no folder")
    table, problems = log_table(folder)
    answer.table(table)
    for problem in problems:
        answer.line(problem)
    names = [column.name for column in table.columns]
    rows = [(file, *map(int, counts)) for file, *counts in table.rows]
    logs = [dict(zip(names, row, strict=True)) for row in rows]
    answer.document({"logs": logs, "problems": problems})
    if problems:
        notes.print(f"{len(problems)} lines are skipped by builds; all others are used")
        raise typer.Exit(1)
