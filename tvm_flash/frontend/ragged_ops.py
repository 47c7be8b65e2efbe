"""torch.library operators for entries of any lengths: packed ones, and keys in pages."""

from __future__ import annotations

from collections.abc import Callable
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
from ..problem.spec import LSE_WITHOUT_KEYS, AttentionSpec
from ..runtime.kernels import resolve
from .autograd import differentiable
from .last_call import LastCall
from .library import NO_SECOND_GRADIENTS, define, register, without_derivative
from .mixed_lengths import shares_of
from .observers import is_plain_call, is_recorded
from .ops import call_of, is_ordered, readable_rows
from .packed_rows import Extent, is_readable
from .placement import place_of
from .ragged_checks import PACKED, PAGED, check_ragged_call, check_spans
from .recording import Recording, named, parameters
from .results import (
    completed_gradients,
    completed_results,
    forward_layouts,
    from_layouts,
    outputs_of,
)
from .schemas import LEARNED, schema
from .spec_names import lasting_text, spec_of
from .splitting import splits_on
from .vmap import one_by_one

_NUMBERS = (*NUMBERS, LONGEST)
# 1: the same bits for a request alone, in any batch and at any place of it; on GPUs any number of
# parts gives that. 0: whatever is fastest.
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


def ready_operator(
    kind: str, q, k, v, spans, tables, spec: str, softmax_scale: float, max_seqlen_k: int,
    deterministic: bool, numbers, num_splits: int, sink=None, extents=None, rng=None,
) -> Callable[[], tuple]:  # fmt: skip
    """A function that gives (out, lse) of checked arguments, differentiable where the ``kind`` is.

    What may fail has been done: its kernel is found, its memory taken; not where torch records,
    traces or transforms the call. spec: from ``spec_name`` or ``spec_json``. numbers: window_left,
    window_right, softcap, dropout. extents: what ``check_spans`` says of spans that are contiguous
    and plain; None if it was not asked.
    """
    run = FORWARD[kind]
    if extents is not None or not torch.compiler.is_compiling():
        others = [*spans, *tables] if extents is None else tables
        if sink is not None or rng is not None:
            others = [*others, *(x for x in (sink, rng) if x is not None)]
        if not is_plain_call(q, k, v, others):
            # What records the call may be run by another process.
            spec = lasting_text(spec)
        elif is_recorded(q, k, v, sink, tables):
            run = _DIFFERENTIABLE[kind]
        else:
            known = (softmax_scale, *numbers, max_seqlen_k)
            if extents is None:
                spans = [x.contiguous() for x in spans]
                extents = _extents(kind, q, k, spans, max_seqlen_k)
            return partial(
                _finish,
                *_ready(kind, q, k, v, spans, tables, spec, known, num_splits, sink, rng, extents),
            )
    return lambda: run(
        q, k, v, *spans, tables, spec, softmax_scale, max_seqlen_k, sink, rng, deterministic,
        *numbers, num_splits,
    )[:2]  # fmt: skip


def _finish(results: list[torch.Tensor], run: Callable[[], object]) -> tuple:
    """out and lse, once ``run`` has filled them."""
    run()
    return tuple(results[:2]) if len(results) > 1 else completed_results(results)[:2]


def _run_forward(kind: str, *inputs) -> tuple:
    check_ragged_call(kind, "forward", named(FORWARD[kind], inputs))
    return _forward_in_node(kind, *inputs)


def _forward_in_node(kind: str, *inputs) -> tuple:
    """``_run_forward`` of tensors that were checked."""
    given = named(FORWARD[kind], inputs)
    q, k, v, spec, split = (given[name] for name in ("q", "k", "v", "spec", "num_splits"))
    spans = [given[name].contiguous() for name in _SPANS[kind]]
    numbers, tables = [given[a.name] for a in _NUMBERS], given["tables"] or ()
    extents = _extents(kind, q, k, spans, given[LONGEST.name])
    results, run = _ready(
        kind, q, k, v, spans, tables, spec, numbers, split, given["sink"], given["rng"], extents
    )
    run()
    return completed_results(results)


