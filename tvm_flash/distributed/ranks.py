"""A rank among those that share a sequence, and blocks of rows that travel between them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.distributed as dist

# Groups whose ranks have met: what they say is compared on CPUs, and in the first call elsewhere.
_met: WeakSet = WeakSet()
_CHECKS = os.environ.get("TVM_FLASH_CHECK", "") not in ("", "0")


class Ranks(NamedTuple):
    """The ranks of a process group, and which of them this process is."""

    group: Any
    rank: int
    world: int

    def peer(self, step: int) -> int:
        """The number in the group of the rank ``step`` behind this one."""
        return (self.rank + step) % self.world


def ranks_of(group) -> Ranks:
    """The ranks of ``group``: a ProcessGroup, a DeviceMesh of one dimension, None for all.

    ValueError where there is no process group, or this process is not in it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "there is no process group: call torch.distributed.init_process_group() in every "
            "process, or tvm_flash.attention in one"
        )
    if hasattr(group, "get_group"):  # a DeviceMesh
        group = group.get_group()
    group = dist.group.WORLD if group is None else group
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(f"rank {dist.get_rank()} calls for a group that it is not in")
    return Ranks(group, rank, dist.get_world_size(group))


def check_agreement(ranks: Ranks, q: torch.Tensor, shapes: dict[str, torch.Size], options) -> None:
    """ValueError on every rank unless all have equal ``shapes``, by name, q's dtype and options.

    Without it, ranks that differ would wait for each other for ever. Compared on CPUs; on other
    devices in the first call of a group alone, because to read numbers waits for the device
    (TVM_FLASH_CHECK=1: always).
    """
    if ranks.world == 1 or not (q.is_cpu or _CHECKS or ranks.group not in _met):
        return
    # As many numbers on all ranks, be it packed rows or a batch.
    padded = {name: [*shape, *[0] * (4 - len(shape))] for name, shape in shapes.items()}
    own = {f"{name}.shape[{n}]": size for name, x in padded.items() for n, size in enumerate(x)}
    own["dtype or options"] = zlib.crc32(repr((q.dtype, options)).encode())
    numbers = torch.tensor([*own.values()], dtype=torch.int64, device=q.device)
    found = [torch.empty_like(numbers) for _ in range(ranks.world)]
    dist.all_gather(found, numbers, group=ranks.group)
    _met.add(ranks.group)
    first, *others = torch.stack(found).tolist()
    for rank, theirs in enumerate(others, 1):
        for name, value, other in zip(own, first, theirs, strict=True):
            if value != other:
                said = f": {value} and {other}" if "shape" in name else f", here {options!r:.200}"
                raise ValueError(f"ranks 0 and {rank} of the group differ in {name}{said}")


class Transfer:
    """Tensors on their way: ``sent`` to one rank of the group, ``received`` from another."""

    def __init__(
        self,
        ranks: Ranks,
        to: int,
        sent: Sequence[torch.Tensor],
        source: int,
        received: Sequence[torch.Tensor],
    ):
        to, source = (dist.get_global_rank(ranks.group, peer) for peer in (to, source))
        operations = [
            *(dist.P2POp(dist.isend, x, to, ranks.group) for x in sent),
            *(dist.P2POp(dist.irecv, x, source, ranks.group) for x in received),
        ]
        self._sent, self._received = sent, received  # in memory until they have arrived
        self._works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> Sequence[torch.Tensor]:
        """What was received."""
        for work in self._works:
            work.wait()
        return self._received
