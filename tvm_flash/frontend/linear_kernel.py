"""A call of linear attention's kernel on torch tensors."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..problem.lengths import bucket_of
from ..problem.spec import AttentionSpec
from ..problem.splits import BLOCKS_PER_SM, splits_of
from ..runtime.kernels import resolve
from .checks import NAMES
from .placement import place_of, processors_of, readable_rows


def run(
    q, k, v, q_extra, k_extra, v_extra, key_weight, out_weight, decay, state, reverse: int,
    normalize: int, state_age: int, causal: bool = False,
):  # fmt: skip
    """The operator; its arguments are the kernel's but for the results."""
    outputs = results(q, k, v, q_extra, k_extra, v_extra, key_weight, out_weight, decay, state)
    batch, heads = state.shape[:2]
    if not batch * heads:
        return outputs
    spec = _spec(q.dtype, q.shape[3], v.shape[3], causal)
    bucket = bucket_of("linear", q.shape[1], k.shape[1])
    kernel = resolve(spec, "linear", *place_of(q), bucket)
    rows = max(q.shape[1], k.shape[1])
    splits = _parts(batch * heads, rows, kernel, q, v.shape[3])
    parts = state.new_empty((splits, batch, heads, q.shape[3] + 1, state.shape[3]))
    q, k, v = map(readable_rows, (q, k, v))
    of_rows = (q_extra, k_extra, v_extra, key_weight, out_weight)
    of_rows = [x if x.stride(2) == 1 else x.contiguous() for x in of_rows]
    kernel.function(
        q, k, v, *of_rows, decay.contiguous(), state.contiguous(), *outputs, parts,
        int(reverse), int(normalize), int(state_age),
    )  # fmt: skip
    return outputs


def results(q, k, v, *others):
    """Memory for out, out_extra and state_out; of fake tensors too."""
    state = others[6]
    return (
        q.new_empty((*q.shape[:3], v.shape[3])),
        state.new_empty((q.shape[0], q.shape[2], q.shape[1])),
        torch.empty_like(state, memory_format=torch.contiguous_format),
    )


def _parts(heads: int, rows: int, kernel, q: torch.Tensor, head_dim_v: int) -> int:
    """Parts of a sequence that run at once: where heads alone would leave processors idle."""
    chunks = rows // kernel.meta["block_k"]
    if q.is_cuda:
        blocks = heads * -(-head_dim_v // kernel.meta["block_v"])
        return splits_of(blocks, max(chunks, 1), processors_of(q) * BLOCKS_PER_SM)
    return max(1, min(-(-torch.get_num_threads() // heads), chunks))


@lru_cache(maxsize=256)
def _spec(dtype: torch.dtype, head_dim: int, head_dim_v: int, causal: bool) -> AttentionSpec:
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    return AttentionSpec(dtype=NAMES[dtype], causal=causal, computes="linear", **widths)
