"""One candidate on a machine behind RPC: compiled here, held to the error rule and timed there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ...errors import HardwareFailure, TvmFlashError
from ...problem.arguments import TABLE, ZEROED, names
from ...schedules.target import cpu_target
from ...verify.buffers import tensors_of
from ...verify.trial import CallArguments, Candidate, verification
from ...verify.verdict import KernelVerdict
from ..instructions import counts
from ..measure import interleaved, verdict_trial
from ..trial import Trial
from .build import Built, RemoteTask, build_kernel
from .servers import Describe, Servers, Session, Stopped, short
from .session import RemoteKernel, RemoteMachine, download
from .timing import TimedProblem

# Measuring may take so many times as long as was asked for: each sample warms up.
LONGER = 4
# Seconds of one sample. On a busy server a process that has just waited for the network runs some
# milliseconds undisturbed: shorter samples of the faster kernel alone would end before that.
_SAMPLE = 1e-2


@dataclass(frozen=True)
class Lost:
    """A session that ended too soon, on the server at ``address``: a crash or a timeout."""

    outcome: str
    address: str
    note: str


@dataclass(frozen=True)
class Attempt:
    """Measures ``config`` beside ``incumbent`` on one server, another one than ``avoid`` if it can.

    cpu: what the servers are called; a trial on another CPU would be worth nothing.
    """

    servers: Servers
    task: RemoteTask
    config: Any
    incumbent: Any
    seconds: float
    cpu: str
    avoid: str = ""

    def __call__(self) -> Trial | Lost | Stopped:
        task, target = self.task, cpu_target(self.task.target)
        try:
            incumbent = build_kernel(task.spec, task.direction, self.incumbent, target)
        except (TvmFlashError, ValueError) as error:
            return Stopped(f"what is to be compared with does not build: {error}")
        try:
            built = build_kernel(task.spec, task.direction, self.config, target)
        except (TvmFlashError, ValueError) as error:
            # A full disk or a missing compiler is no fault of the candidate.
            ours = isinstance(error.__cause__, OSError)
            return Stopped(str(error)) if ours else Trial("invalid", note=short(error))
        found = self._on_a_server(built, incumbent)
        if not isinstance(found, Trial):
            return found
        return replace(found, resources={**counts(built.library, built.symbol), **found.resources})

    def _on_a_server(self, built: Built, incumbent: Built) -> Trial | Lost | Stopped:
        limit = self.servers.limit + LONGER * self.seconds
        try:
            session = self.servers.session(limit, self.avoid)
        except HardwareFailure as error:
            return Stopped(str(error))
        try:
            self._check(session)
            trial = _measured(session.machine, self.task, built, incumbent, self.seconds)
            return replace(trial, resources={"server": session.address})
        except HardwareFailure as error:
            return Stopped(f"{session.address}: {error}")
        except Exception as error:
            return _lost(error, session.address)

    def _check(self, session: Session) -> None:
        if session.cpu.name != self.cpu:
            raise HardwareFailure(
                f"its CPU is {session.cpu.name}, that of another server with key "
                f"{self.servers.key!r} {self.cpu}; give each kind of machine a key of its own"
            )


class SessionLost(Exception):
    """The server ended the session while a kernel ran in it."""


def run(job: Describe | Attempt) -> Any:
    """What a worker process does with an item."""
    return job()


def prepare(threads: int) -> None:
    """Imports that no item's time limit should pay for; torch gets ``threads`` of this machine."""
    from tvm import rpc  # noqa: F401

    from ...codegen import build  # noqa: F401

    torch.set_num_threads(threads)


def _measured(
    machine: RemoteMachine, task: RemoteTask, built: Built, incumbent: Built, seconds: float
) -> Trial:
    """The trial of ``built``. Raises what the session ends with."""
    ours = _opened(machine, task, built)
    trial = verdict_trial(judged(machine, ours, task, built))
    if trial.outcome != "ok":
        if not machine.alive():
            raise SessionLost(trial.note)
        return trial
    theirs = _opened(machine, task, incumbent)
    timed = TimedProblem(machine, task)
    watches = (
        partial(ours.seconds, timed.arguments(built)),
        partial(theirs.seconds, timed.arguments(incumbent)),
    )
    times = interleaved(*watches, seconds, sample=_SAMPLE)
    return Trial("ok", trial.error, trial.allowed, *times)


def _opened(machine: RemoteMachine, task: RemoteTask, built: Built) -> RemoteKernel:
    try:
        return machine.kernel(built, task.direction, task.threads, amx="amx" in task.target)
    except Exception as error:
        if not machine.alive():
            raise
        # Not of this kernel: no OpenMP there, an older libc, AMX refused.
        raise HardwareFailure(f"the server cannot open kernels: {short(error)}") from error


def judged(
    machine: RemoteMachine, kernel: RemoteKernel, task: RemoteTask, built: Built
) -> KernelVerdict:
    """``kernel`` on the problems of its tile, held to the error rule."""

    def run(call: CallArguments, outputs: tuple[str, ...]) -> list:
        poisoned = set(outputs) - set(ZEROED)  # what is left unwritten shows
        there = {
            name: machine.filled(x.shape, torch.full((1,), torch.nan, dtype=x.dtype))
            if name in poisoned
            else machine.upload(x)
            for name, x in tensors_of(call).items()
        }
        kernel([*{**call, **there}.values()])
        for name in poisoned & set(names(TABLE[task.direction], "output")):
            download(there[name], call[name])
        return []

    known = (built.symbol, task.spec, task.direction, (), built.tile)
    candidate = Candidate(*known, built.meta, run, task.threads)
    found = verification(built.symbol, "cpu", [candidate], quick=False, seed=0, progress=None)
    return found.kernels[0]


def _lost(error: Exception, address: str) -> Lost:
    # The server's own words; TVM has no class for them that it would raise everywhere.
    outcome = "timeout" if "RPCSessionTimeoutError" in str(error) else "crash"
    return Lost(outcome, address, f"on {address}: {short(error)}")
