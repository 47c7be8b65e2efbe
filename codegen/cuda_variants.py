"""Which program serves which architecture: the best one that stays in registers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path

from ..artifact.library import symbol_name
from ..errors import BuildError, SpillError
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import CudaArch
from ..schedules.cuda.program import CudaProgram, Launch
from .cuda import KernelSource, kernel_sources, ptx_version
from .nvcc import Cubin, assemble, compile_ptx
from .sass.spills import refused_spills

# Programs, and the architectures that each serves.
Served = list[tuple[tuple[CudaArch, ...], CudaProgram]]


@dataclass(frozen=True)
class CudaJob:
    """One public function to compile for ``archs``.

    programs(archs, choice): the programs that serve ``archs``; choice 0 is the best there is, 1 the
    next, and so on to the last, which it repeats.
    """

    symbol: str
    spec: AttentionSpec
    direction: str
    archs: tuple[CudaArch, ...]
    programs: Callable[[tuple[CudaArch, ...], int], Served]


@dataclass(frozen=True)
class Compiled:
    """A launch, its PTX and its machine code by architecture."""

    launch: Launch
    source: KernelSource
    ptx: str
    cubins: tuple[Cubin, ...]


@dataclass(frozen=True)
class Attempt:
    """A program that is being compiled for ``archs``."""

    archs: tuple[CudaArch, ...]
    program: CudaProgram
    kernels: tuple[Future[Compiled], ...]


@dataclass(frozen=True)
class Chosen:
    """A program compiled for the architectures that it will serve."""

    archs: tuple[CudaArch, ...]
    program: CudaProgram
    kernels: tuple[Compiled, ...]


def cuda_job(
    spec: AttentionSpec,
    direction: str,
    archs: tuple[CudaArch, ...],
    folders: Sequence[Path] | None = None,
) -> CudaJob:
    """The job of one kernel for ``archs``; folders: of records, the package's own unless given."""

    def programs(archs: tuple[CudaArch, ...], choice: int) -> Served:
        from ..schedules.cuda.select import cuda_programs

        return cuda_programs(spec, direction, archs, choice=choice, folders=folders)

    return CudaJob(symbol_name(spec, direction), spec, direction, archs, programs)


def attempt(
    pool: Executor, job: CudaJob, archs: tuple[CudaArch, ...], choice: int
) -> list[Attempt]:
    """Lower the programs of ``choice`` (in this thread) and start to compile them."""
    started = []
    for served, program in job.programs(archs, choice):
        sources = kernel_sources(program, ptx_version(served))
        kernels = [
            pool.submit(_compile, launch, source, served)
            for launch, source in zip(program.launches, sources, strict=True)
        ]
        started.append(Attempt(served, program, tuple(kernels)))
    if not started:
        raise BuildError(f"{job.symbol}: no program for {', '.join(a.name for a in archs)}")
    return started


def settle(
    pool: Executor, job: CudaJob, attempts: list[Attempt], allow_spills: Collection[str]
) -> list[Chosen]:
    """Wait for ``attempts``; where spills are refused, try the next choice for that architecture.

    Raises SpillError for a kernel whose spills are refused in the last choice too. What a spill may
    cost is decided in ``sass/spills.py``.
    """
    chosen: list[Chosen] = []
    done: list[Chosen] = []
    tried: set[tuple[str, ...]] = set()
    choice = 0
    while attempts:
        if any(key in tried for a in attempts for key in _keys(a)):
            _refuse(done, allow_spills)
        tried.update(key for a in attempts for key in _keys(a))
        done = [Chosen(a.archs, a.program, tuple(k.result() for k in a.kernels)) for a in attempts]
        chosen += [
            _only(c, [a for a in c.archs if not _is_refused(c, a, allow_spills)]) for c in done
        ]
        left = tuple(a for c in done for a in c.archs if _is_refused(c, a, allow_spills))
        choice += 1
        attempts = attempt(pool, job, left, choice) if left else []
    return _merged([c for c in chosen if c.archs])


def _compile(launch: Launch, source: KernelSource, archs: Sequence[CudaArch]) -> Compiled:
    ptx = compile_ptx(source)
    cubins = tuple(assemble(ptx, source.name, arch.name) for arch in archs)
    return Compiled(launch, source, ptx, cubins)


def _keys(attempt: Attempt) -> list[tuple[str, ...]]:
    """Architecture and kernels: what comes a second time was the last choice."""
    names = [launch.name for launch in attempt.program.launches]
    return [(arch.name, *names) for arch in attempt.archs]


def _is_refused(chosen: Chosen, arch: CudaArch, allow_spills: Collection[str]) -> bool:
    return any(_spill_reasons(kernel, allow_spills, arch.name) for kernel in chosen.kernels)


def _spill_reasons(
    kernel: Compiled, allow_spills: Collection[str], arch: str | None = None
) -> list[str]:
    """Why ``kernel`` keeps too much in memory; arch: in this one's machine code alone.

    allow_spills: names of launches that may, beside those whose schedule lets them.
    """
    if kernel.launch.name in allow_spills:
        return []
    return refused_spills(kernel.launch, [c for c in kernel.cubins if arch in (None, c.arch)])


def _refuse(done: Sequence[Chosen], allow_spills: Collection[str]) -> None:
    for kernel in [kernel for chosen in done for kernel in chosen.kernels]:
        if reasons := _spill_reasons(kernel, allow_spills):
            name = kernel.launch.name
            raise SpillError(
                f"{name} keeps registers in memory ({'; '.join(reasons)}); choose smaller tiles or "
                f"more warps, or name {name!r} in allow_spills"
            )


def _only(chosen: Chosen, archs: Sequence[CudaArch]) -> Chosen:
    """``chosen`` for some of its architectures."""
    names = {arch.name for arch in archs}
    kernels = tuple(
        Compiled(k.launch, k.source, k.ptx, tuple(c for c in k.cubins if c.arch in names))
        for k in chosen.kernels
    )
    return Chosen(tuple(archs), chosen.program, kernels)


def _merged(chosen: Sequence[Chosen]) -> list[Chosen]:
    """One entry for each program, however its architectures came to it."""
    found: dict[tuple[str, ...], Chosen] = {}
    for c in chosen:
        key = tuple(kernel.launch.name for kernel in c.kernels)
        found[key] = _joined(found[key], c) if key in found else c
    return list(found.values())


def _joined(a: Chosen, b: Chosen) -> Chosen:
    archs = tuple(sorted((*a.archs, *b.archs), key=lambda arch: arch.rank))
    kernels = tuple(
        Compiled(x.launch, x.source, x.ptx, (*x.cubins, *y.cubins))
        for x, y in zip(a.kernels, b.kernels, strict=True)
    )
    sources = {**a.program.sources, **b.program.sources}
    return Chosen(archs, replace(a.program, sources=sources), kernels)
