"""Whether torch traces, records or transforms calls, so that an operator has to be called; and
what its compiler runs instead of tracing it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._C import (
    _get_tracing_state,
    _has_torch_function_variadic,
    _is_tracing,
    _len_torch_dispatch_stack,
    _set_tracing_state,
)
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import _profiler_enabled, forward_ad, profiler

# Parameters are tensors with a flag. Other subclasses may do anything.
_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))


def is_plain_call(q, k, v, tables) -> bool:
    """Whether a call on these tensors may skip torch's dispatcher, slower than a small kernel.

    False for a tensor that is not simply memory of q's device, and where somebody must see an
    operator. Who may, and where it is asked for:

    - torch.jit.trace: ``_is_tracing``
    - TorchFunctionMode (torch.set_default_device is one), make_fx and torch.export before dispatch,
      subclasses with ``__torch_function__``: ``_has_torch_function_variadic``
    - TorchDispatchMode: FakeTensorMode, make_fx, torch.export, AOT autograd, functional tensors,
      FlopCounterMode, selective checkpoints: ``_len_torch_dispatch_stack``
    - torch.func and torch.vmap: ``peek_interpreter_stack``
    - forward-mode differentiation: ``forward_ad``
    - profilers: ``_profiler_enabled`` for those of this thread, kineto's and older ones, NVTX, ITT;
      ``profiler._is_profiler_enabled`` for those of all threads

    torch.compile is asked for by who calls, since it must not trace this. Saved-tensor hooks and
    anomaly mode see the node of autograd, CUDA graphs the kernel: neither needs the dispatcher.
    Autocast and inference mode change nothing in an operator that has no rule for them. An
    ExecutionTraceObserver without a profiler cannot be asked for and sees what is allocated only.
    """
    if (
        _is_tracing()
        or _has_torch_function_variadic(q, k, v, *tables)
        or _len_torch_dispatch_stack() > 0
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _profiler_enabled()
        or profiler._is_profiler_enabled
    ):
        return False
    try:
        # Elements at an address: no wrapper, neither lazily negated nor zero. Written out, because
        # a function or a generator for each tensor would double the time.
        if (
            type(q) not in _TENSORS
            or type(k) not in _TENSORS
            or type(v) not in _TENSORS
            or not (q.data_ptr() and k.data_ptr() and v.data_ptr())
            or q.is_neg()
            or k.is_neg()
            or v.is_neg()
        ):
            return False
        if tables:
            device = q.get_device()
            for x in tables:
                if (
                    type(x) not in _TENSORS
                    or not x.data_ptr()
                    or x.get_device() != device
                    or x.is_neg()
                ):
                    return False
    except RuntimeError:  # a tensor that escaped from torch.func has no address
        return False
    return True


def is_recorded(q, k, v, sink, tables) -> bool:
    """Whether autograd records a plain call on these tensors; sink: None is none."""
    return torch.is_grad_enabled() and bool(
        q.requires_grad
        or k.requires_grad
        or v.requires_grad
        or (sink is not None and sink.requires_grad)
        or (tables and any(x.requires_grad for x in tables))
    )


def untraced_shapes(*tensors: torch.Tensor) -> tuple[tuple[int, ...], ...]:
    """The shapes as numbers, where torch.jit.trace makes a tensor of each size that is read."""
    state = _get_tracing_state()
    _set_tracing_state(None)
    try:
        return tuple(x.shape for x in tensors)
    finally:
        _set_tracing_state(state)


def run_by_compiler(function: Callable) -> Callable:
    """Let torch.compile run ``function`` and keep what it returns, instead of tracing into it.

    What torch.compiler.assume_constant_result does, without its second of imports.
    """
    function._dynamo_marked_constant = True
    return function
