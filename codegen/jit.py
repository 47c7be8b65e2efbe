"""At first use: one kernel for this machine, from the disk cache or built into it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ..artifact import symbol_name
from ..schedules.target import CpuTarget, host_target
from ..spec import AttentionSpec
from . import cache
from .versions import build_versions, source_digest

logger = logging.getLogger("tvm_flash")


def artifact_for(spec: AttentionSpec, direction: str, config: Any = None) -> Path:
    """Directory of the artifact with this kernel alone; ``config`` None: the schedule chooses."""
    target = host_target()
    name = f"{symbol_name(spec, direction)}-{_key(spec, direction, target, config)[:32]}"
    return cache.entry(name, lambda path: _build(spec, direction, target, config, path))


def _key(spec: AttentionSpec, direction: str, target: CpuTarget, config: Any) -> str:
    """Everything that decides the code; sources and target decide the default config too."""
    return cache.digest(
        {
            "spec": spec.to_json(),
            "direction": direction,
            "target": [target.name, target.mcpu, *target.mattr, *sorted(target.features)],
            "config": config if config is None or isinstance(config, dict) else config.to_json(),
            "sources": source_digest(),
            "versions": build_versions(),
        }
    )


def _build(spec: AttentionSpec, direction: str, target: CpuTarget, config: Any, path: Path) -> None:
    # Not at the top: importing tvm takes seconds, and a kernel from the cache needs none of it.
    from .build import build_jobs, scheduling

    start = time.perf_counter()
    build_jobs([scheduling(spec, direction, target, config)], target, path)
    logger.info("compiled %s in %.1f s", path.name, time.perf_counter() - start)
