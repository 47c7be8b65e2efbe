"""What the warp groups of a block are for, and the registers that each of their threads has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from tvm import tirx
from tvm.script import tirx as T

from ..arch import FULL_WARP, WARP
from ..builder import CudaKernel, emit, if_else, when
from .wgmma import GROUP_ROWS

GROUP_WARPS = 4
GROUP_THREADS = GROUP_WARPS * WARP
# By number of consumers: registers of a consumer's thread and of the producer's. Together at most
# what a launch gets: 168 a thread of three groups, 128 of four (setmaxnreg moves them, by 8).
BUDGETS = {2: (240, 24), 3: (160, 32)}


class Roles:
    """``consumers`` warp groups that compute, and one after them of which a thread makes copies.

    group: a consumer's number; row: the first of its 64 rows in a tile.
    """

    def __init__(self, kernel: CudaKernel, consumers: int):
        self._kernel, self.consumers = kernel, consumers

    @property
    def warps(self) -> int:
        """Warps of the consumers."""
        return self.consumers * GROUP_WARPS

    @cached_property
    def group(self):
        """Number of this warp's group, which the compiler knows to be the same in all lanes."""
        number = T.tvm_warp_shuffle(
            T.uint32(FULL_WARP), self._kernel.warp // GROUP_WARPS, 0, WARP, WARP
        )
        return self._kernel.scalar(number, name="group")

    @property
    def row(self):
        """First row of this group."""
        return self.group * GROUP_ROWS

    def run(
        self, produce: Callable[[], None], consume: Callable[[], None], *beside: Callable[[], None]
    ) -> None:
        """``produce`` by one thread, ``consume`` by all of the consumers.

        beside: each by a whole warp of the producer's group, the second one and so on.
        """
        if_else(
            self.group == self.consumers,
            lambda: self._produce(produce, beside),
            lambda: self._consume(consume),
        )

    def meet(self) -> None:
        """The threads of this consumer meet; barrier 0 is the block's."""
        number = tirx.Cast("uint32", self.group + 1)
        emit(T.ptx["bar.sync"](number, T.uint32(GROUP_THREADS)))

    def meet_all(self) -> None:
        """The threads of all consumers meet."""
        number, threads = self.consumers + 1, self.consumers * GROUP_THREADS
        emit(T.ptx["bar.sync"](T.uint32(number), T.uint32(threads)))

    def _produce(self, produce: Callable[[], None], beside: Sequence[Callable[[], None]]) -> None:
        emit(T.ptx["setmaxnreg.dec.sync.aligned.u32"](BUDGETS[self.consumers][1]))
        is_first = self._kernel.warp == self.warps
        # Elected: of a thread picked by its number ptxas makes a loop around each copy.
        with when(tirx.And(is_first, T.cuda.elect_sync() != T.uint32(0))):
            produce()
        for number, bring in enumerate(beside, start=1):
            with when(self._kernel.warp == self.warps + number):
                bring()

    def _consume(self, consume: Callable[[], None]) -> None:
        emit(T.ptx["setmaxnreg.inc.sync.aligned.u32"](BUDGETS[self.consumers][0]))
        consume()


def num_warps(consumers: int) -> int:
    """Warps of a block."""
    return (consumers + 1) * GROUP_WARPS
