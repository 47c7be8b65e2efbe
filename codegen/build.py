"""Ahead of time: many kernels into one library and its manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import tvm_import  # noqa: F401  tvm whole, before what follows imports parts of it

# isort: split
from ..artifact.library import KernelRecord, Manifest, sha256_of, symbol_name, write_manifest
from ..errors import BuildError
from ..machine import architecture, system
from ..problem.lengths import FORWARD_BUCKETS, check_buckets, kept_buckets
from ..problem.presets import all_pairs
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import cuda_archs
from ..schedules.records import record_folders
from ..schedules.select import Chosen, Scheduled, choose_all, scheduled_module
from ..schedules.target import CpuTarget, cpu_target, host_target
from .cpu import llvm_version, prepared, write_object
from .cuda_build import build_cuda, cuda_job
from .linker import link
from .room import COMPILING, require_memory, writing
from .staging import LIBRARY, Progress, counting, publishing
from .versions import build_versions


@dataclass(frozen=True)
class Job:
    """One kernel to compile; ``schedule`` is called when its turn comes."""

    symbol: str
    spec: AttentionSpec
    direction: str
    schedule: Callable[[], Scheduled]
    buckets: tuple[str, ...] = ()
    config_source: str = ""


def build(
    specs: Iterable[AttentionSpec] = (),
    target: str | CpuTarget = "llvm",
    path: str | Path = "kernels",
    *,
    presets: Sequence[str] = (),
    directions: Sequence[str] = ("forward", "backward"),
    buckets: Sequence[str] = FORWARD_BUCKETS,
    logs: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile ``specs`` in ``directions`` into the artifact directory ``path``, and return it.

    presets: names of ``problem.presets.PRESETS``; each adds its specs, in those of ``directions``
    that it has. logs: a folder of tuning records that come before the package's own.

    target: "llvm" is this machine; otherwise a name that tvm_flash.schedules.target knows, or a
    CpuTarget; "cuda", or "cuda:sm_80,sm_90", is one library for those GPUs. buckets: for CPUs, the
    lengths to make kernels for (tiny, decode, short, medium, long: problem/lengths.py), one kernel
    for those that share a config; a loaded library serves the others with its nearest kernel.
    progress(done, total, symbol) is called after each kernel, one call at a time, from worker
    threads. An artifact already at ``path`` is replaced. Raises UnsupportedSpec for a spec no
    schedule serves, ValueError for an unknown preset, direction or bucket, BuildError when
    compiling, linking or writing fails.
    """
    pairs = all_pairs(specs, presets, directions)
    return build_pairs(pairs, target, path, buckets=buckets, logs=logs, progress=progress)


def build_pairs(
    pairs: Sequence[tuple[AttentionSpec, str]],
    target: str | CpuTarget,
    path: str | Path,
    *,
    buckets: Sequence[str] = FORWARD_BUCKETS,
    logs: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """``build`` of ``pairs``, each a spec and the direction that it is built in."""
    buckets, folders = check_buckets(buckets), record_folders(logs)
    if isinstance(target, str) and target.startswith("cuda"):
        archs = cuda_archs(target)
        cuda_jobs = [cuda_job(*pair, archs, folders) for pair in pairs]
        return build_cuda(cuda_jobs, archs, Path(path), progress)
    target = find_target(target)
    # On CPUs every backward gives the same bits each run, and the forward divides keys by itself.
    named = {
        "backward_deterministic": "backward",
        "tables_deterministic": "tables",
        "forward_split": "forward",
    }
    jobs = [
        scheduling(spec, direction, target, chosen)
        for spec, direction in dict.fromkeys((spec, named.get(d, d)) for spec, d in pairs)
        for chosen in choose_all(spec, direction, target, kept_buckets(direction, buckets), folders)
    ]
    return build_jobs(jobs, target, Path(path), progress)


def find_target(target: str | CpuTarget) -> CpuTarget:
    """The CpuTarget that ``target`` names; "llvm" is this machine."""
    if not isinstance(target, str):
        return target
    return host_target() if target == "llvm" else cpu_target(target)


def scheduling(spec: AttentionSpec, direction: str, target: CpuTarget, chosen: Chosen) -> Job:
    """The job of the kernel with a chosen config."""
    bucket = chosen.main_bucket
    symbol = symbol_name(spec, direction, bucket)

    def schedule() -> Scheduled:
        return scheduled_module(spec, direction, target, chosen.config, bucket=bucket)

    return Job(symbol, spec, direction, schedule, chosen.buckets, chosen.source)


def build_jobs(
    jobs: Sequence[Job],
    target: CpuTarget,
    path: Path,
    progress: Progress | None = None,
    *,
    guarded: bool = False,
) -> Path:
    """Compile ``jobs``, link them, and put the artifact at ``path`` in one step.

    guarded: only this user may write to it, whatever the umask.
    """
    if not jobs:
        raise BuildError("no kernels to build: name specs or presets, and their directions")
    _refuse_foreign(target)
    require_memory(COMPILING, f"building {path}")
    with writing(f"building {path}"), publishing(path, guarded=guarded) as staging:
        kernels = _compile(jobs, target, staging.parent, progress)
        library = link([o for o, _ in kernels], [r.symbol for _, r in kernels], staging / LIBRARY)
        write_manifest(staging, _manifest(library, target, [record for _, record in kernels]))
    return path


def _compile(
    jobs: Sequence[Job], target: CpuTarget, folder: Path, progress: Progress | None
) -> list[tuple[Path, KernelRecord]]:
    """Object and record of each job. Scheduling is Python; LLVM runs beside it in threads."""
    finished = counting(len(jobs), progress)
    pending: list[tuple[Future[Path], KernelRecord]] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for number, job in enumerate(jobs):
            plan = job.schedule()
            known = (job.symbol, job.spec, job.direction, plan.config, plan.meta)
            record = KernelRecord(*known, buckets=job.buckets, config_source=job.config_source)
            future = pool.submit(write_object, prepared(plan), target, folder / f"{number}.o")
            future.add_done_callback(lambda _, symbol=job.symbol: finished(symbol))
            pending.append((future, record))
        return [(future.result(), record) for future, record in pending]
    finally:  # after a failure or Ctrl-C nobody waits for what has not begun
        pool.shutdown(cancel_futures=True)


def _manifest(library: Path, target: CpuTarget, records: Sequence[KernelRecord]) -> Manifest:
    return Manifest(
        library=library.name,
        sha256=sha256_of(library),
        target={
            "name": target.name,
            "mcpu": target.mcpu,
            "system": system(),
            "architecture": architecture(),
        },
        cpu_features=tuple(sorted(target.features)),
        versions={**build_versions(), "llvm": llvm_version()},
        kernels=tuple(records),
    )


def _refuse_foreign(target: CpuTarget) -> None:
    """Objects for another architecture would need its linker and its libtvm_ffi."""
    needed = "x86_64" if target.name.startswith("x86") else "aarch64"
    if needed != architecture():
        raise BuildError(
            f"target={target.name!r} is linked on {needed}, this is {architecture()}: build there"
        )
