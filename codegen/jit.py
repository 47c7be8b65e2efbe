"""At first use: one kernel for this machine, from the disk cache or built into it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..artifact.library import symbol_name
from ..errors import UnsupportedSpec
from ..import_lock import importing
from ..problem.lengths import DEFAULT_BUCKET, buckets_of
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import ARCHS, CudaArch, serving_arch
from ..schedules.target import CpuTarget, host_target
from . import cache
from .toolkit import find_toolkit
from .versions import build_versions, records_digest, source_digest

logger = logging.getLogger("tvm_flash")

T = TypeVar("T")

_PLANS = "plans"


def artifact_for(
    spec: AttentionSpec,
    direction: str,
    config: Any = None,
    *,
    bucket: str = DEFAULT_BUCKET,
    use: Callable[[Path], T] = cache.verified,
) -> T:
    """What ``use`` gives of the artifact with one kernel, that of ``config``, for all lengths.

    ``config`` None: the kernel for a length bucket, with what schedules.select chooses for it.
    ``use``, by default the artifact's directory, raises ArtifactError for one that will not do: it
    is built again.
    """
    target = host_target()
    if config is not None:
        return _entry(spec, direction, target, _only(config), use)
    try:
        plan = _plan(spec, direction, target, bucket)
        check = partial(_check_plan, spec, direction, target, bucket, plan)
        return _entry(spec, direction, target, plan, use, check)
    except _WrongPlan as error:
        return _entry(spec, direction, target, error.right, use)


def _entry(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    plan: Mapping[str, Any],
    use: Callable[[Path], T],
    check: Callable[[], None] = lambda: None,
) -> T:
    def make(path: Path) -> None:
        check()
        _build(spec, direction, target, plan, path)

    name = f"{symbol_name(spec, direction)}-{_key(spec, direction, target, plan)[:32]}"
    return cache.entry(name, make, use)


def _only(config: Any) -> dict[str, Any]:
    config = config if isinstance(config, dict) else config.to_json()
    return {"config": config, "source": "given", "buckets": []}


def _plan(spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str) -> dict[str, Any]:
    """Config, source and buckets of the kernel for ``bucket``.

    Kept on disk: choosing imports tvm, which takes seconds, and a kernel from the cache needs none
    of it. New records are seen at once, and compile only the kernels whose numbers they change.
    """
    name = _plan_name(spec, direction, target, bucket)
    return cache.content(name, lambda: _chosen(spec, direction, target, bucket), _PLANS, _as_plan)


def _plan_name(spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str) -> str:
    parts = {"spec": spec.to_json(), "direction": direction, "bucket": bucket}
    made_by = {
        "records": records_digest(target.name),
        "sources": source_digest(),
        **build_versions(),
    }
    return cache.digest({**parts, "target": _described(target), **made_by})


def _as_plan(kept: bytes) -> dict[str, Any]:
    plan = json.loads(kept)
    kinds = {name: type(value) for name, value in plan.items()}
    if kinds != {"config": dict, "source": str, "buckets": list}:
        raise ValueError(f"not a plan: {plan!r:.100}")
    return plan


class _WrongPlan(Exception):
    """A plan on disk is not the ``right`` one."""

    def __init__(self, right: dict[str, Any]):
        super().__init__()
        self.right = right


def _check_plan(
    spec: AttentionSpec,
    direction: str,
    target: CpuTarget,
    bucket: str,
    plan: Mapping[str, Any],
) -> None:
    """Raises _WrongPlan, and puts it right on disk, when ``plan`` is not what would be chosen.

    A plan from the disk finds kernels; what is built must not depend on what was found there.
    """
    data = _chosen(spec, direction, target, bucket)
    if cache.digest(_as_plan(data)) == cache.digest(dict(plan)):
        return
    path = cache.trusted_cache_dir() / _PLANS / _plan_name(spec, direction, target, bucket)
    logger.warning("%s in the cache is another kernel's plan: making it again", path)
    cache.keep(path, data)
    raise _WrongPlan(_as_plan(data))


@contextmanager
def _importing_tvm() -> Iterator[None]:
    """A context for imports of what needs tvm: it takes seconds, which cached kernels spare."""
    with importing:
        from . import tvm_import  # noqa: F401  whole, before parts of it

        yield


def _chosen(spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str) -> bytes:
    with _importing_tvm():
        from ..schedules.select import choose_all

    for chosen in choose_all(spec, direction, target, buckets_of(direction)):
        if bucket in chosen.buckets:
            plan = {"config": chosen.config.to_json(), "source": chosen.source}
            return json.dumps({**plan, "buckets": chosen.buckets}).encode()
    raise ValueError(f"{bucket=} of {direction=} must be one of {', '.join(buckets_of(direction))}")


def cuda_artifact_for(
    spec: AttentionSpec,
    direction: str,
    capability: tuple[int, int] | None,
    *,
    use: Callable[[Path], T] = cache.verified,
) -> T:
    """What ``use`` gives of the artifact with this kernel for a GPU of ``capability``."""
    arch = arch_for(capability)
    # Any new record that it may take makes a new artifact, of texts that are compiled already.
    records = [*map(records_digest, arch.recorded)]
    target = {"cuda": arch.name, "nvcc": find_toolkit().version, "records": records}
    key = _digest(spec, direction, target, None)
    name = f"{symbol_name(spec, direction)}-{arch.name}-{key[:32]}"
    return cache.entry(name, lambda path: _build_cuda(spec, direction, arch, path), use)


def arch_for(capability: tuple[int, int] | None) -> CudaArch:
    """The architecture to build for: the device's own, else the nearest that it can run."""
    if capability is None:
        raise ValueError("device_type='cuda' needs capability=(major, minor) to compile for")
    below = [arch for arch in ARCHS.values() if arch.capability <= capability]
    if not below:
        least = min(arch.number for arch in ARCHS.values()) / 10
        raise UnsupportedSpec(
            [f"compute capability {capability[0]}.{capability[1]}: kernels need {least} or higher"]
        )
    return serving_arch(capability, below) or max(below, key=lambda arch: arch.rank)


def _key(spec: AttentionSpec, direction: str, target: CpuTarget, plan: Mapping[str, Any]) -> str:
    return _digest(spec, direction, _described(target), dict(plan))


def _described(target: CpuTarget) -> list[str]:
    return [target.name, target.mcpu, *target.mattr, *sorted(target.features)]


def _digest(spec: AttentionSpec, direction: str, target: Any, config: Any) -> str:
    """Everything that decides the code; for GPUs sources, target and records decide the config."""
    return cache.digest(
        {
            "spec": spec.to_json(),
            "direction": direction,
            "target": target,
            "config": config,
            "sources": source_digest(),
            "versions": build_versions(),
        }
    )


def _build(
    spec: AttentionSpec, direction: str, target: CpuTarget, plan: Mapping[str, Any], path: Path
) -> None:
    with _importing_tvm():
        from ..schedules.select import Chosen, as_config
        from .build import build_jobs, scheduling

    start = time.perf_counter()
    config = as_config(plan["config"], direction)
    chosen = Chosen(config, plan["source"], tuple(plan["buckets"]))
    build_jobs([scheduling(spec, direction, target, chosen)], target, path, guarded=True)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)


def _build_cuda(spec: AttentionSpec, direction: str, arch: CudaArch, path: Path) -> None:
    with _importing_tvm():
        from .cuda_build import build_cuda, cuda_job

    start = time.perf_counter()
    build_cuda([cuda_job(spec, direction, (arch,))], (arch,), path, guarded=True)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)
