"""torch.library operators of attention: kernels, shapes without data, autograd."""

from __future__ import annotations

import json

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack as _peek_interpreter_stack
from torch.autograd import _profiler_enabled, forward_ad

from .checks import check_sizes, check_tables
from .kernels import resolve
from .lengths import bucket_of
from .placement import has_readable_rows, place_of
from .spec import AttentionSpec

_library = torch.library.Library("tvm_flash", "DEF")
for _schema in (
    "attention_forward(Tensor q, Tensor k, Tensor v, Tensor[] tables, str spec,"
    " float softmax_scale, bool deterministic=False) -> (Tensor out, Tensor lse)",
    "attention_backward(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out,"
    " Tensor lse, Tensor[] tables, str spec, float softmax_scale, bool deterministic=False)"
    " -> (Tensor dq, Tensor dk, Tensor dv)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
_forward_operator = torch.ops.tvm_flash.attention_forward.default
_backward_operator = torch.ops.tvm_flash.attention_backward.default

# Operators take tensors and plain values: a spec travels as its name, or as its JSON where the
# graph may outlive this process.
_specs: dict[str, AttentionSpec] = {}


def spec_name(spec: AttentionSpec) -> str:
    """The short text by which the operators of this process know ``spec``."""
    return spec.name if spec.name in _specs else _remember(spec.name, spec).name


def spec_json(spec: AttentionSpec) -> str:
    """The text by which the operators of any process know ``spec``."""
    return json.dumps(spec.to_json(), sort_keys=True)


def attention_operator(
    q, k, v, tables, spec: str, softmax_scale: float, deterministic: bool = False
):
    """(out (B, Sq, H, Dv), lse (B, H, Sq) float32) of checked arguments, differentiable.

    ``spec`` is from ``spec_name`` or ``spec_json``. lse is in natural units, -inf where a row sees
    no key. deterministic: gradients have the same bits every run; torch may ask for that too.
    """
    if torch.compiler.is_compiling() or not _is_plain_call(q, k, v, tables):
        ordered = bool(deterministic) or torch.are_deterministic_algorithms_enabled()
        return _forward_operator(q, k, v, tables, spec, softmax_scale, ordered)
    return _run_forward(q, k, v, tables, spec, softmax_scale)


def _is_plain_call(q, k, v, tables) -> bool:
    """Whether the dispatcher, slower than a small kernel, would only call ``_forward``."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return False
    observed = (
        _profiler_enabled()
        or forward_ad._current_level >= 0
        or _len_torch_dispatch_stack() > 0
        or _peek_interpreter_stack() is not None
    )
    if observed or not (q.is_cpu or q.is_cuda):
        return False
    for x in (q, k, v, *tables):  # noqa: SIM110 (a generator takes twice as long)
        if type(x) is not torch.Tensor or x.is_neg():
            return False
    return True


def _forward(q, k, v, tables, spec: str, softmax_scale: float, deterministic: bool = False):
    _check_operator_call(q, k, v, tables)
    return _run_forward(q, k, v, tables, spec, softmax_scale)


def _run_forward(q, k, v, tables, spec: str, softmax_scale: float):
    sizes, key_sizes = q.shape, v.shape
    out, lse = _empty_results(q, sizes, key_sizes[3])
    if 0 in sizes or 0 in key_sizes:
        return out.zero_(), lse.fill_(float("-inf"))
    bucket = bucket_of("forward", sizes[1], key_sizes[1])
    device, capability = place_of(q)
    kernel = resolve(_spec(spec), "forward", device, capability, bucket)
    run, q, k, v = kernel.function, _rows(q), _rows(k), _rows(v)
    if tables:
        run(q, k, v, out, lse, *tables, softmax_scale)
    else:  # a call without a star takes less time
        run(q, k, v, out, lse, softmax_scale)
    return out, lse


def _backward(
    dout, dlse, q, k, v, out, lse, tables, spec: str, softmax_scale: float,
    deterministic: bool = False,
):  # fmt: skip
    _check_operator_call(q, k, v, tables)
    grads = tuple(_writable_like(x) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    device, capability = place_of(q)
    direction = "backward_deterministic" if deterministic else "backward"
    sizes = (q.shape[0], q.shape[2], k.shape[2], q.shape[1], k.shape[1])
    bucket = bucket_of(direction, *sizes[3:])
    kernel = resolve(_spec(spec), direction, device, capability, bucket)
    delta, sums = kernel.workspace(*sizes, torch.get_num_threads(), capability)
    dlse = torch.zeros_like(lse) if dlse is None else dlse.contiguous()
    saved = (_rows(q), _rows(k), _rows(v), _rows(out), _rows(dout), lse.contiguous(), dlse)
    workspace = (lse.new_empty(delta), lse.new_zeros(sums))
    kernel(*saved, *grads, *workspace, *tables, softmax_scale)
    return grads


def _check_operator_call(q, k, v, tables) -> None:
    """For who calls the operators without ``attention``: no kernel checks an empty problem."""
    check_sizes(q.shape, k.shape, v.shape)
    if q.numel() and k.numel():
        check_tables(tables)


def _forward_results(q, k, v, *_):
    """Empty out and lse, for kernels to fill and for the compiler to know the shapes."""
    return _empty_results(q, q.shape, v.shape[3])


def _empty_results(q, sizes, head_dim_v):
    batch, seqlen_q, heads, head_dim = sizes
    if head_dim == head_dim_v and q.is_contiguous():
        out = torch.empty_like(q)  # the same in less time
    else:
        out = q.new_empty(batch, seqlen_q, heads, head_dim_v)
    if q.dtype == torch.float32:
        return out, q.new_empty(batch, heads, seqlen_q)
    return out, q.new_empty(batch, heads, seqlen_q, dtype=torch.float32)


def _backward_results(dout, dlse, q, k, v, *_):
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


def _spec(text: str) -> AttentionSpec:
    spec = _specs.get(text)
    if spec is not None:
        return spec
    if not text.startswith("{"):
        raise ValueError(f"spec={text!r} was made in another process: pass its JSON (spec_json)")
    return _remember(text, AttentionSpec.from_json(json.loads(text)))


def _remember(text: str, spec: AttentionSpec) -> AttentionSpec:
    return _specs.setdefault(text, spec)


def _save(ctx, inputs, outputs) -> None:
    # The dispatcher leaves out a last argument that has its default value.
    q, k, v, tables, ctx.spec, ctx.softmax_scale, *ctx.deterministic = inputs
    ctx.save_for_backward(q, k, v, *outputs, *tables)
    ctx.set_materialize_grads(False)


def _gradients(ctx, dout, dlse):
    q, k, v, out, lse, *tables = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    saved = (q, k, v, out, lse, tables, ctx.spec, ctx.softmax_scale, *ctx.deterministic)
    given = (None,) * (3 + len(ctx.deterministic))
    return *_backward_operator(dout, dlse, *saved), *given


def _no_second_gradients(ctx, *grads):
    raise NotImplementedError("the gradient of attention's gradient is not computed")


def _with_autograd(operator, save, gradients):
    """What torch.library.register_autograd gives, several times faster per call."""

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                outputs = operator(*inputs)
            save(ctx, inputs, outputs)
            return outputs

        backward = staticmethod(gradients)

    return Recorded.apply


def _batched(operator):
    """torch.vmap of ``operator``: one call for each entry."""

    def rule(info, dims, *inputs):
        calls = (map(_entry, inputs, dims, [n] * len(dims)) for n in range(info.batch_size))
        results = [operator(*call) for call in calls]
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    return rule


def _entry(value, dim, number: int):
    if isinstance(value, (list, tuple)):
        return [_entry(x, d, number) for x, d in zip(value, dim, strict=True)]
    return value if dim is None else value.select(dim, number)


def _register(operator, kernel, results, save, gradients) -> None:
    name = operator._schema.name
    # Not under "CPU" alone: other devices then get an error of ours.
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, _with_autograd(operator, save, gradients), "Autograd")
    torch.library.register_fake(name, results, lib=_library)
    torch.library.register_vmap(name, _batched(operator), lib=_library)


_register(_forward_operator, _forward, _forward_results, _save, _gradients)
_register(_backward_operator, _backward, _backward_results, lambda *_: None, _no_second_gradients)
