"""Rings of stages in shared memory, which a producer fills and warps of consumers empty: mbarriers.

A stage has two barriers. "full" completes when the producer has arrived and all bytes it announced
have landed; "empty" when every warp of the consumers has arrived. Uses of a ring are counted from 0
on, by either side for itself: use n is of stage n % stages, and waits for phase n // stages of its
barriers, of which only the parity is asked for (PTX ISA, "mbarrier").
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..builder import CudaKernel, barrier, emit, when
from .tensor_maps import proxy_fence

# Shared memory of a block's barriers, bytes at most: they lie behind the tiles.
BARRIER_BYTES = 512


class Landing:
    """The "full" barriers of ``stages`` stages: of a ring, or of what else its stages hold.

    The order of calls. Producer: ``expect``, copies that name ``full``. Consumers: ``wait_full``.
    What is brought a single time is use 0 of one stage, which nobody empties.
    """

    def __init__(self, kernel: CudaKernel, name: str, stages: int = 1, bringers: int = 1):
        """bringers: threads that arrive when a stage is full; the others of them ``arrive``."""
        self._stages, self._bringers = stages, bringers
        self._full = kernel.shared((stages,), "uint64", f"{name}_full", align=8)

    def initialise(self) -> None:
        """By one thread, before all others use it (``initialised``)."""
        for stage in range(self._stages):
            _initialise(self._full.ptr_to([stage]), self._bringers)

    def stage(self, use=0):
        """The stage of use number ``use``, an int or int32."""
        return use % self._stages

    def full(self, use=0):
        """The barrier that counts the bytes of a use."""
        return self._full.ptr_to([self.stage(use)])

    def expect(self, size: int, use=0) -> None:
        """Announce ``size`` bytes, and arrive."""
        emit(T.ptx.mbarrier.arrive.expect_tx.shared.b64(self.full(use), T.uint32(size)))

    def arrive(self, use) -> None:
        """This thread has written its part of a use."""
        emit(T.ptx.mbarrier.arrive.shared.b64(self.full(use)))

    def wait_full(self, use=0) -> None:
        """Until the bytes of a use have landed."""
        _wait(self.full(use), self._parity(use))

    def _parity(self, use):
        if isinstance(use, int):
            return use // self._stages & 1
        return tirx.truncdiv(use, self._stages) & 1


class Ring(Landing):
    """All barriers of ``stages`` stages; consumers are ``warps`` warps.

    The order of calls. Producer: ``wait_empty``, then as of ``Landing``. Consumers, whole warps:
    ``wait_full``, reads, ``release``.
    """

    def __init__(self, kernel: CudaKernel, name: str, stages: int, warps: int):
        super().__init__(kernel, name, stages)
        self._kernel, self._warps = kernel, warps
        self._empty = kernel.shared((stages,), "uint64", f"{name}_empty", align=8)

    def initialise(self) -> None:
        super().initialise()
        for stage in range(self._stages):
            _initialise(self._empty.ptr_to([stage]), self._warps)

    def wait_empty(self, use) -> None:
        """Until the use before of the same stage has been released; the first ones pass."""
        _wait(self._empty.ptr_to([self.stage(use)]), self._parity(use) ^ 1)

    def release(self, use) -> None:
        """This warp reads the stage no more: one of its lanes arrives.

        A lane of each warp and not of each warp group, since a product has been waited for by the
        warp that waited, and the others' may still read.
        """
        with when(self._kernel.lane == 0):
            emit(T.ptx.mbarrier.arrive.shared.b64(self._empty.ptr_to([self.stage(use)])))


def initialised(kernel: CudaKernel, *rings: Landing) -> None:
    """All barriers of ``rings``, for all threads and for the copies that count on them."""
    with when(kernel.thread == 0):
        for ring in rings:
            ring.initialise()
    proxy_fence()
    barrier()


def _initialise(pointer, arrivals: int) -> None:
    emit(T.ptx.mbarrier.init.shared.b64(pointer, T.uint32(arrivals)))


def _wait(pointer, parity) -> None:
    emit(T.cuda.mbarrier_wait(pointer, parity))
