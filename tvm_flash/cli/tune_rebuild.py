"""The tuned kernels as a library: built from the records, and what to do with those elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifact.library import verify
from ..schedules.record_format import log_name
from .console import counted_progress

if TYPE_CHECKING:
    from ..tune.request import Request
    from ..tune.trial import SearchTask


def require_out(out: Path | None) -> None:
    """Raise BuildError where no library can be put at ``out``; None: none is to be."""
    if out is not None:
        from ..codegen.staging import require_place

        require_place(out)


def rebuild(request: Request, out: Path) -> Path:
    """Build what ``request`` searched into ``out``.

    Raises BuildError, UnsupportedSpec; the records stay as they are.
    """
    from ..codegen.build import build_pairs

    tasks = request.tasks
    pairs = list(dict.fromkeys((task.spec, task.direction) for task in tasks))
    target = f"cuda:{request.target.name}" if on_gpu(tasks) else request.target
    with counted_progress("build") as step:
        return build_pairs(pairs, target, out, logs=request.method.logs, progress=step)


def built_lines(path: Path) -> list[str]:
    """Which record each kernel of the library at ``path`` takes."""
    library, manifest = verify(path)
    kernels = [f"  {kernel.symbol}  {kernel.config_source}" for kernel in manifest.kernels]
    return [f"built with the records: {library}", *kernels]


def record_lines(request: Request, named: Sequence[str]) -> list[str]:
    """Where the records of ``request`` lie, and how another machine builds with them.

    named: the words of the command line that name its specs.
    """
    tasks = request.tasks
    places = (request.method.logs / task.target / log_name(task.spec) for task in tasks)
    written = [f"  {path}" for path in dict.fromkeys(places) if path.is_file()]
    if not written:
        return []
    folder = request.method.logs / tasks[0].target
    target = ("cuda:" if on_gpu(tasks) else "") + tasks[0].target
    alone = ["--forward-only"] * ({task.direction for task in tasks} == {"forward"})
    command = ["tvm-flash", "build", *named, *alone, "--target", target, "--logs", "LOGS"]
    return [
        "records:",
        *written,
        f"to build with them on another machine, copy {folder} there as LOGS/{folder.name}:",
        f"  {shlex.join(command)}",
    ]


def on_gpu(tasks: Sequence[SearchTask]) -> bool:
    """Whether ``tasks`` are of a GPU's architecture."""
    from ..schedules.cuda.arch import ARCHS

    return tasks[0].target in ARCHS
