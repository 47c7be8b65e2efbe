"""CUDA kernels called like loaded ones, on CPU tensors: their PTX runs in the interpreter."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from tvm_flash.codegen.cuda import ptx_of, ptx_version
from tvm_flash.ptx_interpreter import Report
from tvm_flash.runtime.loader import Kernel
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.program import CudaProgram
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.plan import run_program

_seed: ContextVar[int] = ContextVar("seed", default=0)


@contextmanager
def shuffled(seed: int):
    """Interpreted kernels run their warps and blocks in an order drawn from ``seed``."""
    token = _seed.set(seed)
    yield
    _seed.reset(token)


class InterpretedKernel:
    """What ``kernels.resolve`` gives, with every check of the interpreter on."""

    def __init__(self, spec, direction: str, program: CudaProgram, ptx: list[str]):
        self.program, self.ptx = program, ptx
        self.reports: list[Report] = []
        self.meta = program.meta
        loaded = Kernel(spec, direction, program.config, program.meta, self.function, "cuda")
        self.arguments, self.sizes, self.shapes = loaded.arguments, loaded.sizes, loaded.shapes

    def __call__(self, *arguments) -> None:
        self.function(*arguments)

    def function(self, *arguments) -> None:
        """The call itself, past a loaded kernel's own ``__call__``."""
        named = dict(zip(self.program.parameters, arguments, strict=True))
        self.reports = run_program(self.program, self.ptx, named, seed=_seed.get())


@cache
def interpreted(spec, direction: str, arch: str = "sm_80", choice: int = 0) -> InterpretedKernel:
    """The default kernel of ``spec`` for ``arch``, or that of a config further down the list."""
    ((_, program),) = cuda_programs(spec, direction, (ARCHS[arch],), choice=choice)
    ptx = ptx_of(program, ptx_version((ARCHS[arch],)))
    return InterpretedKernel(spec, direction, program, ptx)


def resolver(arch: str = "sm_80", choice: int = 0):
    """To stand for ``ops.resolve``: operators on CPU tensors then run CUDA kernels."""

    def resolve(spec, direction, _device_type="cpu", _capability=None, _bucket="long"):
        return interpreted(spec, direction, arch, choice)

    return resolve


def aligned_rows(x: torch.Tensor) -> bool:
    """To stand for ``placement.has_readable_rows``: the alignment that GPU kernels need."""
    from tvm_flash.frontend.placement import has_aligned_rows

    return x.stride(-1) == 1 and has_aligned_rows(x)
