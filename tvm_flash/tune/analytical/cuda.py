"""Rank configs of a GPU space without a GPU: compiled, counted, and put into the model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...codegen.nvcc import Cubin, assemble, compile_ptx
from ...codegen.sass.flow import steady_round
from ...codegen.sass.listing import disassemble
from ...codegen.sass.spills import refused_spills
from ...codegen.toolkit import find_toolkit
from ...codegen.versions import build_versions
from ...errors import BuildError, TvmFlashError
from ...problem.spec import AttentionSpec
from ...schedules.cuda.arch import ARCHS, CudaArch
from ...schedules.space import Point, Space
from ..directions import check_directions
from ..gpu import Gpu, gpu_of
from ..sizes import problem_of
from ..trial import Sizes
from .counted import Counted, count, kernel_works
from .model import Prediction, predict, total_seconds
from .ranking import FORMAT, KIND, ranking_path, write_ranking

if TYPE_CHECKING:
    from ...codegen.cuda import KernelSource
    from ...schedules.cuda.program import CudaProgram

# Steps done, of how many, and what was done last.
Report = Callable[[int, int, str], None]
# nvcc and ptxas at once; lowering and counting are Python's, beside them.
_COMPILERS = 2


@dataclass(frozen=True)
class Judged:
    """What became of one config: outcome as in record_format.OUTCOMES; one prediction a launch."""

    config: Any
    outcome: str
    note: str = ""
    cubins: tuple[Cubin, ...] = ()
    counted: Counted | None = None
    predictions: tuple[Prediction, ...] = ()
    shared_bytes: tuple[int, ...] = ()

    @property
    def seconds(self) -> float:
        """Predicted, of all launches."""
        return total_seconds(self.predictions)

    @property
    def main(self) -> int:
        """The launch with most registers: of a backward, the one that makes products."""
        return max(range(len(self.cubins)), key=lambda n: self.cubins[n].resources.registers)


def rank_cuda(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch | str,
    trials: int,
    seed: int = 0,
    logs: Path | None = None,
    report: Report = lambda done, total, text: None,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Rank up to ``trials`` configs of the space for ``spec``, the default one among them.

    More than that are drawn at random by ``seed``. Each is compiled, its PTX interpreted and held
    to the error rule, the main loop of its machine code simulated, and its time predicted. Nothing
    is timed: the document says so, and builds do not read it. logs: tuning_logs/, where it is
    written (None: nowhere). Raises UnsupportedSpec, also for an architecture without a model, and
    BuildError without nvcc or nvdisasm.
    """
    from ...schedules.cuda.space import cuda_space

    check_directions([direction])
    arch = ARCHS[arch] if isinstance(arch, str) else arch
    gpu, sizes = gpu_of(arch), sizes or problem_of(spec)
    find_toolkit()
    space = cuda_space(spec, direction, arch)
    points = chosen_points(space, trials, seed)
    judged = []
    for done, one in enumerate(_judged(spec, direction, arch, space, points, sizes), 1):
        judged.append(one)
        report(done, len(points), f"{one.outcome} {one.note}".strip())
    document = _document(spec, direction, arch, gpu, sizes, space, judged, seed)
    if logs is not None:
        write_ranking(ranking_path(logs, arch.name, spec, direction), document)
    return document


def chosen_points(space: Space, trials: int, seed: int) -> list[Point]:
    """The default and up to ``trials`` - 1 others, drawn without replacement.

    Each point has its own lot, so that architectures draw the same ones: their PTX is shared.
    """
    if trials < 1:
        raise ValueError(f"{trials=} must be 1 or more")
    start = space.point(space.start)
    others = [point for point in space.points if point != start]
    drawn = sorted(others, key=lambda point: random.Random(f"{seed} {point}").random())
    return [start, *drawn[: trials - 1]]


def _judged(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch,
    space: Space,
    points: Sequence[Point],
    sizes: Sizes,
) -> Iterator[Judged]:
    """Each config as it is done; those after it compile meanwhile."""
    pool = ThreadPoolExecutor(_COMPILERS)
    try:
        waiting: list[tuple[Any, Any, Future | None, str]] = []
        for point in points:
            waiting.append(_started(pool, spec, direction, arch, space.config(point)))
            while len(waiting) > _COMPILERS:
                yield _finished(spec, direction, arch, sizes, *waiting.pop(0))
        for entry in waiting:
            yield _finished(spec, direction, arch, sizes, *entry)
    finally:
        pool.shutdown(cancel_futures=True)


