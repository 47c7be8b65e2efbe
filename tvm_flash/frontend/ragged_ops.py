"""torch.library operators for entries of any lengths: packed ones, and keys in pages."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from ..problem.arguments import (
    LONGEST,
    NUMBERS,
    TABLES,
    arguments,
    given_sizes,
    names,
    numbers_of,
)
from ..problem.lengths import DEFAULT_BUCKET, bucket_of
from ..problem.sequences import KINDS
from ..problem.spec import AttentionSpec
from ..runtime.kernels import resolve
from .autograd import differentiable
from .last_call import LastCall
from .library import NO_SECOND_GRADIENTS, define, register, without_derivative
from .observers import is_plain_call
from .ops import call_of, is_ordered, readable_rows
from .packed_rows import Extent, is_readable
from .placement import place_of
from .ragged_checks import PACKED, PAGED, check_ragged_call, check_spans
from .recording import Recording, named, parameters
from .results import forward_layouts, from_layouts, outputs_of
from .schemas import schema
from .spec_names import lasting_text, spec_of
from .vmap import one_by_one

_NUMBERS = (*NUMBERS, LONGEST)
# 1: the same bits for a request alone, in any batch and at any place of it. 0: whatever is fastest.
_SPLITS = "SymInt num_splits=0"


def _define(kind: str, direction: str):
    """The operator attention_{kind}_{direction}."""
    name = f"attention_{kind}_{direction}"
    choices = [_SPLITS] if direction == "forward" else []
    return define(schema(name, TABLES[kind][direction], _NUMBERS, choices))


_packed_forward, _packed_backward = _define(PACKED, "forward"), _define(PACKED, "backward")
_paged_forward = _define(PAGED, "forward")
FORWARD = {PACKED: _packed_forward, PAGED: _paged_forward}
# What says where entries lie.
_SPANS = {kind: names(KINDS[kind].shapes.own, "input") for kind in FORWARD}
# Where one of these is without elements, there is nothing to compute.
_NEEDED = {PACKED: ("q", "k", "starts_q"), PAGED: ("q", "k", "starts_q", "page_table")}


def ragged_operator(
    kind: str, q, k, v, spans, tables, spec: str, softmax_scale: float, max_seqlen_k: int,
    deterministic: bool, numbers, num_splits: int, extents=None,
):  # fmt: skip
    """(out, lse) of checked arguments, differentiable where the ``kind`` is.

    spec: from ``spec_name`` or ``spec_json``. numbers: window_left, window_right, softcap. extents:
    what ``check_spans`` says of spans that are contiguous and plain; None if it was not asked.
    """
    call = (
        q, k, v, *spans, tables, spec, softmax_scale, max_seqlen_k, deterministic, *numbers,
        num_splits,
    )  # fmt: skip
    run = FORWARD[kind]
    if not torch.compiler.is_compiling():
        if not is_plain_call(q, k, v, [*spans, *tables] if extents is None else tables):
            # What records the call may be run by another process.
            call = tuple(lasting_text(x) if x is spec else x for x in call)
        elif torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            run = _DIFFERENTIABLE[kind]
        else:
            given = dict(zip(parameters(run), call, strict=True))
            return _forward(kind, given, extents or _extents(kind, given))[:2]
    return run(*call)[:2]


def _run_forward(kind: str, *inputs) -> tuple:
    given = named(FORWARD[kind], inputs)
    check_ragged_call(kind, "forward", given)
    return _completed(_forward(kind, given, _extents(kind, given)))


def _forward_in_node(kind: str, *inputs) -> tuple:
    """``_run_forward`` of tensors that were checked."""
    given = named(FORWARD[kind], inputs)
    return _completed(_forward(kind, given, _extents(kind, given)))


def _forward(kind: str, given, extents) -> list[torch.Tensor]:
    """out, lse and, where the spec has it, lse_low; rows of no entry are 0, their lse -inf."""
    q, k, v = given["q"], given["k"], given["v"]
    spec, layouts, numbers = _forward_plan(given["spec"], kind, q.shape, v.shape)
    results = from_layouts(layouts, q)
    has_work = _has_work(kind, given)
    # On a GPU nobody knows whether there are rows that no entry writes.
    if not has_work or extents is None or extents[0].rows != q.shape[0]:
        for x, empty in zip(results, (0.0, -torch.inf, 0.0), strict=False):
            x.fill_(empty)
    if has_work:
        kernel = _kernel(spec, "forward", given, extents)
        rows = readable_rows(q), readable_rows(k), readable_rows(v)
        spans = [given[name].contiguous() for name in _SPANS[kind]]
        kernel(*rows, *results, *spans, *given["tables"], *[given[name] for name in numbers])
    return results


def _run_backward(*inputs) -> tuple:
    given = named(_packed_backward, inputs)
    check_ragged_call(PACKED, "backward", given)
    spec = _spec_of(given["spec"], PACKED)
    found, extents = arguments(spec, "backward"), _extents(PACKED, given)
    sizes = given_sizes(found, given)
    results = outputs_of(found, spec, sizes, given)
    has_work = _has_work(PACKED, given)
    for name, axis in (("dq", 0), ("dk", 1), ("dv", 1)):
        if not has_work or extents is None or extents[axis].rows != results[name].shape[0]:
            results[name].zero_()
    if has_work:
        kernel = _kernel(spec, "backward", given, extents)
        sizes[LONGEST.name] = _longest(given, extents)[1]
        kernel(*call_of(kernel, sizes, {**given, **results}).values())
    return tuple(results.values())


@lru_cache(maxsize=4096)
def _forward_plan(text: str, kind: str, query, value) -> tuple:
    """The spec of ``text``, ``forward_layouts``, and the names of the numbers of its kernels."""
    spec = _spec_of(text, kind)
    return spec, forward_layouts(spec, query, value), names(numbers_of(spec), "number")


def _spec_of(text: str, kind: str) -> AttentionSpec:
    """The spec of ``text``; ValueError unless it is of ``kind``."""
    spec = spec_of(text)
    if spec.sequences != kind:
        raise ValueError(f"a spec of {spec.sequences} sequences for the operator of {kind} ones")
    return spec


_last = LastCall()


def _extents(kind: str, given) -> tuple[Extent, Extent] | None:
    """The extents of queries and keys on a CPU, once the numbers of a call are checked."""
    q, k, longest_k = given["q"], given["k"], given[LONGEST.name]
    if not (q.is_cpu or is_readable(q)):
        return None
    spans, sizes = tuple([given[name] for name in _SPANS[kind]]), (q.shape[0], k.shape[:2])
    if not q.is_cpu or (extents := _last.answer(spans, sizes)) is None:
        extents = check_spans(given)
        if q.is_cpu:
            _last.keep(spans, sizes, extents)
    if extents[1].longest > longest_k:
        raise ValueError(
            f"max_seqlen_k={longest_k} is too small: a sequence has {extents[1].longest} keys"
        )
    # On a GPU they were read to be checked; kernels choose nothing by them.
    return extents if q.is_cpu else None


def _has_work(kind: str, given) -> bool:
    """Whether there are entries, queries and keys: kernels are for those."""
    return all([given[name].numel() for name in _NEEDED[kind]])


def _kernel(spec: AttentionSpec, direction: str, given, extents):
    """The kernel for a call, by the lengths that are known of it."""
    device, capability = place_of(given["q"])
    if direction == "backward" and is_ordered(given["deterministic"]):
        direction = "backward_deterministic"
    # A kernel is chosen by the lengths of a batch; each gives a request bits of its own.
    is_fixed = given.get("num_splits") == 1
    bucket = DEFAULT_BUCKET if is_fixed else bucket_of(direction, *_longest(given, extents))
    return resolve(spec, direction, device, capability, bucket)


def _longest(given, extents) -> tuple[int, int]:
    """The most queries and keys of an entry, as far as is known."""
    if extents is None:
        return 0, given[LONGEST.name]
    return extents[0].longest, extents[1].longest


def _completed(results) -> tuple:
    """All results of a forward; one that the spec lacks is a tensor without elements."""
    lacking = len(_recording.outputs) - len(results)
    return (*results, *(results[1].new_empty(0) for _ in range(lacking)))


def _empty_results(operator, kind: str, direction: str, *inputs) -> tuple:
    given = named(operator, inputs)
    check_ragged_call(kind, direction, given)
    spec = _spec_of(given["spec"], kind)
    found = arguments(spec, direction)
    results = tuple(outputs_of(found, spec, given_sizes(found, given), given).values())
    return _completed(results) if direction == "forward" else results


def _flops(operator, columns, *inputs, **options) -> int:
    """FLOP of all products, masked pairs included; lengths that are no data count as equal ones."""
    given = {**named(operator, inputs), **options}
    q, columns_v = given["q"], given["v"].shape[-1]
    pairs = q.shape[0] * given[LONGEST.name]
    if type(given["starts_q"]) is torch.Tensor:
        queries, keys = ((given[f"ends_{x}"] - given[f"starts_{x}"]).long() for x in ("q", "k"))
        pairs = int((queries * keys).sum())
    return 2 * q.shape[1] * pairs * columns(q.shape[-1], columns_v)


def _register(operator, kind: str, direction: str, run, derivative) -> None:
    products = (lambda d, dv: 3 * d + 2 * dv) if direction == "backward" else (lambda d, dv: d + dv)
    results = partial(_empty_results, operator, kind, direction)
    register(
        operator, run, results, derivative, one_by_one(operator),
        partial(_flops, operator, products), flops_of_tensors=True,
    )  # fmt: skip


_recording = Recording(_packed_forward, _packed_backward, TABLES[PACKED])
_DERIVATIVES = {
    PACKED: (_recording.save, _recording.gradients),
    PAGED: without_derivative(
        "attention to a cache has no gradient: run it under torch.no_grad(), or pack the keys"
    ),
}
# Nobody watches, so the dispatcher need not.
_DIFFERENTIABLE = {
    kind: differentiable(f"attention_{kind}_forward", partial(_forward_in_node, kind), *derivative)
    for kind, derivative in _DERIVATIVES.items()
}
for _kind, _derivative in _DERIVATIVES.items():
    _register(FORWARD[_kind], _kind, "forward", partial(_run_forward, _kind), _derivative)
_register(_packed_backward, PACKED, "backward", _run_backward, NO_SECOND_GRADIENTS)
