"""torch.library operators of attention: kernels, shapes without data, autograd."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import register_flop_formula

from ..problem.lengths import bucket_of
from ..runtime.kernels import resolve
from .autograd import below_autograd, differentiable
from .checks import check_backward_call, check_operator_call
from .observers import is_plain_call
from .placement import has_readable_rows, place_of
from .results import empty_results, empty_results_on_cpu
from .spec_names import lasting_text, spec_json, spec_name, spec_of
from .vmap import batched

__all__ = ["attention_operator", "spec_json", "spec_name"]

_library = torch.library.Library("tvm_flash", "DEF")
# Tensor[], though AOTInductor hands an empty list over as None: of a Tensor[]? the dispatcher does
# not look at the tensors, and who watches or maps one of them is not asked.
for _schema in (
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor[] tables, str spec,"
    " float softmax_scale, bool deterministic=False)"
    " -> (Tensor out, Tensor lse, Tensor lse_low)",
    "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out,"
    " Tensor lse, Tensor lse_low, Tensor[] tables, str spec, float softmax_scale,"
    " bool deterministic=False) -> (Tensor dq, Tensor dk, Tensor dv)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_forward_operator = torch.ops.tvm_flash.attention_forward.default
_backward_operator = torch.ops.tvm_flash.attention_backward.default


def attention_operator(
    q, k, v, tables, spec: str, softmax_scale: float, deterministic: bool = False
):
    """(out (B, Sq, H, Dv), lse (B, H, Sq) float32) of checked arguments, differentiable.

    ``spec`` is from ``spec_name`` or ``spec_json``. lse is in natural units, -inf where a row sees
    no key. deterministic: gradients have the same bits every run; torch may ask for that too.
    """
    run = _forward_operator
    if not torch.compiler.is_compiling():
        if not is_plain_call(q, k, v, tables):
            spec = lasting_text(spec)
        elif torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            run = _differentiable_forward
        else:
            return _run_forward(q, k, v, tables, spec, softmax_scale)[:2]
    return run(q, k, v, tables, spec, softmax_scale, _is_ordered(deterministic))[:2]


def _is_ordered(deterministic: bool) -> bool:
    return bool(deterministic) or torch.are_deterministic_algorithms_enabled()


def _forward(q, k, v, tables, spec: str, softmax_scale: float, deterministic: bool = False):
    check_operator_call(q, k, v, tables)
    return _completed(*_run_forward(q, k, v, tables, spec, softmax_scale))


def _forward_in_node(*inputs):
    """``_forward`` of tensors that were checked."""
    return _completed(*_run_forward(*inputs))


def _run_forward(q, k, v, tables, spec: str, softmax_scale: float, deterministic: bool = False):
    """out and the arrays that ``spec.saved_statistics`` names."""
    sizes, key_sizes, spec = q.shape, v.shape, spec_of(spec)
    device, capability = place_of(q)
    make = empty_results_on_cpu if device == "cpu" else empty_results
    results = make(q, sizes, key_sizes[3], spec)
    if 0 in sizes or 0 in key_sizes:
        return _results_without_keys(*results)
    bucket = bucket_of("forward", sizes[1], key_sizes[1])
    kernel = resolve(spec, "forward", device, capability, bucket)
    run, q, k, v = kernel.function, _rows(q), _rows(k), _rows(v)
    if tables or len(results) > 2:
        run(q, k, v, *results, *tables, softmax_scale)
    else:  # a call without a star takes less time
        out, lse = results
        run(q, k, v, out, lse, softmax_scale)
    return results


def _completed(out, lse, lse_low=None):
    """What the operator returns: an lse_low without elements where there is none."""
    return out, lse, lse.new_empty(lse.shape[0], 0) if lse_low is None else lse_low


def _results_without_keys(out, lse, *lse_low):
    return out.zero_(), lse.fill_(float("-inf")), *(low.zero_() for low in lse_low)


def _backward(
    dout, dlse, q, k, v, out, lse, lse_low, tables, spec: str, softmax_scale: float,
    deterministic: bool = False,
):  # fmt: skip
    check_backward_call(dout, dlse, q, k, v, out, lse, lse_low, tables)
    grads = tuple(_writable_like(x) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    device, capability = place_of(q)
    direction = "backward_deterministic" if _is_ordered(deterministic) else "backward"
    sizes = (q.shape[0], q.shape[2], k.shape[2], q.shape[1], k.shape[1])
    bucket = bucket_of(direction, *sizes[3:])
    spec = spec_of(spec)
    kernel = resolve(spec, direction, device, capability, bucket)
    delta, sums = kernel.workspace(*sizes, torch.get_num_threads(), capability)
    dlse = torch.zeros_like(lse) if dlse is None else dlse.contiguous()
    statistics = [x.contiguous() for x in (lse, lse_low)[: len(spec.saved_statistics)]]
    saved = (_rows(q), _rows(k), _rows(v), _rows(out), _rows(dout), *statistics, dlse)
    workspace = (lse.new_empty(delta), lse.new_zeros(sums))
    kernel(*saved, *grads, *workspace, *(tables or ()), softmax_scale)
    return grads


def _forward_results(q, k, v, tables, spec: str, *_):
    """Empty results, of tensors without elements too."""
    check_operator_call(q, k, v, tables)
    return _completed(*empty_results(q, q.shape, v.shape[3], spec_of(spec)))


def _backward_results(dout, dlse, q, k, v, out, lse, lse_low, tables, *_):
    check_backward_call(dout, dlse, q, k, v, out, lse, lse_low, tables)
    return tuple(_writable_like(x) for x in (q, k, v))


def _writable_like(x: torch.Tensor) -> torch.Tensor:
    """An empty gradient of ``x``, with its strides where kernels can write these."""
    like = torch.empty_like(x)
    return like if has_readable_rows(like) else x.new_empty(x.shape)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself when kernels can read its rows, else a copy."""
    if x.is_cpu and x.is_contiguous():  # the most frequent case
        return x
    return x if has_readable_rows(x) else x.contiguous()


