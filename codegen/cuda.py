"""Scheduled GPU functions to C++ text: the kernel for nvcc, the launcher for a C++ compiler."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tvm
import tvm.backend.cuda

from ..errors import BuildError
from . import cuda_pipeline
from .cache import content, digest
from .nvcc import compile_ptx
from .room import compiling
from .shape_checks import with_shape_checks
from .versions import build_versions

if TYPE_CHECKING:
    from ..schedules.cuda.arch import CudaArch
    from ..schedules.cuda.program import CudaProgram, Launch

# One PTX feeds ptxas for every architecture from 80 on, so that what is proven is what runs on all.
_COMMON_PTX = 80

# export_cuda_host writes kernels first, then the launchers, which begin here.
_HOST_BEGINS = "#include <tvm/ffi/c_api.h>\n"


@dataclass(frozen=True)
class KernelSource:
    """C++ of one launch: its kernel, the parameters' declarations, and its launcher.

    compute: the PTX version to compile for, 10 * major + minor. only: whether devices of this very
    capability alone run it (sm_90a).
    """

    name: str
    device: str
    parameters: tuple[str, ...]
    host: str
    compute: int
    only: bool = False

    @property
    def version(self) -> str:
        """The PTX version as nvcc names it: 80, 90a."""
        return version_name(self.compute, self.only)


def ptx_version(archs: Iterable[CudaArch]) -> int:
    """The PTX version that serves all of ``archs``."""
    return min([_COMMON_PTX, *(arch.number for arch in archs)])


def kernel_sources(program: CudaProgram, compute: int = _COMMON_PTX) -> list[KernelSource]:
    """The C++ of every launch of ``program``, in order.

    TVM's lowering is serial and takes seconds: its text is kept by the function's content.
    """
    launches = [
        replace(launch, func=with_shape_checks(launch.func, program.meta, launch.grid))
        for launch in program.launches
    ]
    return [_kernel_source(launch, compute) for launch in launches]


def ptx_of(program: CudaProgram, compute: int = _COMMON_PTX) -> list[str]:
    """The PTX of every launch of ``program``: the text that all machine code is made from."""
    return [compile_ptx(source) for source in kernel_sources(program, compute)]


def _kernel_source(launch: Launch, compute: int) -> KernelSource:
    only = bool(launch.only)
    compute = launch.only or compute
    key = {
        "function": tvm.ir.save_json(launch.func),
        "compute": version_name(compute, only),
        "pipeline": Path(cuda_pipeline.__file__).read_text(encoding="utf-8"),
        "versions": build_versions(),
    }
    text = content(
        f"{digest(key)}.cu",
        lambda: _export(launch, version_name(compute, only)).encode(),
        read=bytes.decode,
    )
    device, found, host = text.partition(_HOST_BEGINS)
    if not found:
        raise BuildError(f"{launch.name}: TVM exported no launcher; is apache-tvm the pinned one?")
    return KernelSource(launch.name, device, _parameters(launch.name, device), host, compute, only)


def version_name(compute: int, only: bool) -> str:
    """A PTX version as nvcc names it: 80, or 90a for one whose code runs on 9.0 only."""
    return f"{compute}{'a' if only else ''}"


def _export(launch: Launch, version: str) -> str:
    with compiling(f"compiling {launch.name}"):
        target = tvm.target.Target({"kind": "cuda", "arch": f"sm_{version}"}, host="cuda_host")
        module = tvm.IRModule({launch.name: launch.func})
        try:
            with target:
                built = tvm.compile(module, target=target, tir_pipeline=cuda_pipeline.PIPELINE)
            return tvm.backend.cuda.export_cuda_host(built.mod)
        except Exception as error:
            raise BuildError(f"{launch.name}: code generation for CUDA failed: {error}") from error


def _parameters(name: str, device: str) -> tuple[str, ...]:
    """Declarations of the kernel's parameters, as `half* K_ptr` or `int64_t Sq`."""
    prototype = re.search(rf"\b{name}_kernel\((.*?)\);", device)
    if not prototype:
        raise BuildError(f"{name}: no kernel {name}_kernel in the code that TVM generated")
    plain = re.sub(r"\b(__restrict__|const __grid_constant__)\s*", "", prototype[1])
    return tuple(part.strip() for part in plain.split(",") if part.strip())
