"""A device that is the PTX interpreter: a loaded CUDA library runs on it, host code and all."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..artifact.library import read_ptx
from ..problem.arguments import values_before
from ..ptx_interpreter import Checks, DeviceMemory, launch, parse
from ..runtime.loader import Kernel, Library
from .buffers import MappedTensors, tensors_of, with_tensors
from .pose import as_cuda

if TYPE_CHECKING:
    from ..ptx_interpreter import Report

_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint,
    ctypes.POINTER(ctypes.c_void_p),
)


class InterpretedDevice(AbstractContextManager):
    """Context in which ``library`` believes that it runs on a GPU of ``capability``.

    plain: one without the instructions that this capability alone has: sm_90, not sm_90a.
    What runs is the object code that ships: argument checks, dispatch, grids and argument order are
    the library's; kernels are the PTX kept in its artifact, interpreted.
    """

    def __init__(
        self,
        library: Library,
        capability: tuple[int, int],
        *,
        plain: bool = False,
        checks: Checks | None = None,
        seed: int = 0,
    ):
        self.ptx = read_ptx(library.path.parent)
        self.capability, self.plain = capability, plain
        self.settings = {"checks": checks or Checks(), "seed": seed}
        self.launched: list[str] = []
        self._library = library.symbols
        self._hook = _HOOK(self._launch)
        self._kernels: dict[str, Any] = {}
        self._memory: DeviceMemory | None = None
        self._reports: list[Report] = []
        self._error: Exception | None = None

    def __enter__(self) -> InterpretedDevice:
        major, minor = self.capability
        self._library.tvm_flash_set_launch_hook(self._hook, 10 * major + minor, self.plain)
        return self

    def __exit__(self, *error) -> None:
        self._library.tvm_flash_set_launch_hook(None, 0, False)

    def call(
        self,
        kernel: Kernel | Callable[..., Any],
        given: Mapping[str, Any],
        *,
        outputs: Collection[str],
        zeroed: Collection[str] | None = None,
    ) -> list[Report]:
        """Call ``kernel`` with what is given, in its order; CPU tensors pose as CUDA tensors.

        zeroed: those of ``outputs`` that hold values before; None: what a Kernel says.

        Raises what the kernel's host code raises, what the interpreter finds, UnwrittenOutput and
        StrayWrite.
        """
        self._memory, self._reports, self._error = DeviceMemory(), [], None
        if zeroed is None:
            zeroed = values_before(kernel.arguments)
        mapped = MappedTensors(self._memory, tensors_of(given), outputs, zeroed)
        try:
            kernel(*with_tensors(given, as_cuda).values())
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise
        mapped.check()
        return self._reports

    def _launch(self, name, grid, block, shared_bytes, arguments) -> int:
        """What the library calls in place of the GPU. No exception may leave it: C is waiting."""
        try:
            self._interpret(name.decode(), list(grid[:3]), list(block[:3]), shared_bytes, arguments)
        except Exception as error:
            self._error = error
            return 1
        return 0

    def _interpret(
        self, name: str, grid: Sequence[int], block: Sequence[int], shared_bytes: int, arguments
    ) -> None:
        kernel = self._kernel(name)
        values = [
            ctypes.string_at(arguments[place], parameter.size)
            for place, parameter in enumerate(kernel.params)
        ]
        self.launched.append(name)
        shape = (tuple(grid), tuple(block))
        self._reports.append(
            launch(kernel, *shape, values, self._memory, shared_bytes=shared_bytes, **self.settings)
        )

    def _kernel(self, name: str):
        if name not in self._kernels:
            self._kernels[name] = parse(self.ptx[name]).kernels[name]
        return self._kernels[name]
