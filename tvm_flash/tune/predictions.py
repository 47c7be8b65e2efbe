"""What two models say of a library of candidates, kept beside it: predicted, not measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.folder import read_file, replacing
from ..errors import ArtifactError, BuildError, UnsupportedSpec
from ..json_fields import is_object
from .trial import SearchTask

if TYPE_CHECKING:
    from .simulation.artifact import BuiltKernel

FILE = "predicted.json"
KIND = "predicted, not measured"
# From formulas alone; and with the main loop's clocks simulated from machine code.
ANALYTICAL, SIMULATION = "analytical", "simulation"
_LIMIT = 2**24

# Predicted seconds by symbol, by model.
Predictions = dict[str, dict[str, float]]


def predicted(path: Path, tasks: Sequence[SearchTask], configs: Mapping[str, Any]) -> Predictions:
    """Seconds of each candidate in the library at ``path``, by both models.

    configs: of each symbol. A model that does not know a kernel, or whose tools are missing (the
    simulation reads machine code by nvdisasm), says nothing of it.
    """
    from .simulation.artifact import built_kernels

    searched = {(task.spec, task.direction): task for task in tasks}
    found: Predictions = {ANALYTICAL: {}, SIMULATION: {}}
    for kernel in built_kernels(path):
        record = kernel.record
        symbol, task = record.symbol, searched[record.spec, record.direction]
        for model, seconds in ((ANALYTICAL, _estimated), (SIMULATION, _simulated)):
            try:
                number = seconds(kernel, task, configs[symbol])
            except (UnsupportedSpec, BuildError, ValueError):
                continue
            if number is not None:
                found[model][symbol] = number
    return found


def write_predictions(path: Path, found: Predictions) -> None:
    """Keep ``found`` beside the library in the folder ``path``."""
    with replacing(path / FILE) as draft:
        text = json.dumps({"kind": KIND, "seconds": found}, indent=1, sort_keys=True)
        draft.write_text(text + "\n", encoding="utf-8")


def read_predictions(path: Path) -> Predictions:
    """What is kept beside the library in the folder ``path``; empty where there is nothing.

    Raises ArtifactError for a file that is something else.
    """
    file = path / FILE
    if not file.exists():
        return {}
    try:
        data = json.loads(read_file(file, _LIMIT).decode())
        seconds = data["seconds"]
        if not all(map(is_object, (seconds, *seconds.values()))):
            raise TypeError("its seconds are no objects")
        return {
            model: {symbol: float(number) for symbol, number in own.items()}
            for model, own in seconds.items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file} holds no predictions ({error}): build it again") from error


def _estimated(kernel: BuiltKernel, task: SearchTask, config: Any) -> float:
    from .analytical.estimated import cuda_seconds

    return cuda_seconds(task.spec, config, kernel.arch, task.sizes)


def _simulated(kernel: BuiltKernel, task: SearchTask, config: Any) -> float | None:
    """None of a launch that makes no products: it is the same for all candidates."""
    from .analytical.estimated import estimated_work
    from .analytical.model import predict
    from .gpu import gpu_of

    steady = kernel.round()
    if not steady:
        return None
    work = estimated_work(task.spec, config, task.sizes, kernel.cubin.resources.registers)
    return predict(replace(work, round=steady), kernel.arch, gpu_of(kernel.arch)).seconds
