"""torch.library operators for entries of any lengths: packed ones, and keys in pages."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.flop_counter import register_flop_formula

from ..problem.arguments import LONGEST, NUMBERS, TABLES, given_sizes, names
from ..problem.lengths import bucket_of
from ..runtime.kernels import resolve
from .autograd import below_autograd, differentiable
from .ops import call_of, is_ordered, library
from .placement import place_of
from .ragged_checks import check_ragged_call, check_spans, have_gaps
from .recording import Recording, named
from .results import outputs
from .schemas import schema
from .spec_names import spec_of
from .vmap import one_by_one

_NUMBERS = (*NUMBERS, LONGEST)
# Kinds of sequences; those of the second have no gradients.
PACKED, PAGED = "packed", "paged"


def _define(kind: str, direction: str):
    """The operator attention_{kind}_{direction}."""
    name = f"attention_{kind}_{direction}"
    text = schema(name, TABLES[kind][direction], _NUMBERS)
    library.define(text, tags=(torch.Tag.pt2_compliant_tag,))
    return getattr(torch.ops.tvm_flash, name).default


_packed_forward, _packed_backward = _define(PACKED, "forward"), _define(PACKED, "backward")
_paged_forward = _define(PAGED, "forward")
FORWARD = {PACKED: _packed_forward, PAGED: _paged_forward}


def _run(operator, kind: str, direction: str, *inputs):
    """The results of the kernel of a call; rows that belong to no entry are 0, their lse -inf."""
    given = named(operator, inputs)
    check_ragged_call(kind, direction, given)
    spec, table = spec_of(given["spec"]), TABLES[kind][direction]
    results = outputs(direction, spec, given)
    longest = 0, given[LONGEST.name]
    if given["q"].is_cpu:
        longest = check_spans(given, longest[1])
    _clear(results, given)
    if _has_work(given):
        _call(spec, direction, longest, given, results)
    return _completed(results, names(table, "output"), given["q"])


def _has_work(given) -> bool:
    """Whether there are entries, queries and keys: kernels are for those."""
    needed = (given[name] for name in ("starts_q", "q", "k", "page_table") if name in given)
    return all(x.numel() for x in needed)


def _call(spec, direction: str, longest, given, results) -> None:
    device, capability = place_of(given["q"])
    if direction == "backward" and is_ordered(given["deterministic"]):
        direction = "backward_deterministic"
    bucket = bucket_of(direction, *longest)
    kernel = resolve(spec, direction, device, capability, bucket)
    sizes = given_sizes(kernel.arguments, given)
    sizes[LONGEST.name] = longest[1]
    kernel(*call_of(kernel, sizes, {**given, **results}).values())


def _clear(results, given) -> None:
    """Fill what no entry may write; on a GPU nobody knows whether there is such."""
    queries, keys = (
        not given["q"].is_cpu or "page_table" in given or have_gaps(given, axis)
        for axis in ("q", "k")
    )
    for name, x in results.items():
        if not _has_work(given) or (keys if name in ("dk", "dv") else queries):
            x.fill_(float("-inf")) if name == "lse" else x.zero_()


def _completed(results, wanted, q) -> tuple:
    """All results; one that the spec lacks is a tensor without elements."""
    return tuple(
        results[name] if name in results else q.new_empty(0, dtype=torch.float32) for name in wanted
    )


def _empty_results(operator, kind: str, direction: str, *inputs):
    given = named(operator, inputs)
    check_ragged_call(kind, direction, given)
    results = outputs(direction, spec_of(given["spec"]), given)
    return _completed(results, names(TABLES[kind][direction], "output"), given["q"])


def _no_gradients(message: str):
    def refuse(ctx, *grads):
        raise NotImplementedError(message)

    return lambda *_: None, refuse


def _flops(operator, columns, *inputs, **options) -> int:
    """FLOP of all products, masked pairs included; lengths that are no data count as equal ones."""
    given = {**named(operator, inputs), **options}
    q, columns_v = given["q"], given["v"].shape[-1]
    pairs = q.shape[0] * given[LONGEST.name]
    if type(given["starts_q"]) is torch.Tensor:
        queries, keys = ((given[f"ends_{x}"] - given[f"starts_{x}"]).long() for x in ("q", "k"))
        pairs = int((queries * keys).sum())
    return 2 * q.shape[1] * pairs * columns(q.shape[-1], columns_v)


def _register(operator, kind: str, direction: str, save, gradients) -> None:
    name = operator._schema.name
    run = partial(_run, operator, kind, direction)
    library.impl(name, run, "CompositeExplicitAutograd")
    recorded = differentiable(operator._opname, below_autograd(operator), save, gradients)
    library.impl(name, recorded, "Autograd")
    torch.library.register_fake(
        name, partial(_empty_results, operator, kind, direction), lib=library
    )
    torch.library.register_vmap(name, one_by_one(operator), lib=library)
    products = (lambda d, dv: 3 * d + 2 * dv) if direction == "backward" else (lambda d, dv: d + dv)
    count = partial(_flops, operator, products)
    register_flop_formula(operator.overloadpacket, get_raw=True)(count)


_recording = Recording(_packed_forward, _packed_backward, TABLES[PACKED])
_SECOND = "the gradient of attention's gradient is not computed"
_CACHED = "attention over pages has no gradient: run it under torch.no_grad(), or pack the keys"
_register(_packed_forward, PACKED, "forward", _recording.save, _recording.gradients)
_register(_packed_backward, PACKED, "backward", *_no_gradients(_SECOND))
_register(_paged_forward, PAGED, "forward", *_no_gradients(_CACHED))
