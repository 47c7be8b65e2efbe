"""The problem that is timed, as tensors on a server."""

from __future__ import annotations

from typing import Any

import torch

from ...problem.arguments import Argument, arguments, shape_of, size_values
from ...runtime.call import completed
from ...verify.problems import Problem
from ...verify.tables import random_tables
from ..measure import ROW_VALUES
from .build import Built, RemoteTask
from .session import RemoteMachine

# Elements of the random data that fills a tensor over and over; odd, so that rows differ.
_PATTERN = 65521


class TimedProblem:
    """Tensors on the server of the problem that is timed: the same memory for both kernels.

    Where it lies would be part of the time.
    """

    def __init__(self, machine: RemoteMachine, task: RemoteTask):
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(_PATTERN, generator=generator)
        self._machine, self._task = machine, task
        self._normal = normal.to(getattr(torch, task.spec.dtype))
        self._table = arguments(task.spec, task.direction)
        problem = Problem.of_sizes("timed", task.sizes)
        tables = random_tables(task.spec, problem, generator)
        values = size_values(task.spec, task.sizes)
        self._kept = {f"table{n}": machine.upload(table) for n, table in enumerate(tables)}
        self._kept |= problem.numbers(task.spec.head_dim)
        for argument in self._table:
            if argument.role in ("input", "saved", "output") and argument.name not in self._kept:
                self._kept[argument.name] = self._filled(argument, values)

    def arguments(self, built: Built) -> list[Any]:
        """What ``built`` is called with, in its order."""
        task = self._task
        values = size_values(task.spec, task.sizes, built.meta, task.threads)
        call = completed(self._table, self._kept, lambda a: self._filled(a, values))
        return [*call.values()]

    def _filled(self, argument: Argument, values: dict[str, Any]) -> Any:
        shape = shape_of(argument, values)
        if argument.dense:
            value = torch.tensor([ROW_VALUES.get(argument.name, 0.0)])
            return self._machine.filled(shape, value)
        return self._machine.filled(shape, self._normal)
