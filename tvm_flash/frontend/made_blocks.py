"""Whether a call with a mask_mod alone gets block lists, and which."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch._C import _is_tracing, _len_torch_dispatch_stack

from ..problem.block_mask import shared_lists
from ..runtime.kernels import cannot_compile
from ..score.trace import trace_mask_mod
from . import made_lists
from .blocks import NO_BLOCKS, Blocks
from .captured import Captured, captured_on
from .made_lists import Call, Stored
from .observers import run_by_compiler
from .packed_rows import is_plain
from .problem import Features


def with_made_blocks(
    score_mod: Callable | None, mask_mod: Callable, q, k, features: tuple, numbers: tuple
) -> tuple[Callable | Captured | None, Callable | None, Blocks]:
    """score_mod and mask_mod of a dense call, two functions at most, and the lists that serve it
    faster, if any do.

    The functions are as given or traced, so that nobody traces them again. features, numbers: of
    ``functional.options_of``. The same function of the same values of what it captured, on the same
    sizes, has the same lists in every call, so that equal calls have equal bits. Where values are
    not read, on GPUs and under torch.compile, functions that captured tensors have none. Not where
    nothing can be compiled, or a program is exported: a library may hold the kernel of the mask_mod
    alone.
    """
    if q.ndim != 4 or k.ndim != 4:
        return score_mod, mask_mod, NO_BLOCKS
    own = Features(*features)
    hides = (own.causal, own.window_left, own.window_right, own.alignment, *numbers[:2])
    call = Call(q.shape[0], q.shape[2], q.shape[1], k.shape[1], hides)
    if torch.compiler.is_compiling():
        stored = _while_compiling(mask_mod, q, call)
    elif call.is_small or not _is_served(q):
        stored = None
    else:
        traced = captured_on(q.device, score_mod, mask_mod)
        tables = traced.tables[len(traced.score_mod.tables) if traced.score_mod else 0 :]
        stored = made_lists.lists_of(mask_mod, traced.mask_mod, tables, call, q.device)
        score_mod, mask_mod = traced, None
    if stored is None:
        return score_mod, mask_mod, NO_BLOCKS
    lists = shared_lists(stored, call.batch, call.heads)
    return score_mod, mask_mod, Blocks(made_lists.BLOCK, lists)


def _is_served(q) -> bool:
    return not _cannot_compile() and not _is_tracing() and is_plain(q) and (q.is_cpu or q.is_cuda)


def _while_compiling(mask_mod: Callable, q, call: Call) -> Stored | None:
    """Lists as constants of what is compiled, for sizes that are: others would have to be fixed."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    if torch.compiler.is_exporting():
        return None
    for size in (*call[:4], *call.hides[-2:]):
        if not has_static_value(size):
            return None
    return None if call.is_small else _of_no_tables(mask_mod, q.device, tuple(call))


@run_by_compiler
def _of_no_tables(mask_mod: Callable, device, call: tuple) -> Stored | None:
    if _len_torch_dispatch_stack() or _cannot_compile():
        return None
    program, tables = trace_mask_mod(mask_mod, device)
    return None if tables else made_lists.lists_of(mask_mod, program, (), Call(*call), device)


# Asked in each call; looking for packages takes longer than that.
_cannot_compile = cache(cannot_compile)
