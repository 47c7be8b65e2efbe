"""This machine's CPU as hardware of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..artifact.library import symbol_name
from ..bench.host import cpu_name, describe
from ..codegen import jit
from ..codegen.versions import build_versions
from ..errors import TvmFlashError
from ..problem.spec import AttentionSpec
from ..workers import Failure
from .building import BuildingHardware, Built, build_failure
from .instructions import counts
from .measure import judged_and_timed
from .trial import SearchTask


class LocalHardware(BuildingHardware):
    """``Hardware`` of this machine's CPU; jobs, timeout as of ``BuildingHardware``."""

    def __init__(self, jobs: int, timeout: float):
        functions = {"build": built, "prepare": import_compiler, "measure": judged_and_timed}
        super().__init__(jobs, timeout, **functions)

    def origin(self, task: SearchTask) -> Mapping[str, Any]:
        """As ``Hardware.origin``."""
        import torch

        return {
            "cpu": cpu_name(),
            "machine": replace(describe(), threads=task.threads).to_json(),
            "versions": {**build_versions(), "torch": str(torch.__version__)},
        }

    def _to_build(self, task: SearchTask, config: Any) -> tuple:
        return task.spec, task.direction, config.to_json()

    def _to_measure(self, task: SearchTask, ours: Built, best: Built, seconds: float) -> tuple:
        return ours.path, best.path, task.sizes, task.threads, seconds


def built(spec: AttentionSpec, direction: str, config: Mapping[str, Any]) -> Built | Failure:
    """The artifact of ``config`` from the cache, or compiled into it; for a builder process.

    resources: what ``instructions.counts`` says of its code.
    """
    try:
        path = jit.artifact_for(spec, direction, dict(config))
    except (TvmFlashError, ValueError) as error:
        return build_failure(error)
    (library,) = path.glob("*.so")
    return Built(path, counts(library, symbol_name(spec, direction)))


def import_compiler() -> None:
    """What a builder process needs: TVM, which takes seconds, once."""
    from ..codegen import build  # noqa: F401
