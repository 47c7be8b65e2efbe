"""Run a CUDA program on host tensors: its kernels' PTX interpreted, launch by launch."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from ..codegen.nvcc import parameters_of
from ..ptx_interpreter import Checks, DeviceMemory, TensorMap, launch, parse
from ..schedules.cuda.program import CudaProgram, Launch
from .buffers import MappedTensors, tensors_of

if TYPE_CHECKING:
    from ..ptx_interpreter import Report

# C types of scalar parameters, as struct packs them.
_FORMATS = {"float": "f", "int": "i", "int32_t": "i", "int64_t": "q", "double": "d", "uint": "I"}


def run_program(
    program: CudaProgram,
    ptx_texts: Sequence[str],
    call: Mapping[str, Any],
    *,
    outputs: Collection[str] | None = None,
    zeroed: Collection[str] | None = None,
    checks: Checks | None = None,
    seed: int = 0,
) -> list[Report]:
    """Interpret the launches of ``program`` on CPU tensors: a report for each that has blocks.

    call: tensors and numbers by public parameter name.
    outputs: which of them it writes; they are poisoned first, except ``zeroed``. By default those
    that the program names. Raises what the interpreter finds, UnwrittenOutput and StrayWrite.
    """
    memory = DeviceMemory()
    outputs = program.written if outputs is None else outputs
    zeroed = program.held if zeroed is None else zeroed
    mapped = MappedTensors(memory, tensors_of(call), outputs, zeroed)
    settings = {"checks": checks or Checks(), "seed": seed}
    reports = []
    for step, ptx in zip(program.launches, ptx_texts, strict=True):
        kernel = parsed(ptx).kernels[f"{step.name}_kernel"]
        grid = grid_of(step, parameter_values(step, call))
        if 0 in grid:
            continue
        shape = (grid, (step.threads, 1, 1))
        arguments = bind(step, ptx, call)
        settings["shared_bytes"] = step.shared_bytes
        reports.append(launch(kernel, *shape, arguments, memory, **settings))
    mapped.check()
    return reports


def grid_of(step: Launch, sizes: Mapping[str, Any]) -> tuple[int, int, int]:
    """Blocks of a launch, of sizes by name."""
    x, y, z = (int(extent) for extent in (*step.grid(sizes), 1, 1)[:3])
    return x, y, z


def bind(step: Launch, ptx: str, call: Mapping[str, Any]) -> list[bytes]:
    """The kernel's parameters in order, each as the bytes the launcher would pass."""
    values = parameter_values(step, call)
    return [_bytes_of(step, declaration, values) for declaration in parameters_of(ptx)]


def parameter_values(step: Launch, call: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the C++ names: `{buffer}_ptr`, the variables of shapes and strides, scalars."""
    values: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for parameter, name in zip(step.func.params, step.arguments, strict=True):
        buffer = _buffer_of(step.func, parameter)
        if buffer is None:
            values[str(parameter.name)] = call[name]
            continue
        tensor = call[name]
        values[f"{buffer.name}_ptr"] = tensor.data_ptr()
        tensors[name] = tensor
        for variable, number in zip(buffer.shape, tensor.shape, strict=True):
            _bind_variable(step, values, variable, number)
        if buffer.strides:
            _bind_strides(step, values, buffer, tensor)
    for tensor_map in step.tensor_maps:
        values[tensor_map.name] = _encoded(tensor_map, tensors[tensor_map.tensor])
    return values


def _encoded(tensor_map: Any, tensor: torch.Tensor) -> bytes:
    """The bytes that the launcher makes of ``tensor``, which may be empty."""
    if not tensor.numel():
        return bytes(128)
    size = tensor.element_size()
    extents, strides = tensor_map.fields(tensor.shape, tensor.stride(), size)
    dtype = str(tensor.dtype).removeprefix("torch.")
    box = tensor_map.box(size)
    return TensorMap(tensor.data_ptr(), dtype, extents, strides, box, swizzle=128).to_bytes()


def _bind_strides(step: Launch, values: dict[str, Any], buffer: Any, tensor: torch.Tensor) -> None:
    """The stride of an axis with one element means nothing: torch may give any."""
    axes = zip(buffer.strides, tensor.stride(), tensor.shape, strict=True)
    for variable, number, extent in axes:
        if extent > 1 or hasattr(variable, "name"):
            _bind_variable(step, values, variable, number)


def _buffer_of(func: Any, parameter: Any) -> Any:
    """The buffer of a parameter: itself in TIRx, from the map where there is one."""
    mapping = getattr(func, "buffer_map", None) or {}
    if parameter in mapping:
        return mapping[parameter]
    return parameter if getattr(parameter, "shape", None) is not None else None


def _bind_variable(step: Launch, values: dict[str, Any], variable: Any, number: int) -> None:
    name = getattr(variable, "name", None)
    if name is None:  # a constant extent
        if int(variable) != number:
            raise ValueError(f"{step.name}: an extent is {number}, it was built for {variable}")
        return
    if values.setdefault(str(name), number) != number:
        raise ValueError(f"{step.name}: {name} is {values[str(name)]} and {number}")


def _bytes_of(step: Launch, declaration: str, values: Mapping[str, Any]) -> bytes:
    kind, _, name = declaration.rpartition(" ")
    if name not in values:
        raise ValueError(f"{step.name}: nothing to bind to parameter {declaration!r}")
    if kind == "CUtensorMap":
        return values[name]
    if kind.endswith("*"):
        return struct.pack("<Q", values[name])
    return struct.pack("<" + _FORMATS[kind], values[name])


@lru_cache(maxsize=64)
def parsed(ptx: str):
    """The parsed module of a PTX text; many problems share one."""
    return parse(ptx)
