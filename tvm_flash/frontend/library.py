"""The library of operators: how one is defined, and what torch is told of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import register_flop_formula

from .autograd import below_autograd, differentiable
from .recording import parameters

# "tvm_flash", or what the package is called in a kernels repository (codegen/kernels_repo.py).
_NAMESPACE = __name__.partition(".")[0]
_library = torch.library.Library(_NAMESPACE, "DEF")

# save and gradients of ``autograd.differentiable``.
Derivative = tuple[Callable, Callable]


def define(text: str):
    """The operator that ``text``, from ``schemas.schema``, declares.

    Tensor[], though AOTInductor hands an empty list over as None: of a Tensor[]? the dispatcher
    does not look at the tensors, and who watches or maps one of them is not asked.
    """
    _library.define(text, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(getattr(torch.ops, _NAMESPACE), text.partition("(")[0]).default


def register(
    operator,
    kernel: Callable,
    results: Callable,
    derivative: Derivative,
    mapped: Callable,
    flops: Callable,
    *,
    flops_of_tensors: bool = False,
) -> None:
    """Tell torch how ``operator`` is computed.

    results: empty ones, of fake tensors. mapped: its rule of torch.vmap. flops: counts operations
    from the inputs' shapes, or from the tensors themselves with ``flops_of_tensors``.
    """
    name = operator._schema.name
    # Not under "CPU" alone: other devices then get an error of ours.
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    tables = list(parameters(operator)).index("tables")
    recorded = differentiable(operator._opname, below_autograd(operator), *derivative, tables)
    _library.impl(name, _with_list(recorded, tables), "Autograd")
    torch.library.register_fake(name, results, lib=_library)
    torch.library.register_vmap(name, mapped, lib=_library)
    register_flop_formula(operator.overloadpacket, get_raw=flops_of_tensors)(flops)


def register_composed(operator, kernel: Callable, results: Callable, recorded: Callable) -> None:
    """Tell torch how ``operator``, without captured tables, is computed.

    results: empty ones, of fake tensors. recorded: of ``autograd.differentiable``.
    """
    name = operator._schema.name
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, recorded, "Autograd")
    torch.library.register_fake(name, results, lib=_library)


def register_update(operator, kernel: Callable) -> None:
    """Tell torch how ``operator``, which writes its arguments in place and gives nothing, works.

    Nothing is recorded of it: callers detach what they hand over.
    """
    name = operator._schema.name
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(name, lambda *_, **__: None, lib=_library)


def without_derivative(message: str) -> Derivative:
    """NotImplementedError with ``message`` where somebody asks for a gradient."""

    def refuse(ctx, *grads):
        raise NotImplementedError(message)

    return lambda *_: None, refuse


NO_SECOND_GRADIENTS = without_derivative("the gradient of attention's gradient is not computed")


def _with_list(run, place: int):
    """``run`` with an empty list for None at ``place``: it hands that to an operator again."""

    def call(*inputs):
        if inputs[place] is None:
            inputs = (*inputs[:place], [], *inputs[place + 1 :])
        return run(*inputs)

    return call
