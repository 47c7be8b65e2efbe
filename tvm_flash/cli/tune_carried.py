"""``tvm-flash tune --carry`` and ``--carried``: candidates built here, timed on another machine."""

from __future__ import annotations

from pathlib import Path

from ..errors import UnsupportedSpec
from ..problem.text import text_of
from .answer import Answer
from .console import PLAIN, counted_progress, notes
from .tune_cuda import Groups
from .tune_rebuild import require_out
from .tune_search import search


def carry_candidates(
    groups: Groups,
    target: str,
    trials: int,
    seed: int,
    strategy: str | None,
    out: Path,
    answer: Answer,
) -> None:
    """Build the candidates of all searches for the one architecture of ``target`` into ``out``."""
    from ..schedules.cuda.arch import cuda_archs
    from ..tune.carried import carry
    from ..tune.cuda_search import gpu_tasks

    archs = cuda_archs(target) if target.startswith("cuda") else ()
    if len(archs) != 1:
        name = archs[-1].name if archs else "sm_90"
        raise UnsupportedSpec(f"--carry is for one GPU: write --target cuda:{name}")
    (arch,) = archs
    require_out(out)
    tasks = [task for group in groups for task in gpu_tasks(*group, arch)]
    with counted_progress("build") as step:
        path = carry(tasks, arch, out, trials, seed, strategy, step)
    answer.line(f"candidates for {arch.name}: {path}")
    answer.document({"candidates": str(path), "arch": arch.name, "searches": len(tasks)})
    notes.print(
        f"carry it to a machine with such a GPU, then: tvm-flash tune --carried {out.name} "
        "--logs LOGS",
        **PLAIN,
    )


def tune_carried(path: Path, seconds: float, timeout: float, logs: Path, answer: Answer) -> None:
    """Search the candidates at ``path`` on this machine's GPU, and record in ``logs``."""
    from ..tune.carried import CarriedHardware, carried_request, carried_tasks
    from ..tune.cuda_search import gpu_at_hand

    arch, tasks = carried_tasks(path)
    if gpu_at_hand(f"cuda:{arch.name}") is None:
        raise UnsupportedSpec(f"no CUDA GPU here: {path} is for an {arch.name}")
    request = carried_request(tasks, arch, seconds, logs)
    request.prepare()
    traced = any(task.spec.score_mod or task.spec.mask_mod for task in tasks)
    specs = dict.fromkeys(task.spec for task in tasks)
    named = ["SPECS"] if traced else [*map(text_of, specs)]
    search(request, CarriedHardware(path, timeout), None, named, answer)
