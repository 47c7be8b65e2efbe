"""Host tensors as the device memory of interpreted launches: mapped, poisoned, judged."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..problem.arguments import WORKSPACES, WRITTEN, Argument, names, values_before

if TYPE_CHECKING:
    from ..ptx_interpreter import DeviceMemory

# A NaN in every float format.
POISON = 0xFF


class UnwrittenOutput(AssertionError):
    """A kernel left part of an output as it was."""


class StrayWrite(AssertionError):
    """A kernel wrote bytes that belong to no output."""


@dataclass(eq=False)
class Storage:
    """The bytes of one torch storage, the tensors that view them, and who touched them."""

    address: int
    bytes: np.ndarray
    views: dict[str, torch.Tensor] = field(default_factory=dict)

    def reached(self, names: Collection[str]) -> np.ndarray:
        """Mask of the bytes that belong to an element of a view called one of ``names``."""
        mask = np.zeros(self.bytes.size, bool)
        for name in self.views.keys() & set(names):
            mask[byte_offsets(self.views[name], self.address)] = True
        return mask


def tensors_of(call: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors among the arguments of a call, by name; the others are numbers."""
    return {name: x for name, x in call.items() if isinstance(x, torch.Tensor)}


def with_tensors(
    call: Mapping[str, Any], changed: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """The arguments of a call by name: its tensors ``changed``, its numbers as they are."""
    return {name: changed(x) if isinstance(x, torch.Tensor) else x for name, x in call.items()}


def moved(x: torch.Tensor, device: str) -> torch.Tensor:
    """``x`` on ``device`` with the strides that it has."""
    # A copy of a view would be dense: copy what it looks into.
    if x._base is None:
        return x.to(device)
    return x._base.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def poison(tensors: Mapping[str, torch.Tensor], found: Sequence[Argument]) -> None:
    """Fill what a call writes with NaN, but for what holds values before: a gap then shows."""
    for name in {*names(found, *WRITTEN)}.difference(values_before(found)):
        tensors[name].fill_(torch.nan)


def run_elsewhere(
    call: Mapping[str, Any],
    found: Sequence[Argument],
    place: Callable[[torch.Tensor], torch.Tensor],
    run: Callable[[dict[str, Any]], object],
) -> None:
    """``run`` on ``call`` with its tensors placed, and what it writes copied back, else NaN.

    found: the arguments of the call. run returns when the results are there.
    """
    poison(call, found)
    placed = with_tensors(call, place)
    run(placed)
    for name in names(found, *WRITTEN):
        call[name].copy_(placed[name])


def storages(tensors: Mapping[str, torch.Tensor]) -> list[Storage]:
    """Each storage once, however many views of it there are; empty tensors need none."""
    found: dict[int, Storage] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        whole = tensor.untyped_storage()
        address, size = whole.data_ptr(), whole.nbytes()
        if address not in found:
            found[address] = Storage(address, bytes_at(address, size))
        found[address].views[name] = tensor
    return list(found.values())


def bytes_at(address: int, size: int) -> np.ndarray:
    """Host memory as an array that shares it; the caller keeps its owner alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def byte_offsets(view: torch.Tensor, address: int) -> np.ndarray:
    """Offsets from ``address`` of every byte of ``view``, element by element."""
    size = view.element_size()
    offsets = np.array([view.data_ptr() - address])
    for extent, stride in zip(view.shape, view.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(extent) * (stride * size)).reshape(-1)
    return (offsets[:, None] + np.arange(size)).reshape(-1)


class MappedTensors:
    """Tensors in an interpreter's memory: inputs read only, outputs poisoned and then judged."""

    def __init__(
        self,
        memory: DeviceMemory,
        tensors: Mapping[str, torch.Tensor],
        outputs: Collection[str],
        zeroed: Collection[str] = (),
    ):
        """outputs: names of tensors that are written; zeroed: those whose values may be read."""
        self.outputs = set(outputs)
        self.poisoned = self.outputs.difference(zeroed)
        self.storages = storages(tensors)
        self.before: list[np.ndarray] = []
        self.buffers = [self._map(memory, storage) for storage in self.storages]

    def _map(self, memory: DeviceMemory, storage: Storage):
        """Bytes of inputs are initialised, those between the rows of a view are not."""
        storage.bytes[storage.reached(self.poisoned)] = POISON
        self.before.append(storage.bytes.copy())
        readable = storage.reached(storage.views.keys() - self.poisoned)
        return memory.map(
            ", ".join(sorted(storage.views)),
            storage.address,
            storage.bytes,
            initialised=True if readable.all() else readable,
            writable=bool(storage.views.keys() & self.outputs),
        )

    def check(self) -> None:
        """UnwrittenOutput or StrayWrite unless every byte of outputs was written, and only they.

        Of workspaces a part may be left: what nobody wrote, nobody may have read.
        """
        for storage, buffer, before in zip(self.storages, self.buffers, self.before, strict=True):
            if buffer.writable:
                self._check(storage, buffer.written_mask(), storage.bytes != before)

    def _check(self, storage: Storage, written: np.ndarray, changed: np.ndarray) -> None:
        # The interpreter's record counts initialised bytes as written: there, change must do.
        readable = storage.reached(storage.views.keys() - self.poisoned)
        stray = np.flatnonzero(((written & ~readable) | changed) & ~storage.reached(self.outputs))
        if stray.size:
            raise StrayWrite(
                f"{stray.size} bytes outside every output were written, the first at byte "
                f"{stray[0]} of the storage of {', '.join(storage.views)}"
            )
        for name in (self.poisoned & storage.views.keys()).difference(WORKSPACES):
            _check_written(name, storage.views[name], storage.address, written)


def _check_written(name: str, view: torch.Tensor, address: int, written: np.ndarray) -> None:
    elements = written[byte_offsets(view, address)].reshape(-1, view.element_size()).all(axis=1)
    if not elements.all():
        missing = np.flatnonzero(~elements)
        first = [int(i) for i in np.unravel_index(missing[0], view.shape)]
        raise UnwrittenOutput(
            f"{missing.size} of {elements.size} elements of {name} were not written, "
            f"the first {name}{first} of {list(view.shape)}"
        )
