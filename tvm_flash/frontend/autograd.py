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


def differentiable(name: str, run, save, gradients):
    """``run(*inputs)`` with derivatives.

    ``save(ctx, inputs, outputs)`` follows it, ``gradients(ctx, *upstream)`` gives the derivatives.
    ``name`` is what profilers show, with "Backward" behind it.
    """

    def forward(ctx, *inputs):
        outputs = run(*inputs)
        save(ctx, inputs, outputs)
        return outputs

    members = {"forward": forward, "backward": gradients, "jvp": _no_forward_mode}
    members = {key: staticmethod(function) for key, function in members.items()}
    recorded = type(name, (torch.autograd.Function,), members)
    # Function.apply wants torch.func to see the whole function, by a setup_context that costs every
    # call. An operator meets one transform at a time, as torch's own do: the node belongs to it.
    apply_at_one_level = super(torch.autograd.Function, recorded).apply

    def apply(*inputs):
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
