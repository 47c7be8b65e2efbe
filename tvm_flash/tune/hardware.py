"""What evaluates configs for a search: this machine, machines behind RPC, or a measured table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from .trial import SearchTask, Trial

Self = TypeVar("Self", bound="Hardware")


class Hardware(Protocol):
    """Compiles configs, holds their results to the error rule, and times what is right.

    jobs: how many configs it works on at once. A context manager; ``close`` ends its processes.
    """

    jobs: int

    def evaluate(
        self, task: SearchTask, configs: Sequence[Any], incumbent: Any, seconds: float
    ) -> Iterator[tuple[int, Trial]]:
        """Each config's index in ``configs`` with its trial, as they finish, each once.

        A trial that is "ok" has ``seconds`` and ``incumbent_seconds`` of as many repeats (at least
        two), taken in turns on the same machine for about ``seconds``. Whatever a candidate does
        (crash, hang, wrong numbers) is its trial's outcome. Raises HardwareFailure when no further
        config can be evaluated.
        """

    def origin(self, task: SearchTask) -> Mapping[str, Any]:
        """What a record says of where it was measured: its fields cpu, machine and versions."""

    def close(self) -> None:
        """End everything that was started, whatever it does."""

    def __enter__(self: Self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
