"""A TVM RPC tracker to its client, with time limits: which servers there are, and who is free."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import HardwareFailure

# tvm.rpc.base: TVM's own client of these waits a minute for a tracker, and for a server for ever.
_MAGIC = 0x2F271
_REQUEST, _SUMMARY = 4, 6
_SUCCESS = 0

# Seconds of one exchange with a tracker, without the wait for a server; of a pause in that wait.
_PATIENCE = 10.0
_PAUSE = 1.0


class Grant(NamedTuple):
    """A server that the tracker lends: where it is, and the word it lets one session in for.

    A server takes the word back some seconds after it was granted (tvm.rpc.server: 6 to 8).
    """

    host: str
    port: int
    word: str

    @property
    def address(self) -> str:
        """HOST:PORT of the server."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Tracker:
    """The tracker at ``host``:``port``."""

    host: str
    port: int

    def servers(self, key: str) -> int:
        """How many servers are registered under ``key``, busy or free.

        Raises ValueError where no tracker answers.
        """
        return self._keys().count(key)

    def check(self, key: str) -> None:
        """ValueError where no tracker answers, or it knows no server of ``key``."""
        keys = self._keys()
        if key not in keys:
            known = f"its keys are {', '.join(sorted(set(keys)))}" if keys else "it has no servers"
            raise ValueError(
                f"the RPC tracker at {self} has no server with key {key!r}: {known}; start one "
                f"with python -m tvm.exec.rpc_server --tracker {self} --key {key}"
            )

    def request(self, key: str, seconds: float, busy_seconds: float, avoid: str = "") -> Grant:
        """A free server of ``key``; asked for once more if it is at ``avoid``.

        Waits up to ``seconds`` while there is none at all, ``busy_seconds`` while all are in use.
        The tracker offers a server that was not used again only after some seconds, so that asking
        again gives another one where there is one. Raises HardwareFailure.
        """
        grant = self._wait(key, seconds, busy_seconds)
        return self._wait(key, seconds, busy_seconds) if grant.address == avoid else grant

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def _wait(self, key: str, seconds: float, busy_seconds: float) -> Grant:
        lost_at = None
        while True:
            try:
                return self._lent(key, seconds, busy_seconds)
            except (OSError, ValueError) as error:
                # The tracker may be coming back.
                now = time.monotonic()
                lost_at = lost_at or now
                if now - lost_at > seconds:
                    raise self._nobody(key, str(error)) from error
                time.sleep(_PAUSE)

    def _lent(self, key: str, seconds: float, busy_seconds: float) -> Grant:
        started = present = time.monotonic()
        with self._said([_REQUEST, key, "", 1]) as line:
            while not select.select([line], [], [], _PAUSE)[0]:
                now = time.monotonic()
                present = now if self.servers(key) else present
                if now - present > seconds:
                    raise self._nobody(key, f"none has been registered for {seconds:g} s")
                if now - started > busy_seconds:
                    raise self._nobody(key, f"all have been in use for {busy_seconds:g} s")
            status, value = _answer(line)
        if status != _SUCCESS:
            raise ValueError(f"it answers {value!r}")
        return Grant(*value)

    def _nobody(self, key: str, why: str) -> HardwareFailure:
        return HardwareFailure(
            f"no free server with key {key!r} from the RPC tracker at {self}: {why}; start servers "
            "and run the same command again: what was measured is kept"
        )

    def _keys(self) -> list[str]:
        """The key of each registered server."""
        try:
            _, summary = self._ask([_SUMMARY])
            return [entry["key"].removeprefix("server:") for entry in summary["server_info"]]
        except socket.gaierror as error:
            raise ValueError(f"RPC tracker {self}: the host is unknown ({error})") from error
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"no RPC tracker answers at {self} ({error}); start one with "
                f"python -m tvm.exec.rpc_tracker --port {self.port}"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"what answers at {self} is no RPC tracker ({error})") from error

    def _ask(self, message: list[Any]) -> Any:
        """The tracker's answer to one message, over a connection of its own."""
        with self._said(message) as line:
            return _answer(line)

    def _said(self, message: list[Any]) -> socket.socket:
        """A connection over which ``message`` was sent."""
        line = socket.create_connection((self.host, self.port), _PATIENCE)
        try:
            line.sendall(struct.pack("<i", _MAGIC))
            if (found := _number(line)) != _MAGIC:
                raise ValueError(f"it greets with {found:#x}, a tracker with {_MAGIC:#x}")
            text = json.dumps(message).encode()
            line.sendall(struct.pack("<i", len(text)) + text)
        except BaseException:
            line.close()
            raise
        return line


def _answer(line: socket.socket) -> Any:
    return json.loads(_received(line, _number(line)))


def _number(line: socket.socket) -> int:
    return struct.unpack("<i", _received(line, 4))[0]


def _received(line: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes."""
    parts, left = [], size
    while left > 0:
        parts.append(line.recv(min(left, 1 << 16)))
        if not parts[-1]:
            raise ConnectionResetError("the connection was closed")
        left -= len(parts[-1])
    return b"".join(parts)