def _started(pool, spec, direction: str, arch: CudaArch, config):
    """(config, program, its compilation, why there is none)."""
    from ...codegen.cuda import kernel_sources, ptx_version
    from ...schedules.cuda.select import cuda_programs

    try:
        ((_, program),) = cuda_programs(spec, direction, (arch,), config.to_json())
        sources = kernel_sources(program, ptx_version((arch,)))
    except (TvmFlashError, ValueError) as error:
        return config, None, None, str(error)
    return config, program, pool.submit(_compile, sources, arch), ""


def _compile(sources: Sequence[KernelSource], arch: CudaArch) -> list[tuple[str, Cubin]]:
    texts = [compile_ptx(source) for source in sources]
    return [
        (ptx, assemble(ptx, source.name, arch.name))
        for ptx, source in zip(texts, sources, strict=True)
    ]


def _finished(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch,
    sizes: Sizes,
    config: Any,
    program: CudaProgram | None,
    compilation: Future | None,
    note: str,
) -> Judged:
    if program is None or compilation is None:
        return Judged(config, "invalid", note)
    try:
        compiled = compilation.result()
    except BuildError as error:
        return Judged(config, "invalid", str(error))
    cubins = tuple(cubin for _, cubin in compiled)
    shared = tuple(launch.shared_bytes for launch in program.launches)
    made = list(zip(program.launches, cubins, strict=True))
    if reasons := [text for launch, cubin in made for text in refused_spills(launch, [cubin])]:
        return Judged(config, "spill", "; ".join(reasons), cubins, shared_bytes=shared)
    counted = count(spec, direction, program, [ptx for ptx, _ in compiled])
    if counted.failure:
        return Judged(config, "wrong", counted.failure, cubins, counted, shared_bytes=shared)
    registers = [cubin.resources.registers for cubin in cubins]
    rounds = [steady_round(disassemble(cubin.code, launch.name)) for launch, cubin in made]
    works = kernel_works(spec, program, counted, sizes, registers, rounds)
    predictions = tuple(predict(work, arch, gpu_of(arch)) for work in works)
    return Judged(config, "ok", "", cubins, counted, predictions, shared)


def _document(
    spec: AttentionSpec,
    direction: str,
    arch: CudaArch,
    gpu: Gpu,
    sizes: Sizes,
    space: Space,
    judged: Sequence[Judged],
    seed: int,
) -> dict[str, Any]:
    ranked = sorted((j for j in judged if j.outcome == "ok"), key=lambda j: j.seconds)
    default = next((n for n, j in enumerate(ranked, 1) if j.config == space.start), None)
    unranked = [j for j in judged if j.outcome != "ok"]
    return {
        "format": FORMAT,
        "kind": KIND,
        "target": arch.name,
        "gpu": asdict(gpu),
        "spec": spec.to_json(),
        "direction": direction,
        "problem": sizes._asdict(),
        "space": {"points": len(space.points), "compiled": len(judged), "ranked": len(ranked)},
        "default": {"config": space.start.to_json(), "rank": default},
        "seed": seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {**build_versions(), "nvcc": find_toolkit().version},
        "ranking": [_ranked(j) for j in ranked],
        "unranked": [_unranked(j) for j in unranked],
    }


def _ranked(judged: Judged) -> dict[str, Any]:
    main = judged.main
    prediction = judged.predictions[main]
    return {
        "config": judged.config.to_json(),
        "predicted_seconds": float(f"{judged.seconds:.4g}"),
        "registers": judged.cubins[main].resources.registers,
        "shared_bytes": judged.shared_bytes[main],
        "resident_blocks": prediction.resident,
        "limit": prediction.limit,
        "bound": prediction.bound,
        "clocks": {part: round(value) for part, value in prediction.clocks.items()},
        **({"loop": prediction.loop.to_json()} if prediction.loop else {}),
    }


def _unranked(judged: Judged) -> dict[str, Any]:
    resources = judged.cubins[judged.main].resources.to_json() if judged.cubins else {}
    known = {name: resources[name] for name in ("registers", "stack") if name in resources}
    note = judged.note.strip().partition("\n")[0][:200]
    return {
        "config": judged.config.to_json(), "outcome": judged.outcome, "note": note, **known
    }  # fmt: skip
