"""A kernel behind another order of its arguments: for callers that have one of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..errors import ArtifactError
from ..problem.argument import WRITTEN
from .loader import Kernel

# What is exported by each library (codegen/runtime/arrange.c), and how it numbers what is done.
_ARRANGED = "tvm_flash_arranged"
_PLAIN, _ZEROED, _WIDE = range(3)


def arranged(
    kernel: Kernel, order: Sequence[str], wide: Collection[str] = ()
) -> Callable[..., Any]:
    """A function of tvm_ffi that is called with ``order``, names of the arguments of ``kernel``.

    It fills with zeros what must hold zeros, on the stream of the call, and runs no Python. wide:
    at most one argument, of 64-bit integers (n,), that is given as words of 32 bits (2 n,), low
    first. ArtifactError where the library is too old for that.
    """
    if not kernel.module.implements_function(_ARRANGED):
        raise ArtifactError(
            f"the library of {kernel.spec.name} is of an older tvm_flash, whose kernels are called "
            "in their own order alone: build it again with tvm_flash.build"
        )
    places = []
    for argument in kernel.arguments:
        is_zeroed = argument.zeroed and argument.role in WRITTEN
        how = _WIDE if argument.name in wide else _ZEROED if is_zeroed else _PLAIN
        places += [order.index(argument.name), how]
    return kernel.module.get_function(_ARRANGED)(kernel.function, *places)
