"""``tvm-flash tune``: search the config of each spec, direction and length bucket."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..errors import TvmFlashError, UnsupportedSpec
from ..problem.lengths import FORWARD_BUCKETS, check_buckets
from .console import console, notes
from .show import require_tvm
from .show_table import show
from .spec_options import Specs, SpecsFile
from .spec_text import specs_of
from .tune_cuda import gpu_hardware, rank_on_cuda, request_on_gpu
from .tune_tables import Found, found_lines, found_table, log_table
from .tune_view import LiveView, PlainView, clock_text

if TYPE_CHECKING:
    from ..tune.hardware import Hardware
    from ..tune.request import Request

DIRECTIONS = ("forward", "backward")
# 128 and the number of SIGINT, as shells have it.
_INTERRUPTED = 130
_PLAIN: dict[str, bool] = {"highlight": False, "soft_wrap": True}


def tune(
    specs: Specs = None,
    specs_file: SpecsFile = None,
    target: Annotated[
        str, typer.Option(help="llvm (this machine), a CPU level behind --rpc, cuda or cuda:sm_90.")
    ] = "llvm",
    trials: Annotated[int, typer.Option(min=1, help="Configs to try for each kernel.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the random choices; another one is another search.")
    ] = 0,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Name in docs/search-strategies.md, or your own as module:Class; "
            "default: analytical-measured, or mlp where no analytical model serves."
        ),
    ] = None,
    cost_model: Annotated[
        str | None,
        typer.Option(help="Cost model of evolutionary or ranked: xgb, mlp or random."),
    ] = None,
    rpc: Annotated[str | None, typer.Option(help="HOST:PORT of a TVM RPC tracker.")] = None,
    rpc_key: Annotated[str, typer.Option(help="The devices' key at the tracker.")] = "",
    work_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for MetaSchedule's database files, and for records while --logs is full."
        ),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder of the records; default: where builds look.")
    ] = None,
    directions: Annotated[str, typer.Option(help="Directions to tune.")] = "forward,backward",
    buckets: Annotated[
        str,
        typer.Option(
            help=f"CPUs: length buckets to tune for, of {', '.join(FORWARD_BUCKETS)}. Default: "
            "all.",
            show_default=False,
        ),
    ] = ",".join(FORWARD_BUCKETS),
    seqlen: Annotated[
        int | None,
        typer.Option(help="Sequence length to time, of the one bucket in --buckets."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of a timed kernel.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Seconds of timing for each trial.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a compilation may take, and a check.")
    ] = 120.0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at once; default: one per core.")
    ] = None,
    check_logs: Annotated[
        Path | None, typer.Option(help="Only say which lines of this folder's logs are valid.")
    ] = None,
) -> None:
    """Search the fastest configs of the kernels for SPECS, and log them where builds look.

    Stop it with Ctrl-C; the same command goes on where it was.
    """
    if check_logs is not None:
        _check(check_logs)
        return
    require_tvm()
    problems = specs_of([*(specs or []), *map(str, specs_file or [])])
    wanted = _words("directions", directions, DIRECTIONS)
    folder = logs or _own_logs()
    if cost_model is not None:
        strategy = strategy or "evolutionary"
    if target.partition(":")[0] == "cuda":
        if rpc is not None:
            raise UnsupportedSpec("--rpc is for CPU targets: run on the machine with the GPU")
        searched = (strategy, cost_model, seed, trials, seconds, folder, work_dir)
        request = request_on_gpu(problems, wanted, target, searched)
        if request is None:
            rank_on_cuda(problems, wanted, target, trials, seed, folder)
        else:
            _search(request, gpu_hardware(jobs, timeout))
        return
    from ..tune.plan import find_target, tasks
    from ..tune.request import Request

    cpu = find_target(target, remote=rpc is not None)
    lengths = check_buckets(word.strip() for word in buckets.split(","))
    planned = tasks(problems, cpu, wanted, lengths, seqlen=seqlen, threads=threads)
    searched = (strategy, cost_model, seed, trials, seconds, folder, work_dir)
    request = Request(tuple(planned), cpu, *searched)
    restored = request.prepare()
    hardware = _hardware(rpc, rpc_key, cpu.name, jobs, timeout)
    if restored:
        notes.print(f"{restored} records that an earlier run could not write are in {folder} now")
    _search(request, hardware)


def _search(request: Request, hardware: Hardware) -> None:
    """Run the sessions, then say what was found; also what an interrupted one had found."""
    found: list[Found] = []
    started = time.monotonic()
    if request.strategy is None:
        notes.print(f"strategy: {', '.join(request.strategies)}", **_PLAIN)
    view = (LiveView if notes.is_terminal else PlainView)(notes, len(request.tasks))
    stopped: BaseException | None = None
    try:
        with _termination(), hardware, view:
            for session in request.sessions(hardware, view.tell):
                found.append(Found(session.state, None))
                view.begin(session.task)
                found[-1] = Found(session.state, session.run())
    except (KeyboardInterrupt, TvmFlashError) as error:
        stopped = error
    if waiting := request.waiting():
        notes.print(
            f"{waiting} could not be written to {request.logs}: the next run will", **_PLAIN
        )
    if found:
        show(found_table(found))
        for line in found_lines(found):
            console.print(escape(line), **_PLAIN)
    elapsed = clock_text(time.monotonic() - started)
    again = sum(one.state.replayed for one in found)
    known = f", {again} trials were in the log" if again else ""
    notes.print(escape(f"{elapsed} in all{known}; records are in {request.logs}"), **_PLAIN)
    if stopped is not None:
        _stop(stopped)


def _stop(reason: BaseException) -> None:
    """Leave with what a shell expects: 130 after Ctrl-C, 1 after a failure."""
    if isinstance(reason, KeyboardInterrupt):
        command = escape(shlex.join(["tvm-flash", *sys.argv[1:]]))
        notes.print(f"stopped; every trial is recorded. To go on: {command}", **_PLAIN)
        raise typer.Exit(_INTERRUPTED)
    notes.print(f"[bold red]error:[/] {escape(str(reason))}", **_PLAIN)
    raise typer.Exit(1) from reason


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM stops a search as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _words(name: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if unknown := [word for word in words if word not in known]:
        raise UnsupportedSpec(f"--{name} {','.join(unknown)!r} must be of {', '.join(known)}")
    return words


def _own_logs() -> Path:
    """The logs that builds read."""
    from ..schedules.records import log_folders

    if not (folders := log_folders()):
        raise UnsupportedSpec("this installation has no tuning_logs folder: give --logs DIR")
    return folders[0]


def _check(folder: Path) -> None:
    """Print what is in the logs of ``folder``; leave with status 1 where lines are invalid."""
    if not folder.is_dir():
        raise UnsupportedSpec(f"--check-logs {folder} is no folder")
    table, problems = log_table(folder)
    show(table)
    for problem in problems:
        console.print(escape(problem), **_PLAIN)
    if problems:
        notes.print(f"{len(problems)} lines are skipped by builds; all others are used")
        raise typer.Exit(1)
