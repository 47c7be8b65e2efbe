"""torch.library operators for entries of any lengths: packed ones, and keys in pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch

from ..problem.arguments import LONGEST, NUMBERS, TABLES, arguments, given_sizes, names
from ..problem.lengths import DEFAULT_BUCKET, bucket_of
from ..runtime.kernels import resolve
from .library import NO_SECOND_GRADIENTS, define, register, without_derivative
from .observers import is_plain_call
from .ops import call_of, is_ordered
from .placement import place_of
from .ragged_checks import check_ragged_call, check_spans
from .recording import Recording, named, parameters
from .results import outputs_of
from .schemas import schema
from .spec_names import lasting_text, spec_of
from .vmap import one_by_one

_NUMBERS = (*NUMBERS, LONGEST)
# 1: the same bits for a request alone, in any batch and at any place of it. 0: whatever is fastest.
_SPLITS = "SymInt num_splits=0"
# Kinds of sequences; those of the second have no gradients.
PACKED, PAGED = "packed", "paged"


def _define(kind: str, direction: str):
    """The operator attention_{kind}_{direction}."""
    name = f"attention_{kind}_{direction}"
    choices = [_SPLITS] if direction == "forward" else []
    return define(schema(name, TABLES[kind][direction], _NUMBERS, choices))


_packed_forward, _packed_backward = _define(PACKED, "forward"), _define(PACKED, "backward")
_paged_forward = _define(PAGED, "forward")
FORWARD = {PACKED: _packed_forward, PAGED: _paged_forward}


def ready_operator(
    kind: str, q, k, v, spans, tables, spec: str, softmax_scale: float, max_seqlen_k: int,
    deterministic: bool, numbers, num_splits: int, extents=None,
) -> Callable[[], tuple]:  # fmt: skip
    """A function that gives (out, lse) of checked arguments, differentiable where the ``kind`` is.

    What may fail has been done: its kernel is found, its memory taken; not where torch records,
    traces or transforms the call. spec: from ``spec_name`` or ``spec_json``. numbers: window_left,
    window_right, softcap. extents: what ``check_spans`` gave, None if it was not asked.
    """
    call = (
        q, k, v, *spans, tables, spec, softmax_scale, max_seqlen_k, deterministic, *numbers,
        num_splits,
    )  # fmt: skip
    if not torch.compiler.is_compiling():
        if not is_plain_call(q, k, v, [*spans, *tables]):
            # What records the call may be run by another process.
            call = tuple(lasting_text(x) if x is spec else x for x in call)
        elif not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))):
            given = dict(zip(parameters(FORWARD[kind]), call, strict=True))
            return partial(_finish, *_ready(kind, "forward", given, extents))
    return lambda: FORWARD[kind](*call)[:2]


def _finish(results, run: Callable[[], object]) -> tuple[torch.Tensor, torch.Tensor]:
    run()
    return results["out"], results["lse"]


def _run(operator, kind: str, direction: str, *inputs):
    given = named(operator, inputs)
    check_ragged_call(kind, direction, given)
    results, run = _ready(kind, direction, given)
    run()
    return _completed(results, names(TABLES[kind][direction], "output"), given["q"])


def _ready(kind: str, direction: str, given, extents=None) -> tuple[dict, Callable[[], object]]:
    """Memory of the results by name, and the kernel's call, which fills it.

    Rows that belong to no entry are 0, their lse -inf.
    """
    spec, found = _plan(given["spec"], kind, direction)
    longest = 0, given[LONGEST.name]
    if given["q"].is_cpu:
        extents = check_spans(given, longest[1]) if extents is None else extents
        longest = extents[0].longest, extents[1].longest
    sizes = given_sizes(found, given)
    results = outputs_of(found, spec, sizes, given)
    has_work = _has_work(given)
    _clear(results, given, extents, has_work)
    if not has_work:
        return results, tuple
    return results, _call(spec, direction, longest, sizes, {**given, **results})


@lru_cache(maxsize=1024)
def _plan(text: str, kind: str, direction: str) -> tuple:
    """The spec of an operator of ``kind``, and the arguments of its kernel."""
    spec = spec_of(text)
    if spec.sequences != kind:
        raise ValueError(f"a spec of {spec.sequences} sequences for the operator of {kind} ones")
    return spec, arguments(spec, direction)


def _has_work(given) -> bool:
    """Whether there are entries, queries and keys: kernels are for those."""
    needed = (given[name] for name in ("starts_q", "q", "k", "page_table") if name in given)
    return all(x.numel() for x in needed)


def _call(spec, direction: str, longest, sizes, given) -> Callable[[], object]:
    """A kernel with what it is called with."""
    device, capability = place_of(given["q"])
    if direction == "backward" and is_ordered(given["deterministic"]):
        direction = "backward_deterministic"
    # A kernel is chosen by the lengths of a batch; each gives a request bits of its own.
    is_fixed = given.get("num_splits") == 1
    bucket = DEFAULT_BUCKET if is_fixed else bucket_of(direction, *longest)
    kernel = resolve(spec, direction, device, capability, bucket)
    return partial(kernel, *call_of(kernel, {**sizes, LONGEST.name: longest[1]}, given).values())


def _clear(results, given, extents, has_work: bool) -> None:
    """Fill what no entry may write; on a GPU nobody knows whether there is such."""
    gaps = (True, True)
    if extents is not None and has_work:
        gaps = tuple(x.rows != given[axis].shape[0] for x, axis in zip(extents, "qk", strict=True))
    for name, x in results.items():
        if gaps[name in ("dk", "dv")]:
            x.fill_(float("-inf")) if name == "lse" else x.zero_()


def _completed(results, wanted, q) -> tuple:
    """All results; one that the spec lacks is a tensor without elements."""
    return tuple(
        results[name] if name in results else q.new_empty(0, dtype=torch.float32) for name in wanted
    )


def _empty_results(operator, kind: str, direction: str, *inputs):
    given = named(operator, inputs)
    check_ragged_call(kind, direction, given)
    spec, found = _plan(given["spec"], kind, direction)
    results = outputs_of(found, spec, given_sizes(found, given), given)
    return _completed(results, names(TABLES[kind][direction], "output"), given["q"])


def _flops(operator, columns, *inputs, **options) -> int:
    """FLOP of all products, masked pairs included; lengths that are no data count as equal ones."""
    given = {**named(operator, inputs), **options}
    q, columns_v = given["q"], given["v"].shape[-1]
    pairs = q.shape[0] * given[LONGEST.name]
    if type(given["starts_q"]) is torch.Tensor:
        queries, keys = ((given[f"ends_{x}"] - given[f"starts_{x}"]).long() for x in ("q", "k"))
        pairs = int((queries * keys).sum())
    return 2 * q.shape[1] * pairs * columns(q.shape[-1], columns_v)


def _register(operator, kind: str, direction: str, derivative) -> None:
    products = (lambda d, dv: 3 * d + 2 * dv) if direction == "backward" else (lambda d, dv: d + dv)
    run, results = (partial(f, operator, kind, direction) for f in (_run, _empty_results))
    register(
        operator, run, results, derivative, one_by_one(operator),
        partial(_flops, operator, products), flops_of_tensors=True,
    )  # fmt: skip


_recording = Recording(_packed_forward, _packed_backward, TABLES[PACKED])
_NO_GRADIENTS = without_derivative(
    "attention to a cache has no gradient: run it under torch.no_grad(), or pack the keys"
)
_register(_packed_forward, PACKED, "forward", (_recording.save, _recording.gradients))
_register(_packed_backward, PACKED, "backward", NO_SECOND_GRADIENTS)
_register(_paged_forward, PAGED, "forward", _NO_GRADIENTS)
