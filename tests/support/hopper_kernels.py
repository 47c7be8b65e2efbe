"""Kernels for sm_90a: the cases that they serve, and what ptxas makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable

import pytest

from tvm_flash.cases import CORRECTNESS, Case
from tvm_flash.codegen.cuda import kernel_sources
from tvm_flash.codegen.nvcc import Cubin, assemble, compile_ptx
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.program import CudaProgram, Launch

ARCH = ARCHS["sm_90a"]


def served(configs: Callable) -> list[Case]:
    """The cases of the shared list for which there are ``configs(spec, arch)``.

    What the list has in float32, where that is not what it is about, is in float16.
    """
    return [case for case in map(_in_half, CORRECTNESS) if configs(case.spec, ARCH)]


def _in_half(case: Case) -> Case:
    if case.dtype != "float32" or case.name.startswith("f32_"):
        return case
    return dataclasses.replace(case, dtype="float16")


def sweeping(cases: Iterable[Case], few: Collection[str]) -> list:
    """``cases`` as parameters of a test for `pytest -m sweep`, but for a ``few`` of these names."""
    return [
        pytest.param(case, id=case.name, marks=[] if case.name in few else [pytest.mark.sweep])
        for case in cases
    ]


def assembled(program: CudaProgram, ending: str = "") -> tuple[Launch, Cubin]:
    """The one launch of ``program`` whose name has this ``ending``, and its machine code."""
    ((launch, source),) = (
        pair
        for pair in zip(program.launches, kernel_sources(program), strict=True)
        if pair[0].name.endswith(ending)
    )
    return launch, assemble(compile_ptx(source), source.name, ARCH.name)
