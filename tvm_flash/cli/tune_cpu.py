"""``tvm-flash tune`` for CPUs: measured on this machine, or on others behind a tracker."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .tune_cuda import Groups

if TYPE_CHECKING:
    from ..tune.hardware import Hardware
    from ..tune.request import Method, Request


class Timed(NamedTuple):
    """What is timed of each spec and direction.

    buckets: names of lengths. seqlen: in place of the usual one of a single bucket. threads: of a
    kernel.
    """

    buckets: tuple[str, ...]
    seqlen: int | None
    threads: int


def request_on_cpu(
    groups: Groups, target: str, timed: Timed, method: Method, *, remote: bool
) -> Request:
    """The searches on ``target``; remote: it is another machine's."""
    from ..tune.plan import find_target, tasks
    from ..tune.request import Request

    cpu = find_target(target, remote=remote)
    planned = [
        task
        for specs, directions in groups
        for task in tasks(
            specs, cpu, directions, timed.buckets, seqlen=timed.seqlen, threads=timed.threads
        )
    ]
    return Request(tuple(planned), cpu, method)


def cpu_hardware(
    rpc: str | None, key: str, target: str, jobs: int | None, timeout: float
) -> Hardware:
    """This machine's cores; with ``rpc``, HOST:PORT, the devices of a ``key`` at that tracker."""
    if rpc is None:
        from ..bench.host import usable_cores
        from ..tune.local import LocalHardware

        return LocalHardware(jobs or usable_cores(), timeout)
    from ..tune.rpc.hardware import RpcHardware

    host, _, port = rpc.rpartition(":")
    if not host or not port.isdecimal() or not key:
        raise ValueError(f"--rpc {rpc!r} --rpc-key {key!r} must be HOST:PORT and the devices' key")
    return RpcHardware(host, int(port), key, target, limit=timeout, jobs=jobs)
