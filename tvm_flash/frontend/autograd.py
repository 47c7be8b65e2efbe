"""Differentiable operators, as torch.library.register_autograd makes them, quicker to call.

Several times quicker, and for the transforms of torch.func too.
"""

from __future__ import annotations

import torch
from torch._C import _AutoDispatchBelowAutograd
from torch._C._functorch import (
    get_single_level_autograd_function_allowed,
    peek_interpreter_stack,
    set_single_level_autograd_function_allowed,
)
from torch.autograd.forward_ad import _set_fwd_grad_enabled

from ..score.gradients import wants_gradient


def differentiable(name: str, run, save, gradients, tables: int | None = None):
    """``run(*inputs)`` with derivatives.

    ``save(ctx, inputs, outputs)`` follows it, ``gradients(ctx, *upstream)`` gives the derivatives
    by the inputs, then by the tables ``ctx.learned``, numbers of those that want one. ``name`` is
    what profilers show, with "Backward" behind it. tables: which of the inputs is the list of them;
    None: no table is an input.
    """

    def forward(ctx, *inputs):
        # What is in a list is followed only where it is an input too.
        ctx.learned = inputs[-1]
        inputs = inputs[: -1 - len(ctx.learned)]
        outputs = run(*inputs)
        save(ctx, inputs, outputs)
        return outputs

    def backward(ctx, *upstream):
        return (*gradients(ctx, *upstream), None)

    members = {"forward": forward, "backward": backward, "jvp": _no_forward_mode}
    members = {key: staticmethod(function) for key, function in members.items()}
    recorded = type(name, (torch.autograd.Function,), members)
    # Function.apply wants torch.func to see the whole function, by a setup_context that costs every
    # call. An operator meets one transform at a time, as torch's own do: the node belongs to it.
    apply_at_one_level = super(torch.autograd.Function, recorded).apply

    def apply(*inputs):
        learned = ()
        if tables is not None and len(inputs) > tables and inputs[tables]:
            learned = tuple(n for n, x in enumerate(inputs[tables]) if wants_gradient(x))
        inputs = (*inputs, *[inputs[tables][n] for n in learned], learned)
        if peek_interpreter_stack() is None:
            return recorded.apply(*inputs)
        before = get_single_level_autograd_function_allowed()
        set_single_level_autograd_function_allowed(True)
        try:
            return apply_at_one_level(*inputs)
        finally:
            set_single_level_autograd_function_allowed(before)

    return apply


def below_autograd(operator):
    """``operator`` for use inside a node of autograd: what handles it next."""

    def run(*inputs):
        if peek_interpreter_stack() is None:
            with _AutoDispatchBelowAutograd():
                return operator(*inputs)
        # A node runs without gradients, yet the transform outside this one may want them.
        with torch.enable_grad(), _set_fwd_grad_enabled(True), _AutoDispatchBelowAutograd():
            return operator(*inputs)

    return run


def _no_forward_mode(ctx, *tangents):
    raise NotImplementedError(
        "forward-mode derivatives of attention (jvp, jacfwd, hessian) are not computed: use "
        "reverse mode (vjp, jacrev, grad)"
    )