def _save(ctx, inputs, outputs) -> None:
    # The dispatcher leaves out a last argument that has its default value.
    q, k, v, tables, ctx.spec, ctx.softmax_scale, *ctx.deterministic = inputs
    ctx.save_for_backward(q, k, v, *outputs, *(tables or ()))
    ctx.mark_non_differentiable(outputs[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx, dout, dlse, dlse_low):
    q, k, v, out, lse, lse_low, *tables = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    saved = (q, k, v, out, lse, lse_low, tables, ctx.spec, ctx.softmax_scale, *ctx.deterministic)
    given = (None,) * (3 + len(ctx.deterministic))
    return *_backward_operator(dout, dlse, *saved), *given


def _no_second_gradients(ctx, *grads):
    raise NotImplementedError("the gradient of attention's gradient is not computed")


def _forward_flops(q, k, v, *_, **__) -> int:
    """Of both products, whatever a mask leaves out: as torch counts its own attention."""
    return _flops(q, k, q[3] + v[3])


def _backward_flops(dout, dlse, q, k, v, *_, **__) -> int:
    return _flops(q, k, 3 * q[3] + 2 * v[3])


def _flops(q, k, columns: int) -> int:
    batch, seqlen_q, heads, _ = q
    return 2 * batch * heads * seqlen_q * k[1] * columns


def _with_list(run, place: int):
    """``run`` with an empty list for None at ``place``: it hands that to an operator again."""

    def call(*inputs):
        if inputs[place] is None:
            inputs = (*inputs[:place], [], *inputs[place + 1 :])
        return run(*inputs)

    return call


def _register(operator, tensors: int, kernel, results, save, gradients, flops) -> None:
    """``operator`` takes that many tensors with a batch first, then tables and plain values."""
    name = operator._schema.name
    # Not under "CPU" alone: other devices then get an error of ours.
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    recorded = differentiable(operator._opname, below_autograd(operator), save, gradients)
    _library.impl(name, _with_list(recorded, tensors), "Autograd")
    torch.library.register_fake(name, results, lib=_library)
    torch.library.register_vmap(name, batched(operator, tensors), lib=_library)
    register_flop_formula(operator.overloadpacket)(flops)


# Nobody watches, so the dispatcher need not.
_differentiable_forward = differentiable("attention_forward", _forward_in_node, _save, _gradients)
_register(_forward_operator, 3, _forward, _forward_results, _save, _gradients, _forward_flops)
_register(
    _backward_operator, 8, _backward, _backward_results, lambda *_: None, _no_second_gradients,
    _backward_flops,
)  # fmt: skip
