"""Which properties of a kernel are verified while it runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Checks:
    """All on by default; turning one off never changes what a correct kernel computes.

    bounds: global accesses inside buffers (others always are). alignment: addresses are multiples
    of the access size.
    uninitialised: no read of bytes nobody wrote. races: shared memory, between threads of a block.
    global_races: global memory, between blocks. async_: cp.async, TMA and wgmma data before their
    wait or fence. init_fence: bulk copies need a proxy fence after mbarrier.init (CUDA's guide
    asks for it, Triton leaves it out). warp_wait: each warp's wgmma reads end at its own
    wait_group; off, the first warp of the warpgroup to wait speaks for all (as FlashAttention-3
    assumes). A deadlock is always an error."""

    bounds: bool = True
    alignment: bool = True
    uninitialised: bool = True
    races: bool = True
    global_races: bool = True
    async_: bool = True
    init_fence: bool = True
    warp_wait: bool = True
