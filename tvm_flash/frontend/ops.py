"""torch.library operators of attention: kernels, shapes without data, autograd."""

from __future__ import annotations

from functools import cache, partial

import torch

from ..problem.arguments import NUMBERS, TABLE, call_sizes, named_sizes, names
from ..problem.lengths import bucket_of
from ..runtime.call import completed
from ..runtime.kernels import resolve
from . import placement
from .autograd import differentiable
from .checks import check_backward_call, check_operator_call, check_rng, check_sink
from .library import NO_SECOND_GRADIENTS, define, register
from .observers import is_plain_call, is_recorded
from .placement import place_of
from .recording import Recording, named, parameters
from .results import (
    allocated,
    completed_gradients,
    completed_results,
    forward_plan,
    from_layouts,
    gradients_without_keys,
    layouts_of,
    outputs,
    results_without_keys,
)
from .schemas import LEARNED, schema
from .spec_names import lasting_text, spec_json, spec_name, spec_of
from .splitting import splits_on
from .vmap import batched

__all__ = ["attention_operator", "spec_json", "spec_name"]

_forward_operator, _backward_operator = (
    define(schema(f"attention_{direction}", TABLE[direction]))
    for direction in ("forward", "backward")
)
# The backward calls it; ``table_ops`` tells torch how it is computed.
TABLE_GRADIENTS = define(
    schema("attention_tables", TABLE["tables"], choices=[LEARNED], results=["gradients"])
)
_recording = Recording(_forward_operator, _backward_operator, TABLE_GRADIENTS, TABLE)


def attention_operator(
    q, k, v, tables, spec: str, softmax_scale: float, sink=None, deterministic: bool = False,
    window_left: int = -1, window_right: int = -1, softcap: float = 0.0, dropout: float = 0.0,
    rng=None,
):  # fmt: skip
    """(out (B, Sq, H, Dv), lse (B, H, Sq) float32) of checked arguments, differentiable.

    ``spec`` is from ``spec_name`` or ``spec_json``, and takes of the numbers those that it has. lse
    is in natural units, -inf where a row sees no key, without elements where the spec has none.
    sink (H,) float32, rng (2,) int64: of a spec that has it. deterministic: gradients have the same
    bits every run; torch may ask for that too.
    """
    run = _forward_operator
    if not torch.compiler.is_compiling():
        others = tables
        if sink is not None or rng is not None:
            others = [*tables, *(x for x in (sink, rng) if x is not None)]
        if not is_plain_call(q, k, v, others):
            spec = lasting_text(spec)
        elif is_recorded(q, k, v, sink, tables):
            run = _differentiable_forward
        else:
            results = _run_forward(
                q, k, v, tables, spec, softmax_scale, sink, rng, False, window_left, window_right,
                softcap, dropout,
            )  # fmt: skip
            return results[:2] if len(results) > 1 else completed_results(results)[:2]
    ordered = is_ordered(deterministic)
    numbers = (window_left, window_right, softcap, dropout)
    return run(q, k, v, tables, spec, softmax_scale, sink, rng, ordered, *numbers)[:2]


def is_ordered(deterministic: bool) -> bool:
    """Whether gradients shall have the same bits every run: by the call, or by torch's setting."""
    return bool(deterministic) or torch.are_deterministic_algorithms_enabled()


def _forward(*inputs):
    _check_forward(named(_forward_operator, inputs))
    return completed_results(_run_forward(*inputs))


def _check_forward(given) -> None:
    check_operator_call(given["q"], given["k"], given["v"], given["tables"])
    check_sink(spec := spec_of(given["spec"]), given["sink"], given["q"])
    check_rng(spec, given["rng"], given["q"])


def _forward_in_node(*inputs):
    """``_forward`` of tensors that were checked."""
    return completed_results(_run_forward(*inputs))


