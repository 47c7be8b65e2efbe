"""torch.library operators of attention: kernels, shapes without data, autograd."""

from __future__ import annotations

import torch

from .kernels import resolve
from .spec import AttentionSpec

_library = torch.library.Library("tvm_flash", "DEF")
_library.define(
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor[] tables, str spec, float softmax_scale)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "attention_backward(Tensor dout, Tensor dlse, Tensor q, Tensor k, Tensor v, Tensor out,"
    " Tensor lse, Tensor[] tables, str spec, float softmax_scale) -> (Tensor, Tensor, Tensor)"
)

# An operator's arguments are tensors and plain values: specs travel by name.
_specs: dict[str, AttentionSpec] = {}


def attention_operator(q, k, v, tables, spec: AttentionSpec, softmax_scale: float):
    """(out (B, Sq, H, Dv), lse (B, H, Sq) float32) of ``spec``; checked arguments, differentiable.

    The last dimension of q, k and v must be contiguous. lse is in natural units, -inf where a row
    sees no key.
    """
    name = remember(spec)
    return torch.ops.tvm_flash.attention_forward(q, k, v, tables, name, softmax_scale)


def remember(spec: AttentionSpec) -> str:
    """The name under which the operators find ``spec``."""
    name = spec.name
    if name not in _specs:
        _specs[name] = spec
    return name


def _forward(q, k, v, tables, spec: str, softmax_scale: float):
    q, k, v = _rows(q), _rows(k), _rows(v)
    out, lse = _forward_shapes(q, k, v, tables, spec, softmax_scale)
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_(), lse.fill_(float("-inf"))
    resolve(_specs[spec], "forward")(q, k, v, out, lse, *tables, softmax_scale)
    return out, lse


def _forward_shapes(q, k, v, tables, spec: str, softmax_scale: float):
    out = q.new_empty((q.shape[0], q.shape[1], q.shape[2], v.shape[3]))
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    return out, lse


def _backward(dout, dlse, q, k, v, out, lse, tables, spec: str, softmax_scale: float):
    q, k, v, dout, out = map(_rows, (q, k, v, dout, out))
    grads = _backward_shapes(dout, dlse, q, k, v, out, lse, tables, spec, softmax_scale)
    if q.numel() == 0 or k.numel() == 0:
        return tuple(x.zero_() for x in grads)
    kernel = resolve(_specs[spec], "backward")
    sizes = (q.shape[0], q.shape[2], k.shape[2], q.shape[1], k.shape[1])
    delta_shape, sums_shape = kernel.workspace(*sizes, torch.get_num_threads())
    delta = lse.new_empty(delta_shape)
    sums = lse.new_zeros(sums_shape)
    saved = (q, k, v, out, dout, lse.contiguous(), dlse.contiguous())
    kernel(*saved, *grads, delta, sums, *tables, softmax_scale)
    return grads


def _backward_shapes(dout, dlse, q, k, v, out, lse, tables, spec: str, softmax_scale: float):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself when its last dimension is contiguous, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _setup_context(ctx, inputs, output):
    q, k, v, tables, spec, softmax_scale = inputs
    ctx.save_for_backward(q, k, v, *output, *tables)
    ctx.spec, ctx.softmax_scale = spec, softmax_scale
    ctx.set_materialize_grads(False)


def _gradients(ctx, dout, dlse):
    q, k, v, out, lse, *tables = ctx.saved_tensors
    none = ([None] * len(tables), None, None)
    if dout is None and dlse is None:
        return None, None, None, *none
    dout = torch.zeros_like(out) if dout is None else dout
    dlse = torch.zeros_like(lse) if dlse is None else dlse
    grads = torch.ops.tvm_flash.attention_backward(
        dout, dlse, q, k, v, out, lse, tables, ctx.spec, ctx.softmax_scale
    )
    return *grads, *none


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("the gradient of attention's gradient is not computed")


_library.impl("attention_forward", _forward, "CPU")
_library.impl("attention_backward", _backward, "CPU")
torch.library.register_fake("tvm_flash::attention_forward", _forward_shapes, lib=_library)
torch.library.register_fake("tvm_flash::attention_backward", _backward_shapes, lib=_library)
torch.library.register_autograd(
    "tvm_flash::attention_forward", _gradients, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd(
    "tvm_flash::attention_backward", _no_second_derivative, lib=_library
)
