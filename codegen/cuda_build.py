"""CUDA programs of many specs and architectures into one library, its PTX and its manifest."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.library import KernelRecord, Manifest, sha256_of, write_manifest, write_ptx
from ..errors import BuildError
from ..machine import architecture, system
from ..schedules.cuda.arch import CudaArch
from .cuda_link import compile_host, link_cuda
from .cuda_variants import Chosen, Compiled, CudaJob, attempt, cuda_job, settle
from .launcher import Step, Variant, function_text, image_symbol
from .nvcc import fat_binary
from .room import writing
from .sass.spills import refused_spills
from .staging import LIBRARY, Progress, counting, publishing
from .toolkit import find_toolkit
from .versions import build_versions

__all__ = ["CudaJob", "build_cuda", "cuda_job"]


@dataclass(frozen=True)
class Function:
    """A public function: what serves each architecture, its images, its host code's object."""

    job: CudaJob
    chosen: list[Chosen]
    images: dict[str, Future[bytes]]
    host: Future[bytes]


def build_cuda(
    jobs: Sequence[CudaJob],
    archs: Sequence[CudaArch],
    path: Path,
    progress: Progress | None = None,
    *,
    allow_spills: Collection[str] = (),
    guarded: bool = False,
) -> Path:
    """Compile ``jobs`` into one library at ``path``; allow_spills: names of launches that may.

    guarded: only this user may write to it, whatever the umask.

    Raises UnsupportedSpec for what no schedule serves, BuildError when compiling fails, SpillError
    when a kernel keeps too many registers in memory whatever its config.
    """
    if not jobs:
        raise BuildError("no kernels to build: name specs or presets, and their directions")
    find_toolkit()
    with writing(f"building {path}"), publishing(path, guarded=guarded) as staging:
        functions = _compile(jobs, allow_spills, progress)
        images = {name: f.result() for function in functions for name, f in function.images.items()}
        objects = [function.host.result() for function in functions]
        symbols = [function.job.symbol for function in functions]
        library = link_cuda(objects, images, symbols, staging / LIBRARY)
        kernels = [k for function in functions for c in function.chosen for k in c.kernels]
        ptx_sha256 = write_ptx(staging, {f"{k.launch.name}_kernel": k.ptx for k in kernels})
        records = tuple(map(_record, functions))
        write_manifest(staging, _manifest(library, archs, records, ptx_sha256))
    return path


def _compile(
    jobs: Sequence[CudaJob], allow_spills: Collection[str], progress: Progress | None
) -> list[Function]:
    """Lowering is Python, here; nvcc, ptxas and the C++ compiler run beside it."""
    finished = counting(len(jobs), progress)
    pool = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2))
    try:
        started = [attempt(pool, job, job.archs, 0) for job in jobs]
        settled = [
            settle(pool, job, attempts, allow_spills)
            for job, attempts in zip(jobs, started, strict=True)
        ]
        functions = [
            _start_host(pool, job, chosen, finished)
            for job, chosen in zip(jobs, settled, strict=True)
        ]
        for function in functions:
            function.host.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return functions


def _start_host(
    pool: Executor, job: CudaJob, chosen: list[Chosen], finished: Callable[[str], None]
) -> Function:
    images: dict[str, Future[bytes]] = {}
    columns = _common_meta([c.program.meta for c in chosen]).get("head_dim_pad")
    variants = [_variant(pool, c, images, columns) for c in chosen]
    text = function_text(job.symbol, _parameters(job, chosen), variants)
    host = pool.submit(compile_host, text)
    host.add_done_callback(lambda _: finished(job.symbol))
    return Function(job, chosen, images, host)


def _variant(
    pool: Executor, chosen: Chosen, images: dict[str, Future[bytes]], columns: int | None
) -> Variant:
    """The variant that ``chosen`` is; its images are packed beside, into ``images``.

    columns: of dq_acc as callers make it.
    """
    steps = []
    for kernel in chosen.kernels:
        source = kernel.source
        name = image_symbol(source, [cubin.arch for cubin in kernel.cubins])
        forward_compatible = 0 if source.only else source.compute
        images[name] = pool.submit(fat_binary, kernel.ptx, forward_compatible, kernel.cubins)
        indices = (chosen.program.parameters.index(a) for a in kernel.launch.arguments)
        steps.append(Step(source, name, tuple(indices)))
    sources = [kernel.source for kernel in chosen.kernels]
    compute = 0 if any(s.only for s in sources) else max(s.compute for s in sources)
    shared_bytes = max(kernel.launch.shared_bytes for kernel in chosen.kernels)
    own = chosen.program.meta.get("head_dim_pad")
    narrowed = None if own == columns else (chosen.program.parameters.index("dq_acc"), own)
    return Variant(chosen.archs, compute, shared_bytes, tuple(steps), narrowed)


def _parameters(job: CudaJob, chosen: Sequence[Chosen]) -> tuple[str, ...]:
    found = {c.program.parameters for c in chosen}
    if len(found) > 1:
        raise BuildError(f"{job.symbol}: its programs differ in their parameters: {found}")
    return found.pop()


def _record(function: Function) -> KernelRecord:
    job = function.job
    variants = [
        {"archs": [arch.name for arch in c.archs], "meta": c.program.meta, **c.program.config}
        for c in function.chosen
    ]
    launches = tuple(_launch_record(c, kernel) for c in function.chosen for kernel in c.kernels)
    meta = _common_meta([c.program.meta for c in function.chosen])
    config = {"variants": variants}
    source = _config_source(function.chosen)
    return KernelRecord(
        job.symbol, job.spec, job.direction, config, meta, launches, config_source=source
    )


def _config_source(chosen: Sequence[Chosen]) -> str:
    """Which architectures take which record: "sm_80, sm_86: default; sm_90: tuning_logs/..."."""
    archs: dict[str, list[str]] = {}
    for c in chosen:
        for arch in c.archs:
            archs.setdefault(c.program.sources.get(arch.name, ""), []).append(arch.name)
    return "; ".join(f"{', '.join(names)}: {source}" for source, names in archs.items() if source)


def _common_meta(metas: Sequence[dict[str, int]]) -> dict[str, int]:
    """What serves all variants: rows padded to whole tiles of each, columns to the most of any."""
    combine = {"block_q": math.lcm, "block_k": math.lcm, "block_v": max, "head_dim_pad": max}
    return {
        name: metas[0][name] if len(metas) == 1 else combine[name](*(meta[name] for meta in metas))
        for name in metas[0]
    }


def _launch_record(chosen: Chosen, kernel: Compiled) -> dict[str, Any]:
    """refused: why a build that was not told to allow it would refuse the kernel's spills."""
    refused = refused_spills(kernel.launch, kernel.cubins)
    return {
        **({"refused": refused} if refused else {}),
        "name": kernel.launch.name,
        "archs": [arch.name for arch in chosen.archs],
        "threads": kernel.launch.threads,
        "shared_bytes": kernel.launch.shared_bytes,
        "resources": {cubin.arch: cubin.resources.to_json() for cubin in kernel.cubins},
    }


def _manifest(
    library: Path, archs: Sequence[CudaArch], records: tuple[KernelRecord, ...], ptx_sha256: str
) -> Manifest:
    return Manifest(
        library=library.name,
        sha256=sha256_of(library),
        target={
            "name": "cuda",
            "archs": [arch.name for arch in archs],
            "system": system(),
            "architecture": architecture(),
        },
        cpu_features=(),
        versions={**build_versions(), "nvcc": find_toolkit().version},
        kernels=records,
        ptx_sha256=ptx_sha256,
    )
