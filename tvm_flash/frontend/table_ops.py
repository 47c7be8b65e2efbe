"""torch.library operators of the gradients of captured tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch

from ..problem.arguments import LONGEST, arguments, given_sizes
from ..problem.lengths import DEFAULT_BUCKET
from ..problem.spec import AttentionSpec
from ..problem.table_parts import table_parts
from ..runtime.kernels import resolve
from .checks import check_backward_call
from .library import NO_SECOND_GRADIENTS, register
from .ops import TABLE_GRADIENTS as DENSE
from .ops import call_of, is_ordered
from .placement import place_of
from .ragged_checks import PACKED as PACKED_KIND
from .ragged_checks import check_ragged_call
from .ragged_ops import TABLE_GRADIENTS as PACKED
from .recording import named
from .spec_names import spec_of

_CHECKS = {DENSE: check_backward_call, PACKED: partial(check_ragged_call, PACKED_KIND, "backward")}


def _run(operator, *inputs) -> torch.Tensor:
    """The gradients of the tables ``learned``, one behind the other, float32."""
    given = named(operator, inputs)
    _CHECKS[operator](given)
    spec, q = learning(given["spec"], tuple(given["learned"])), given["q"]
    tables = [given["tables"][n] for n in spec.learned]
    if any(given[name].numel() == 0 for name in ("q", "k", "starts_q") if name in given):
        return _empty(given).zero_()
    direction = "tables_deterministic" if is_ordered(given["deterministic"]) else "tables"
    kernel = resolve(spec, direction, *place_of(q), DEFAULT_BUCKET)
    named_tables = {f"table{n}": x for n, x in enumerate(given["tables"])}
    sizes = given_sizes(arguments(spec, direction), {**given, **named_tables})
    elements, threads = sum(x.numel() for x in tables), torch.get_num_threads() * q.is_cpu
    sizes["parts"] = parts = table_parts(spec, sizes, elements, threads)
    sizes["learned"] = len(tables)
    sizes |= {LONGEST.name: given[LONGEST.name]} if LONGEST.name in given else {}
    call = call_of(kernel, sizes, given)
    kernel(*call.values())
    sums = [call[f"dtable{n}"] for n in spec.learned]
    sums = [(x.sum(0) if parts > 1 else x).flatten() for x in sums]
    return sums[0] if len(sums) == 1 else torch.cat(sums)


@lru_cache(maxsize=1024)
def learning(text: str, learned: Sequence[int]) -> AttentionSpec:
    """The spec of ``text`` for the gradients of these tables."""
    return replace(spec_of(text), learned=learned)


def _empty(given) -> torch.Tensor:
    elements = sum(given["tables"][n].numel() for n in given["learned"])
    return given["q"].new_empty(elements, dtype=torch.float32)


def _empty_results(operator, *inputs) -> torch.Tensor:
    return _empty(named(operator, inputs))


def _one_by_one(operator, info, dims, *inputs) -> tuple[torch.Tensor, int]:
    """The rule of torch.vmap: a call for each."""

    def of(x, dim, number: int):
        if isinstance(x, (list, tuple)) and isinstance(dim, (list, tuple)):
            return [of(*pair, number) for pair in zip(x, dim, strict=True)]
        return x if dim is None else x.select(dim, number)

    calls = ([of(x, dim, n) for x, dim in zip(inputs, dims, strict=True)]
             for n in range(info.batch_size))  # fmt: skip
    return torch.stack([operator(*call) for call in calls]), 0


def _flops(q, k, v, *_, **__) -> int:
    """FLOP of S and dP, masked pairs included."""
    rows, keys = (x[0] * x[1] if len(x) == 4 else x[0] for x in (q, k))
    return 2 * rows * q[-2] * (keys // (q[0] if len(q) == 4 else 1)) * (q[-1] + v[-1])


for _operator in (DENSE, PACKED):
    register(
        _operator, partial(_run, _operator), partial(_empty_results, _operator),
        NO_SECOND_GRADIENTS, partial(_one_by_one, _operator), _flops,
    )  # fmt: skip
