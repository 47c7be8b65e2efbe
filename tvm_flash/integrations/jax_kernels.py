"""A kernel as a function of JAX arrays: what the table of its arguments says, as XLA has it.

XLA hands over what is read, what is written and numbers, in this order, and memory of any content.
A library puts its kernel behind that order and zeroes what must be zero, so that no Python runs in
a call (codegen/runtime/arrange.c).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np

from ..problem.argument import WRITTEN, Argument
from ..problem.arguments import LONGEST, shape_of, sizes_of_shapes
from ..problem.table_parts import table_parts
from ..runtime.arranged import arranged
from ..runtime.loader import Kernel

# What jax.ffi calls our devices.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}

_targets: dict[Kernel, str] = {}
_number = count(1)

Arrays = Mapping[str, jax.Array]


def call_kernel(kernel: Kernel, given: Arrays, numbers: Mapping[str, float]) -> dict:
    """The outputs of ``kernel`` by name, of what is ``given`` by the names of its arguments.

    What is optional may be absent and is then zeros. Integers of 64 bits are pairs of words, low
    first, (2 n,) uint32 for (n,).
    """
    read, written, own = _parts(kernel.arguments)
    values = _sizes(kernel, given, numbers)
    inputs = [_input(a, given, values) for a in read]
    results = [jax.ShapeDtypeStruct(shape_of(a, values), _dtype(a)) for a in written]
    attributes = {a.name: _attribute(a, numbers[a.name]) for a in own}
    found = jax.ffi.ffi_call(_target(kernel), results)(*inputs, **attributes)
    return {a.name: x for a, x in zip(written, found, strict=True) if a.role == "output"}


def _parts(arguments: Sequence[Argument]) -> tuple[list[Argument], list[Argument], list[Argument]]:
    """What is read, what is written, numbers: the order in which XLA has them."""
    written = [a for a in arguments if a.is_tensor and a.role in WRITTEN]
    read = [a for a in arguments if a.is_tensor and a.role not in WRITTEN]
    return read, written, [a for a in arguments if not a.is_tensor]


def _sizes(kernel: Kernel, given: Arrays, numbers: Mapping[str, float]) -> dict[str, int]:
    """The sizes of a call by name, of workspaces too."""
    own = [a for a in kernel.arguments if a.is_tensor and a.name in given and not _is_wide(a)]
    sizes = sizes_of_shapes(own, {a.name: given[a.name].shape for a in own})
    sizes |= {LONGEST.name: numbers[LONGEST.name]} if LONGEST.name in numbers else {}
    threads = _threads() if kernel.device == "cpu" else 0
    if learned := kernel.spec.learned:
        elements = sum(given[f"table{n}"].size for n in learned)
        parts = table_parts(kernel.spec, sizes, elements, threads)
        sizes |= {"parts": parts, "learned": len(learned)}
    return kernel.sizes(sizes, threads)


def _threads() -> int:
    """CPUs that this process may use: as many as a team of OpenMP has at most."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _input(argument: Argument, given: Arrays, values: Mapping[str, int]) -> jax.Array:
    value = given.get(argument.name)
    if value is not None:
        return value
    if not argument.optional:
        raise ValueError(f"{argument.name} is missing: this kernel needs it")
    return jnp.zeros(shape_of(argument, values), _dtype(argument))


def _is_wide(argument: Argument) -> bool:
    return argument.dtype == "int64" and argument.role == "input"


def _dtype(argument: Argument) -> jnp.dtype:
    return jnp.dtype(argument.dtype)


def _attribute(argument: Argument, value: float) -> np.generic:
    return np.int64(value) if argument.dtype.startswith("int") else np.float64(value)


def _target(kernel: Kernel) -> str:
    """The name that XLA knows ``kernel`` by, told at its first use."""
    if kernel not in _targets:
        name = f"tvm_flash.{kernel.spec.name}.{kernel.direction}.{next(_number)}"
        parts = _parts(kernel.arguments)
        order = [a.name for part in parts for a in part]
        function = arranged(kernel, order, [a.name for a in kernel.arguments if _is_wide(a)])
        numbers = [f"attrs.{a.name}" for a in parts[-1]]
        _register()(name, function, ["args", "rets", *numbers], PLATFORMS[kernel.device])
        _targets[kernel] = name
    return _targets[kernel]


def _register():
    try:
        from jax_tvm_ffi import register_ffi_target
    except ImportError as error:
        raise ImportError("jax-tvm-ffi is needed: pip install 'tvm-flash[jax]'") from error
    return register_ffi_target
