"""What a CUDA schedule gives to code generation: kernels in launch order and their geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvm import tirx

if TYPE_CHECKING:
    from .hopper.tensor_maps import TensorMap

# x, y, z of a grid from the sizes of a call by name (problem.arguments), ints or TIR expressions.
Grid = Callable[[Mapping[str, Any]], tuple[Any, Any, Any]]


def blocks(length: Any, size: int) -> Any:
    """How many blocks of ``size`` cover ``length``, an int or a TIR expression."""
    covered = length + (size - 1)
    return covered // size if isinstance(length, int) else tirx.truncdiv(covered, size)


@dataclass(frozen=True)
class Launch:
    """One kernel: its TIRx function (attribute global_symbol) and how it is launched.

    arguments: which of the public function's parameters it takes, in the order of its own.
    grid: blocks (x, y, z) for given sizes; threads and shared_bytes: of one block. may_spill: that
    it keeps some values in local memory is known and accepted. tensor_maps: what its launcher makes
    of arguments, and passes on too. only: the number of the one compute capability whose
    instructions it has (90: those of sm_90a), 0 where any later device runs its PTX.
    """

    func: tirx.PrimFunc
    arguments: tuple[str, ...]
    grid: Grid
    threads: int
    shared_bytes: int
    may_spill: bool = False
    tensor_maps: tuple[TensorMap, ...] = ()
    only: int = 0

    @property
    def name(self) -> str:
        """Symbol of the launcher; the kernel itself is called ``{name}_kernel``."""
        return str(self.func.attrs["global_symbol"])


@dataclass(frozen=True)
class CudaProgram:
    """A public function: what is called, and the kernels it launches one after the other.

    parameters: names of the public arguments in order (tensors, then numbers). written: those that
    it writes; held: those of them that hold values before.
    config: the schedule's numbers; meta: what a caller must know to size workspaces. sources: by
    architecture, where the numbers come from (records.Choice), or "given".
    """

    symbol: str
    parameters: tuple[str, ...]
    launches: tuple[Launch, ...]
    config: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
