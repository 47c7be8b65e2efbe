"""Whether what ptxas made of a kernel costs enough to refuse it: registers kept in memory, products
that wait for each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from ...schedules.cuda.program import Launch
from ..nvcc import Cubin
from .flow import steady_round
from .listing import Instruction, disassemble

# Loads from local memory that a round of the main loop may have. FlashAttention-2, compiled for
# sm_80 by its own flags with CUDA 13.0, has 8 and 4 stores in the forward of head_dim 128, 42 and
# 38 stores at 64, 6 to 9 in the backward. Four, mostly of addresses that never change, are half a
# per cent of the 850 instructions of a round of 256 products. A store means that sums or operands
# travel.
MOST_LOADS = 4


def spill_reasons(cubin: Cubin, name: str) -> list[str]:
    """Why ``cubin``, the kernel ``name``, keeps too much in local memory (empty: it may do so).

    Judged by what one steady round of the main loop executes: no store and at most ``MOST_LOADS``
    loads. Without a loop of matrix products the whole kernel counts. A kernel that needs no local
    memory is not read. Raises BuildError without nvdisasm, saying what to install.
    """
    serialised = f"{cubin.arch}: ptxas lets its products of warp groups wait for each other"
    found = _reasons(cubin, name) if cubin.resources.in_local_memory else ()
    return [*[serialised] * bool(cubin.resources.serialised), *found]


def refused_spills(launch: Launch, cubins: Iterable[Cubin]) -> list[str]:
    """``spill_reasons`` of all ``cubins`` of ``launch``; none where its schedule lets it spill."""
    if launch.may_spill:
        return []
    return [text for cubin in cubins for text in spill_reasons(cubin, launch.name)]


def spill_traffic(code: Sequence[Instruction]) -> tuple[int, int]:
    """(stores, loads) of local memory in a steady round of the main loop, else in all of ``code``.

    Raises ValueError for a main loop without a way through it.
    """
    executed = steady_round(code) or code
    return tuple(sum(one.starts(opcode) for one in executed) for opcode in ("STL", "LDL"))


# A build asks of each kernel when it chooses, and again for its error.
@lru_cache(maxsize=256)
def _reasons(cubin: Cubin, name: str) -> tuple[str, ...]:
    try:
        stores, loads = spill_traffic(disassemble(cubin.code, name))
    except ValueError as error:
        return (f"{cubin.arch}: what its spills cost is unknown: {error}",)
    if not stores and loads <= MOST_LOADS:
        return ()
    r = cubin.resources
    return (
        f"{cubin.arch}: {stores} stores and {loads} loads of spilled registers in a round of the "
        f"main loop, 0 and {MOST_LOADS} are allowed ({r.registers} registers, {r.stack} bytes of "
        f"stack, {r.spill_stores} of spill stores, {r.spill_loads} of spill loads)",
    )
