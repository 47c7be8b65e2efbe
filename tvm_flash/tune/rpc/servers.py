"""Sessions with the servers of a tracker that answer, and what their CPU is."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import HardwareFailure
from .session import RemoteCpu, RemoteMachine
from .tracker import Tracker

# Servers that may turn out not to answer before all is given up.
_CONNECTIONS = 4


@dataclass(frozen=True)
class Stopped:
    """Why nothing can be measured any more, for HardwareFailure."""

    reason: str


@dataclass(frozen=True)
class Servers:
    """Whom to ask for a server, and for how many seconds.

    wait: while there is none. limit: of a session, but for the timing.
    """

    tracker: Tracker
    key: str
    wait: float
    limit: float

    @property
    def patience(self) -> float:
        """While all are in use: that may be two of our own sessions."""
        return self.wait + 2 * self.limit

    def session(self, seconds: float, avoid: str = "") -> Session:
        """A session that may last for ``seconds``. Raises HardwareFailure."""
        for _ in range(_CONNECTIONS):
            grant = self.tracker.request(self.key, self.wait, self.patience, avoid)
            try:
                machine = RemoteMachine(grant, seconds)
                return Session(machine, grant.address, machine.cpu())
            except Exception as error:
                # It died since the tracker lent it, or cannot be reached from here.
                avoid, reason = grant.address, short(error)
        raise HardwareFailure(
            f"the RPC tracker at {self.tracker} lends servers that no session can be had with, the "
            f"last at {avoid} ({reason}); can this machine reach it, and has it tvm and tvm_ffi "
            "of the versions here?"
        )


@dataclass(frozen=True)
class Session:
    """A machine that answered, where it is and what its CPU is."""

    machine: RemoteMachine
    address: str
    cpu: RemoteCpu


@dataclass(frozen=True)
class Describe:
    """Asks one server what its CPU is."""

    servers: Servers

    def __call__(self) -> RemoteCpu | Stopped:
        try:
            return self.servers.session(self.servers.limit).cpu
        except HardwareFailure as error:
            return Stopped(str(error))


def short(error: Exception) -> str:
    """One line of ``error``, for a note."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