def _run_forward(
    q, k, v, tables, spec: str, softmax_scale: float, sink=None, rng=None,
    deterministic: bool = False, window_left: int = -1, window_right: int = -1,
    softcap: float = 0.0, dropout: float = 0.0,
):  # fmt: skip
    """out, lse and, where the spec has it, lse_low, written by the kernel for these sizes."""
    spec, bucket, layouts, own = forward_plan(spec, q.shape, v.shape)
    results = from_layouts(layouts, q)
    if bucket is None:
        return results_without_keys(spec.softmax, sink, *results)
    device, capability = place_of(q)
    numbers = (softmax_scale, window_left, window_right, softcap, dropout)
    if device == "cuda" and spec.block_mask is None:  # lists are not divided
        sizes = named_sizes(call_sizes(q.shape, v.shape))
        if splits := splits_on(device, q, sizes, k.shape[1], int(spec.dropout)):
            kernel = resolve(spec, "forward_split", device, capability, bucket)
            given = {"q": q, "k": k, "v": v, "tables": tables, "sink": sink}
            given |= zip(_recording.outputs, results, strict=False)
            given |= zip(names(NUMBERS, "number"), numbers, strict=True)
            kernel(*call_of(kernel, sizes | {"splits": splits}, given).values())
            return results
    kernel = resolve(spec, "forward", device, capability, bucket)
    run, q, k, v = kernel.function, readable_rows(q), readable_rows(k), readable_rows(v)
    if rng is not None:
        tables = (rng.contiguous(), *tables)
    if sink is not None:
        tables = (sink.contiguous(), *tables)
    if tables or len(results) != 2 or len(own) != 1:
        run(q, k, v, *results, *tables, *[numbers[place] for place in own])
    else:  # a call without a star takes less time
        out, lse = results
        run(q, k, v, out, lse, softmax_scale)
    return results


def _backward(*inputs):
    given = named(_backward_operator, inputs)
    check_backward_call(given)
    q, k = given["q"], given["k"]
    spec = spec_of(given["spec"])
    check_sink(spec, given["sink"], q)
    check_rng(spec, given["rng"], q)
    if q.numel() == 0 or k.numel() == 0:
        return completed_gradients(
            gradients_without_keys(outputs("backward", spec, given), given), q
        )
    sizes = call_sizes(q.shape, given["v"].shape)
    device, capability = place_of(q)
    direction = "backward_deterministic" if is_ordered(given["deterministic"]) else "backward"
    kernel = resolve(spec, direction, device, capability, bucket_of(direction, *sizes[3:]))
    call = call_of(kernel, sizes, given)
    kernel(*call.values())
    return completed_gradients(call, q)


def call_of(kernel, sizes, given) -> dict[str, torch.Tensor]:
    """What ``kernel`` is called with, in order: what is ``given``, tensors as it can read them, and
    memory for others."""
    readable = {
        a.name: x if not a.is_tensor else x.contiguous() if a.dense else readable_rows(x)
        for a in kernel.arguments
        if (x := given.get(a.name)) is not None
    }
    for number, table in enumerate(given["tables"] or ()):
        readable[f"table{number}"] = table
    # Asked for where memory is needed: a packed forward has all.
    layouts = cache(partial(layouts_of, kernel, sizes, torch.get_num_threads()))
    return completed(kernel.arguments, readable, lambda a: allocated(a, layouts()[a.name], given))


def readable_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself when kernels can read its rows, else a copy."""
    if x.is_cpu and x.is_contiguous():  # the most frequent case
        return x
    return placement.readable_rows(x)


def _forward_results(*inputs):
    """Empty results, of tensors without elements too."""
    given = named(_forward_operator, inputs)
    _check_forward(given)
    return completed_results([*outputs("forward", spec_of(given["spec"]), given).values()])


def _backward_results(*inputs):
    given = named(_backward_operator, inputs)
    check_backward_call(given)
    return completed_gradients(outputs("backward", spec_of(given["spec"]), given), given["q"])


def _forward_flops(q, k, v, *_, **__) -> int:
    """FLOP of both products, masked pairs included: as torch counts its own attention."""
    return _flops(q, k, q[3] + v[3])


def _backward_flops(q, k, v, *_, **__) -> int:
    return _flops(q, k, 3 * q[3] + 2 * v[3])


def _flops(q, k, columns: int) -> int:
    batch, seqlen_q, heads, _ = q
    return 2 * batch * heads * seqlen_q * k[1] * columns


# Nobody watches, so the dispatcher need not.
_record = (_recording.save, _recording.gradients)
_differentiable_forward = differentiable(
    "attention_forward",
    _forward_in_node,
    *_record,
    list(parameters(_forward_operator)).index("tables"),
)
register(
    _forward_operator, _forward, _forward_results, _record, batched(_forward_operator),
    _forward_flops,
)  # fmt: skip
register(
    _backward_operator, _backward, _backward_results, NO_SECOND_GRADIENTS,
    batched(_backward_operator), _backward_flops,
)  # fmt: skip
