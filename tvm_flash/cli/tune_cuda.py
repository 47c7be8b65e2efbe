"""``tvm-flash tune --target cuda``: measured on a GPU at hand, else ranked by a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bench.table import Table, numbers, words
from ..errors import UnsupportedSpec
from ..problem.spec import AttentionSpec
from .answer import Answer
from .console import PLAIN, notes, progress
from .show_table import show
from .tune_view import changes, failures_text

if TYPE_CHECKING:
    from ..schedules.cuda.arch import CudaArch
    from ..tune.hardware import Hardware
    from ..tune.request import Method, Request

_SHOWN = 5


# Specs that come in the same directions, and these.
Groups = Sequence[tuple[Sequence[AttentionSpec], Sequence[str]]]


def request_on_gpu(groups: Groups, target: str, method: Method) -> Request | None:
    """The searches on this machine's GPU; None without one.

    Raises UnsupportedSpec, also for a target that is not this GPU's, and BuildError without nvcc.
    """
    from ..codegen.toolkit import find_toolkit
    from ..tune.cuda_search import gpu_at_hand, gpu_tasks
    from ..tune.request import Request

    arch = gpu_at_hand(target)
    if arch is None:
        return None
    find_toolkit()
    tasks = [task for group in groups for task in gpu_tasks(*group, arch)]
    return Request(tuple(tasks), arch, method)


def gpu_hardware(jobs: int | None, timeout: float) -> Hardware:
    """This machine's GPU."""
    from ..bench.host import usable_cores
    from ..tune.cuda_hardware import CudaHardware

    return CudaHardware(jobs or usable_cores(), timeout)


def rank_without_gpu(
    groups: Groups, target: str, trials: int, seed: int, logs: Path, answer: Answer
) -> None:
    """``rank_on_cuda`` of all ``groups``, with words that nothing is measured, and what to do."""
    named = ", ".join(arch.name for arch in modelled_archs(target))
    notes.print(
        f"no CUDA GPU here: configs are ranked by a model of {named}; nothing is timed", **PLAIN
    )
    found = [rank_on_cuda(*group, target, trials, seed, logs, answer.table) for group in groups]
    answer.document(list(chain.from_iterable(found)))
    notes.print(
        "builds take the defaults until configs are measured: run this command on a machine with "
        "such a GPU and nvcc, and carry its records here (docs/tuning-cuda.md)",
        **PLAIN,
    )


def rank_on_cuda(
    specs: Sequence[AttentionSpec],
    directions: Sequence[str],
    target: str,
    trials: int,
    seed: int,
    logs: Path,
    tell: Callable[[Table], object] = show,
) -> list[dict[str, Any]]:
    """Rank ``trials`` configs for each spec, direction and architecture of ``target``.

    target: "cuda:sm_80,sm_90". tell: is given the table of each. Writes rankings to ``logs``, and
    gives them with their files; raises UnsupportedSpec.
    """
    from ..tune.analytical.cuda import rank_cuda
    from ..tune.analytical.ranking import ranking_path
    from ..tune.trial_log import check_writable

    check_writable(logs)
    archs, found = modelled_archs(target), []
    for spec in dict.fromkeys(specs):
        for direction in directions:
            for arch in archs:
                name = f"{spec.name} {direction} {arch.name}"
                with progress(name, trials) as advance:
                    try:
                        document = rank_cuda(
                            spec, direction, arch, trials, seed, logs,
                            lambda done, total, text, advance=advance: advance(text),
                        )  # fmt: skip
                    except ValueError as error:
                        raise UnsupportedSpec(f"{name}: {error}") from error
                tell(ranking_table(name, document))
                path = ranking_path(logs, arch.name, spec, direction)
                notes.print(f"written to {path}", **PLAIN)
                found.append({"file": str(path), **document})
    return found


def modelled_archs(target: str) -> tuple[CudaArch, ...]:
    """The architectures of ``target``; of "cuda" alone those that there is a model of.

    Raises UnsupportedSpec for one that was named and has no model.
    """
    from ..schedules.cuda.arch import cuda_archs
    from ..tune.gpu import GPUS, gpu_of

    archs = cuda_archs(target)
    if target.partition(":")[2]:
        for arch in archs:
            gpu_of(arch)
        return archs
    known = tuple(arch for arch in archs if arch.name in GPUS)
    if left := [arch.name for arch in archs if arch not in known]:
        notes.print(f"not ranked, for there is no model: {', '.join(left)}", highlight=False)
    return known


def ranking_table(name: str, document: Mapping[str, Any]) -> Table:
    """The first configs of a ranking and, after them, the default's."""
    default = document["default"]
    rows = [
        (
            str(rank),
            f"{entry['predicted_seconds'] * 1e6:.4g}",
            str(entry["registers"]),
            f"{entry['shared_bytes'] / 1024:g}",
            entry["bound"],
            changes(entry["config"], default["config"]),
        )
        for rank, entry in enumerate(document["ranking"], 1)
        if rank <= _SHOWN or rank == default["rank"]
    ]
    columns = (
        *numbers("rank"), *numbers("predicted", unit="us"), *numbers("registers"),
        *numbers("shared", unit="KiB"), *words("bound", "differs in"),
    )  # fmt: skip
    unranked = failures_text(Counter(entry["outcome"] for entry in document["unranked"]))
    sizes = ", ".join(f"{size}={number}" for size, number in document["problem"].items())
    title = (
        f"{name}: predicted, not measured; builds do not read it\n{sizes}\nnot ranked: {unranked}"
    )
    return Table(title, columns, rows)