def _ready(
    kind: str, q, k, v, spans, tables, text: str, numbers, num_splits: int, sink, rng, extents
) -> tuple[list[torch.Tensor], Callable[[], object]]:
    """Memory of out, lse and, where the spec has it, lse_low, and a kernel's call, which fills it.

    Rows of no entry are 0, their lse -inf. numbers: those of ``_NUMBERS``, in order.
    """
    spec, layouts, own = _forward_plan(text, kind, q.shape, v.shape)
    results = from_layouts(layouts, q)
    if spec.softmax in LSE_WITHOUT_KEYS and not (k.numel() and spans[-1].numel()):
        k, v, *spans = _a_key(k, v, spans)
    # Without entries, or of paged ones a table, there is nothing to compute.
    has_work = q.numel() and k.numel() and spans[0].numel() and spans[-1].numel()
    # On a GPU nobody knows whether there are rows that no entry writes.
    if not has_work or extents is None or extents[0].rows != q.shape[0]:
        for x, empty in zip(results, (0.0, -torch.inf, 0.0), strict=False):
            x.fill_(empty)
    if not has_work:
        return results, tuple
    longest = _longest(extents, numbers[-1])
    if place_of(q)[0] == "cuda" and not spec.dropout and spec.block_mask is None:
        given = {"q": q, "k": k, "v": v, "tables": tables, "sink": sink}
        given |= zip(_recording.outputs, results, strict=False)
        given |= zip(_SPANS[kind], spans, strict=True)
        given |= zip((a.name for a in _NUMBERS), numbers, strict=True)
        if run := _divided(spec, given, longest[1], num_splits):
            return results, run
    numbers = [numbers[place] for place in own]
    if rng is not None:
        tables = (rng.contiguous(), *tables)
    if sink is not None:
        tables = (sink.contiguous(), *tables)
    q, k, v = readable_rows(q), readable_rows(k), readable_rows(v)
    calls = []
    for bucket, entries in _shares(spec, spans, extents, longest, num_splits):
        kernel = resolve(spec, "forward", *place_of(q), bucket)
        calls.append(partial(kernel.function, q, k, v, *results, *entries, *tables, *numbers))
    return results, calls[0] if len(calls) == 1 else partial(_each, calls)


def _shares(spec: AttentionSpec, spans, extents, longest, num_splits: int) -> list[tuple]:
    """(bucket, spans) of the forwards of a call: ``shares_of`` where it may number entries anew.

    With ``num_splits`` 1 one kernel serves every batch; each gives a request bits of its own.
    """
    if num_splits == 1:
        return [(DEFAULT_BUCKET, spans)]
    # Functions and dropout are told the number; slopes and block lists are tables of each entry.
    knows_entries = spec.score_mod or spec.mask_mod or spec.table_types or spec.dropout
    shares = [] if extents is None or knows_entries else shares_of(spans, extents)
    return shares or [(bucket_of("forward", *longest), spans)]


