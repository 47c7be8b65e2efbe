"""At first use: one kernel for this machine, from the disk cache or built into it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import symbol_name
from ..errors import UnsupportedSpec
from ..lengths import DEFAULT_BUCKET, buckets_of
from ..schedules.cuda.arch import ARCHS, CudaArch, serving_arch
from ..schedules.target import CpuTarget, host_target
from ..spec import AttentionSpec
from . import cache
from .toolkit import find_toolkit
from .versions import build_versions, records_digest, source_digest

logger = logging.getLogger("tvm_flash")

_PLANS = "plans"


def artifact_for(
    spec: AttentionSpec, direction: str, config: Any = None, *, bucket: str = DEFAULT_BUCKET
) -> Path:
    """Directory of the artifact with one kernel, that of ``config``, for all lengths.

    ``config`` None: the kernel for a length bucket, with what schedules.select chooses for it.
    """
    target, symbol = host_target(), symbol_name(spec, direction)
    plan = _plan(spec, direction, target, bucket) if config is None else _only(config)
    name = f"{symbol}-{_key(spec, direction, target, plan)[:32]}"
    return cache.entry(name, lambda path: _build(spec, direction, target, plan, path))


def _only(config: Any) -> dict[str, Any]:
    config = config if isinstance(config, dict) else config.to_json()
    return {"config": config, "source": "given", "buckets": []}


def _plan(spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str) -> dict[str, Any]:
    """Config, source and buckets of the kernel for ``bucket``.

    Kept on disk: choosing imports tvm, which takes seconds, and a kernel from the cache needs none
    of it. New records are seen at once, and compile only the kernels whose numbers they change.
    """
    parts = {"spec": spec.to_json(), "direction": direction, "bucket": bucket}
    made_by = {
        "records": records_digest(target.name),
        "sources": source_digest(),
        **build_versions(),
    }
    name = cache.digest({**parts, "target": _described(target), **made_by})
    return json.loads(cache.content(name, lambda: _chosen(spec, direction, target, bucket), _PLANS))


def _chosen(spec: AttentionSpec, direction: str, target: CpuTarget, bucket: str) -> bytes:
    from . import tvm_import  # noqa: F401, I001  whole, before parts of it
    from ..schedules.select import choose_all

    for chosen in choose_all(spec, direction, target, buckets_of(direction)):
        if bucket in chosen.buckets:
            plan = {"config": chosen.config.to_json(), "source": chosen.source}
            return json.dumps({**plan, "buckets": chosen.buckets}).encode()
    raise ValueError(f"{bucket=} of {direction=} must be one of {', '.join(buckets_of(direction))}")


def cuda_artifact_for(
    spec: AttentionSpec, direction: str, capability: tuple[int, int] | None
) -> Path:
    """Directory of the artifact with this kernel for a GPU of ``capability``."""
    arch = arch_for(capability)
    # Any new record of this architecture makes a new artifact, of texts that are compiled already.
    records = records_digest(arch.name)
    target = {"cuda": arch.name, "nvcc": find_toolkit().version, "records": records}
    key = _digest(spec, direction, target, None)
    name = f"{symbol_name(spec, direction)}-{arch.name}-{key[:32]}"
    return cache.entry(name, lambda path: _build_cuda(spec, direction, arch, path))


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
    return serving_arch(capability, below) or max(below, key=lambda arch: arch.number)


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
    # Not at the top: importing tvm takes seconds, and a kernel from the cache needs none of it.
    from . import tvm_import  # noqa: F401, I001  whole, before parts of it
    from ..schedules.select import Chosen, as_config
    from .build import build_jobs, scheduling

    start = time.perf_counter()
    config = as_config(plan["config"], direction)
    chosen = Chosen(config, plan["source"], tuple(plan["buckets"]))
    build_jobs([scheduling(spec, direction, target, chosen)], target, path)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)


def _build_cuda(spec: AttentionSpec, direction: str, arch: CudaArch, path: Path) -> None:
    from . import tvm_import  # noqa: F401  whole, before parts of it
    from .cuda_build import build_cuda, cuda_job

    start = time.perf_counter()
    build_cuda([cuda_job(spec, direction, (arch,))], (arch,), path)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)
