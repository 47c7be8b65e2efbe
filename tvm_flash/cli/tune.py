"""``tvm-flash tune``: search the config of each spec, direction and length bucket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import UnsupportedSpec
from ..problem.lengths import check_buckets
from ..tune.directions import check_directions
from . import tune_options as options
from .answer import Answer
from .build_options import ALL_BUCKETS
from .console import notes
from .json_output import AsJson
from .show import require_tvm
from .spec_options import PresetNames, Specs, SpecsFile, grouped, own_specs
from .tune_carried import carry_candidates, tune_carried
from .tune_cpu import Timed, cpu_hardware, request_on_cpu
from .tune_cuda import Groups, gpu_hardware, rank_without_gpu, request_on_gpu
from .tune_rebuild import require_out
from .tune_search import search
from .tune_tables import log_table
from .unread import refuse_unread

if TYPE_CHECKING:
    from ..tune.hardware import Hardware

# Options that say what is searched, as --carry reads them; those that --carried reads.
_SEARCHED = ("specs", "specs_file", "preset", "target", "directions", "trials", "seed", "strategy")
_TIMED = ("seconds", "timeout", "logs")


def tune(
    context: typer.Context,
    specs: Specs = None,
    specs_file: SpecsFile = None,
    preset: PresetNames = None,
    target: options.Target = "llvm",
    trials: options.Trials = 100,
    seed: options.Seed = 0,
    strategy: options.Strategy = None,
    cost_model: options.CostModel = None,
    rpc: options.Rpc = None,
    rpc_key: options.RpcKey = "",
    work_dir: options.WorkDir = None,
    logs: options.Logs = None,
    out: options.Out = None,
    directions: options.Directions = "forward,backward",
    buckets: options.Buckets = ALL_BUCKETS,
    seqlen: options.Seqlen = None,
    threads: options.Threads = 1,
    seconds: options.Seconds = 1.0,
    timeout: options.Timeout = 120.0,
    jobs: options.Jobs = None,
    carry: options.Carry = None,
    carried: options.Carried = None,
    check_logs: options.CheckLogs = None,
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
    from ..tune.request import Method

    method = Method(strategy, cost_model, seed, trials, seconds, folder, work_dir)
    if target.partition(":")[0] == "cuda":
        if rpc is not None:
            raise UnsupportedSpec("--rpc is for CPU targets: run on the machine with the GPU")
        on_gpu = request_on_gpu(groups, target, method)
        if on_gpu is None:
            _refuse_out(out)
            rank_without_gpu(groups, target, trials, seed, folder, answer)
            return
        request, out = on_gpu, out or Path(f"kernels_{on_gpu.target.name}")
        hardware: Callable[[], Hardware] = partial(gpu_hardware, jobs, timeout)
    else:
        timed = Timed(check_buckets(_names(buckets)), seqlen, threads)
        request = request_on_cpu(groups, target, timed, method, remote=rpc is not None)
        hardware = partial(cpu_hardware, rpc, rpc_key, request.target.name, jobs, timeout)
    require_out(out)
    if restored := request.prepare():
        notes.print(f"{restored} records that an earlier run could not write are in {folder} now")
    named = [*(specs or []), *_words("--specs", specs_file), *_words("--preset", preset)]
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


def _words(name: str, values: Sequence[object] | None) -> list[str]:
    return [word for value in values or [] for word in (name, str(value))]


def _directions(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_names(text)))
    check_directions(found)
    return found


def _names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [word.strip() for word in text.split(",")]


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