def _each(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _divided(spec: AttentionSpec, given, longest_k: int, asked: int) -> Callable | None:
    """A kernel's call that divides the keys, if ``splits_on`` says so."""
    sizes = given_sizes(arguments(spec, "forward"), given)
    splits = splits_on("cuda", given["q"], sizes, longest_k, asked)
    if not splits:
        return None
    kernel = _kernel(spec, "forward_split", given["q"], (0, longest_k))
    sizes |= {"splits": splits, LONGEST.name: longest_k}
    return partial(kernel, *call_of(kernel, sizes, given).values())


def _run_backward(*inputs) -> tuple:
    given = named(_packed_backward, inputs)
    check_ragged_call(PACKED, "backward", given)
    spec, found = _arguments_of(given["spec"], PACKED, "backward")
    q, k, longest_k = given["q"], given["k"], given[LONGEST.name]
    spans = [given[name] for name in _SPANS[PACKED]]
    if is_padded := spec.softmax in LSE_WITHOUT_KEYS and not k.numel():
        k, v, *spans = _a_key(k, given["v"], spans)
        given |= {"k": k, "v": v}
    extents, sizes = _extents(PACKED, q, k, spans, longest_k), given_sizes(found, given)
    results = outputs_of(found, spec, sizes, given)
    has_work = q.numel() and k.numel() and spans[0].numel()
    for name, x in results.items():
        axis = int(name in ("dk", "dv"))
        if not has_work or extents is None or extents[axis].rows != x.shape[0]:
            x.zero_()  # nobody else may write all of it
    if has_work:
        direction = "backward_deterministic" if is_ordered(given["deterministic"]) else "backward"
        longest = _longest(extents, longest_k)
        kernel = _kernel(spec, direction, q, longest)
        sizes[LONGEST.name] = longest[1]
        kernel(*call_of(kernel, sizes, {**given, **results}).values())
    if is_padded:
        results |= {name: results[name][:0] for name in ("dk", "dv")}
    return completed_gradients(results, q)


def _a_key(k, v, spans) -> tuple:
    """k, v and spans of a call without keys, with memory for one that nobody sees."""
    k, v = (x.new_zeros((1,) * (x.ndim - 2) + x.shape[-2:]) for x in (k, v))
    starts_q, ends_q, starts_k, ends_k, *table = spans
    tables = (x.new_zeros((x.shape[0], 1)) for x in table)
    return k, v, starts_q, ends_q, torch.zeros_like(starts_k), torch.zeros_like(ends_k), *tables


@lru_cache(maxsize=4096)
def _forward_plan(text: str, kind: str, query, value) -> tuple:
    """The spec of ``text``, ``forward_layouts``, and which of ``_NUMBERS`` its kernels take."""
    spec, _ = _arguments_of(text, kind, "forward")
    own = tuple(_NUMBERS.index(a) for a in numbers_of(spec))
    return spec, forward_layouts(spec, query, value), own


@lru_cache(maxsize=1024)
def _arguments_of(text: str, kind: str, direction: str) -> tuple[AttentionSpec, tuple]:
    """The spec of ``text`` and its kernel's arguments; ValueError unless it is of ``kind``."""
    spec = spec_of(text)
    if spec.sequences != kind:
        raise ValueError(f"a spec of {spec.sequences} sequences for the operator of {kind} ones")
    return spec, arguments(spec, direction)


_last = LastCall()


def _extents(kind: str, q, k, spans, longest_k: int) -> tuple[Extent, Extent] | None:
    """The extents of queries and keys on a CPU, once the numbers of a call are checked."""
    if not (q.is_cpu or is_readable(q)):
        return None
    spans, sizes = tuple(spans), (q.shape[0], k.shape[:2])
    if not q.is_cpu or (extents := _last.answer(spans, sizes)) is None:
        extents = check_spans({"q": q, "k": k, **dict(zip(_SPANS[kind], spans, strict=True))})
        if q.is_cpu:
            _last.keep(spans, sizes, extents)
    if extents[1].longest > longest_k:
        raise ValueError(
            f"max_seqlen_k={longest_k} is too small: a sequence has {extents[1].longest} keys"
        )
    # On a GPU they were read to be checked; kernels choose nothing by them.
    return extents if q.is_cpu else None


def _longest(extents, longest_k: int) -> tuple[int, int]:
    """The most queries and keys of an entry, as far as is known."""
    return (0, longest_k) if extents is None else (extents[0].longest, extents[1].longest)


def _kernel(spec: AttentionSpec, direction: str, q, longest):
    """The kernel for entries of the ``longest`` queries and keys."""
    return resolve(spec, direction, *place_of(q), bucket_of(direction, *longest))


def _empty_results(operator, kind: str, direction: str, *inputs) -> tuple:
    given = named(operator, inputs)
    check_ragged_call(kind, direction, given)
    spec, found = _arguments_of(given["spec"], kind, direction)
    results = outputs_of(found, spec, given_sizes(found, given), given)
    if direction == "forward":
        return completed_results([*results.values()])
    return completed_gradients(results, given["q"])


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


# The backward calls it; ``table_ops`` tells torch how it is computed.
TABLE_GRADIENTS = define(
    schema("attention_packed_tables", TABLES[PACKED]["tables"], _NUMBERS, [LEARNED], ["gradients"])
)
_recording = Recording(_packed_forward, _packed_backward, TABLE_GRADIENTS, TABLES[PACKED])
_DERIVATIVES = {
    PACKED: (_recording.save, _recording.gradients),
    PAGED: without_derivative(
        "attention to a cache has no gradient: run it under torch.no_grad(), or pack the keys"
    ),
}
# Nobody watches, so the dispatcher need not.
_DIFFERENTIABLE = {
    kind: differentiable(
        f"attention_{kind}_forward",
        partial(_forward_in_node, kind),
        *derivative,
        list(parameters(FORWARD[kind])).index("tables"),
    )
    for kind, derivative in _DERIVATIVES.items()
}
for _kind, _derivative in _DERIVATIVES.items():
    _register(FORWARD[_kind], _kind, "forward", partial(_run_forward, _kind), _derivative)
_register(_packed_backward, PACKED, "backward", _run_backward, NO_SECOND_GRADIENTS)
