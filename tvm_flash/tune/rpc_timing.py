"""The problem that is timed, as tensors on a server."""

from __future__ import annotations

from typing import Any

import torch

from ..verify.problems import Problem
from ..verify.tables import random_tables
from .rpc_build import Built, RemoteTask
from .rpc_session import RemoteMachine

# Elements of the random data that fills a tensor over and over; odd, so that rows differ.
_PATTERN = 65521


class TimedProblem:
    """Tensors on the server of the problem that is timed: the same memory for both kernels.

    Where it lies would be part of the time.
    """

    def __init__(self, machine: RemoteMachine, task: RemoteTask):
        spec, (batch, heads, kv_heads, seqlen_q, seqlen_k) = task.spec, task.sizes
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(_PATTERN, generator=generator).to(getattr(torch, spec.dtype))
        queries, keys = (batch, seqlen_q, heads), (batch, seqlen_k, kv_heads)

        def inputs() -> list[Any]:
            shapes = ((*queries, spec.head_dim), (*keys, spec.head_dim), (*keys, spec.head_dim_v))
            return [machine.filled(shape, normal) for shape in shapes]

        def of_rows(value: float) -> Any:
            return machine.filled((batch, heads, seqlen_q), torch.tensor([value]))

        problem = Problem("timed", seqlen_q, seqlen_k, batch, heads, kv_heads)
        tables = [machine.upload(table) for table in random_tables(spec, problem, generator)]
        self._machine, self._task = machine, task
        self._end = [*tables, spec.head_dim**-0.5]
        self._q_k_v, self._grads = inputs(), inputs() if task.direction != "forward" else []
        self._out, self._dout = (
            machine.filled((*queries, spec.head_dim_v), normal) for _ in range(2)
        )
        # Of the size that it has for such data: exp(score - lse) is neither 0 nor infinite.
        self._lse, self._low, self._dlse = (of_rows(value) for value in (8.0, 0.0, 0.0))

    def arguments(self, built: Built) -> list[Any]:
        """What ``built`` is called with, in its order (loader.Kernel)."""
        if self._task.direction == "forward":
            written = (self._lse, self._low)[: len(self._task.spec.forward_statistics)]
            return [*self._q_k_v, self._out, *written, *self._end]
        zero = torch.zeros(1)
        shapes = built.workspace(self._task.sizes, self._task.threads)
        work = [self._machine.filled(shape, zero) for shape in shapes]
        statistics = (self._lse, self._low)[: len(self._task.spec.saved_statistics)]
        saved = [*self._q_k_v, self._out, self._dout, *statistics, self._dlse]
        return [*saved, *self._grads, *work, *self._end]
