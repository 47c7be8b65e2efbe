"""``attention``, which takes every option."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._C import _is_any_autocast_enabled

from ..problem.block_mask import BlockMask
from . import table_ops  # noqa: F401  its operators are called by those of attention
from .blocks import NO_BLOCKS, with_blocks
from .captured import Captured
from .checks import as_softmax, check_alibi, check_tensors
from .given_masks import is_block_mask
from .made_blocks import with_made_blocks
from .ops import attention_operator
from .problem import problem_of, problem_while_compiling
from .ragged import is_jagged, jagged_parts, nested_like, ready_attention
from .score_inputs import as_inputs, check_no_alibi, learns, longest_of
from .spans import Lengths, ragged_of
from .values import (
    NO_WINDOW,
    as_dropout,
    as_flag,
    as_scale,
    as_softcap,
    as_splits,
    as_window,
    autocast,
)

LAYOUTS = ("bshd", "bhsd")
# (left, right): any pair of integers, also as a tensor or array; None is no bound.
Window = Sequence[int | None] | torch.Tensor | None

# Beyond it scores are so large that a float32 lse says little of a row's sum.
_STEEP = 1024.0


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    score_mod: Callable | Captured | None = None,
    mask_mod: Callable | Captured | None = None,
    layout: str = "bshd",
    alignment: str = "bottom_right",
    deterministic: bool = False,
    return_lse: bool = False,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | torch.Tensor | None = None,
    max_seqlen_k: int | torch.Tensor | None = None,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    leftpad_k: torch.Tensor | None = None,
    num_splits: int | None = 0,
    softmax: str = "softmax",
    sink: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    block_mask: BlockMask | None = None,
    dropout_p: float = 0.0,
    rng: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """softmax(score_mod(q k^T * softmax_scale)) v, with any score_mod and mask_mod, differentiable.

    q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv), float32, bfloat16 or float16, any strides
    (a last dimension that is not contiguous is copied); with ``layout="bhsd"`` (B, H, S, D). H is a
    multiple of Hk (GQA, MQA); D and Dv from 8 to 512. Under autocast they are cast to its dtype,
    as for torch's own attention. softmax_scale: default 1 / sqrt(D). causal, window_size (left,
    right; inclusive; any integers, None or -1 open): ``alignment`` "bottom_right" puts the last
    query on the last key (FlashAttention), "top_left" the first on the first (torch). softcap: cap
    * tanh(s / cap), 0 is off. One kernel serves every window and softcap. Numbers may be tensors of
    one element: their values are read. alibi_slopes (H,) or (B, H) float32. score_mod(score, b, h,
    q_idx, k_idx) and mask_mod(b, h, q_idx, k_idx) as in FlexAttention: torch operations, captured
    tensors indexed by symbols; or a ``Captured`` of both. bias: floating point, of a shape that
    broadcasts to (B, H, Sq, Sk); read as it is, never expanded. Order: scale, softcap,
    ALiBi, bias, score_mod, masks. bias, alibi_slopes, captured tensors of floating point, and
    softmax_scale and softcap that are tensors have gradients too (docs/bias.md).
    softmax: what makes weights of a row's scores S. "softmax": exp(S) / sum(exp(S)); "softmax1":
    one more in the denominator, so that a row may attend to nothing (Miller, 2023); "sigmoid": each
    key by itself (Ramapuram et al., 2024), without lse. sink (H,): a learned logit
    for each head that has exp(sink) in the denominator and no value (gpt-oss; StreamingLLM, Xiao et
    al., 2023); any floating dtype, differentiable.
    block_mask: of ``block_mask`` or ``top_blocks``, or torch's BlockMask: the blocks of keys that
    each block of queries visits, of dense or packed tensors. Its own mask_mod hides pairs in the
    blocks that are not seen whole; pairs in no listed block are hidden. Time goes with the blocks
    visited.
    dropout_p: the share of weights that are dropped, in [0, 1); those that are kept are multiplied
    by 1 / (1 - dropout_p), lse is that of all. Which ones depends on seed and offset alone, and on
    entry, query head, query and key (docs/dropout.md): rng (2,) int64, None: drawn from torch's
    generator of q's device.
    deterministic: equal inputs give equal bits, gradients too: always so on CPUs (with as many
    threads); on GPUs dQ is then summed in order, which takes longer. Also asked for by
    torch.use_deterministic_algorithms.

    cu_seqlens_q, cu_seqlens_k (B + 1,) int32 from 0 on: sequences of any lengths are packed in q
    (total_q, H, D), k and v (total_k, Hk, D); sequence b has the rows cu_seqlens[b] ..
    cu_seqlens[b + 1] - 1, of which only the first seqused_q[b], seqused_k[b] count where these (B,)
    int32 are given.
    Functions are called with b of the sequence and positions inside it. max_seqlen_q,
    max_seqlen_k: ints or tensors, checked on CPUs; a tensor on a GPU is not read. block_table (B,
    most) int32: k and v are pages (pages, page_size, Hk, D), sequence b has its keys at the
    positions leftpad_k[b] (default 0) .. seqused_k[b] - 1 of pages block_table[b]; no gradients.
    Out is (total_q, H, Dv), 0 in rows of no sequence, lse (H, total_q). num_splits: 1 gives a
    sequence the same bits alone and in any batch, at any place and on any number of threads; on
    GPUs so do more, the parts into which the keys of each sequence are divided; with 0 the kernel
    is chosen by the lengths of the batch. Nested tensors (B, S*, H, D) of layout torch.jagged need
    none of these.

    Returns out (B, Sq, H, Dv) in q's dtype and layout, and with ``return_lse`` also lse (B, H, Sq),
    float32, natural log, differentiable. Rows that see no key give 0 and -inf. Works under
    torch.compile(fullgraph=True); there a function may capture constants and tensors that exist
    before (``Captured.with_tables`` for others), and is read once, when compiled. A window may be
    computed from a length there: what is compiled serves all lengths. For a softcap or scale that
    is, PyTorch compiles its graph anew for each value, with the same kernels.

    Raises ValueError, TypeError or NotImplementedError for wrong arguments, UnsupportedSpec for
    what kernels cannot do.
    """
    if layout != "bshd":
        q, k, v = _rows_first(layout, q, k, v)
    if _is_any_autocast_enabled():
        q, k, v = autocast(q), autocast(k), autocast(v)
    lengths = nested = None
    if (
        cu_seqlens_q is not None
        or cu_seqlens_k is not None
        or max_seqlen_q is not None
        or max_seqlen_k is not None
        or seqused_q is not None
        or seqused_k is not None
        or block_table is not None
        or leftpad_k is not None
    ):
        if layout != "bshd" and block_table is None:
            raise ValueError(f"{layout=} is of dense tensors: packed ones are (total, H, D)")
        lengths = Lengths(cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, block_table, leftpad_k)
    elif type(q) is not torch.Tensor and is_jagged(q):
        nested = q
        (q, k, v), lengths = jagged_parts(q, k, v)
    else:
        check_tensors(q, k, v)
        if num_splits:
            raise ValueError(
                f"{num_splits=} is of packed and cached calls: leave it out, or give cu_seqlens_q"
            )
    ragged = None if lengths is None else ragged_of(q, k, v, lengths, max_seqlen_q, max_seqlen_k)
    inputs = own = ()
    is_number = softmax_scale is None and type(softcap) is float  # as most calls have it
    if bias is not None or (not is_number and (learns(softmax_scale) or learns(softcap))):
        if alibi_slopes is not None:
            check_no_alibi(softmax_scale, softcap)
        shape = longest_of(q, k, ragged)
        inputs, own, softmax_scale, softcap = as_inputs(q, shape, bias, softmax_scale, softcap)
    if sink is not None or softmax != "softmax":
        softmax, sink = as_softmax(softmax, sink, q, return_lse)
    if rng is not None or type(dropout_p) is not float or dropout_p != 0.0:
        dropout_p, rng = as_dropout(dropout_p, rng, q)
    features, scale, numbers = options = options_of(
        causal, window_size, softcap, softmax_scale, alibi_slopes, alignment, softmax, dropout_p,
        inputs,
    )  # fmt: skip
    blocks = NO_BLOCKS
    if block_mask is not None:
        if num_splits and num_splits != 1:
            raise ValueError(f"{num_splits=}: the keys of listed blocks are not divided")
        blocks = with_blocks(block_mask, q, k, ragged, score_mod, mask_mod)
        mask_mod = block_mask
    elif mask_mod is not None:
        if is_block_mask(mask_mod):
            raise TypeError("mask_mod is a BlockMask, must be a function: give it as block_mask")
        # Beside a Captured score_mod a function is refused.
        if callable(mask_mod) and lengths is None and not isinstance(score_mod, Captured):
            functions = score_mod, mask_mod
            score_mod, mask_mod, blocks = with_made_blocks(*functions, q, k, features, numbers)
    if not (deterministic is True or deterministic is False):
        deterministic = as_flag("deterministic", deterministic)
    if lengths is None:
        look = problem_while_compiling if torch.compiler.is_compiling() else problem_of
        if blocks.size:
            features = (*features, "dense", blocks.size)
        (spec, default_scale), tables = look(q, k, v, features, score_mod, mask_mod)
        scale = default_scale if scale is None else scale
        slopes = ()
        if alibi_slopes is not None:
            slopes = (check_alibi(alibi_slopes, q.device, q.shape[0], q.shape[2]),)
        out, lse = attention_operator(
            q, k, v, [*slopes, *own, *tables, *blocks.lists], spec, scale, sink, deterministic,
            *numbers, rng,
        )  # fmt: skip
    else:
        out, lse = ready_attention(
            q, k, v, ragged, options, deterministic, alibi_slopes, (score_mod, mask_mod),
            as_splits(num_splits) if num_splits else 0, sink, rng, own, blocks,
        )()  # fmt: skip
        out = out if nested is None else nested_like(nested, out)
    # With pages k and v alone are of that layout: out is packed, as q is.
    if layout == "bhsd" and block_table is None:
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


def options_of(
    causal,
    window_size,
    softcap,
    softmax_scale,
    alibi_slopes,
    alignment: str = "bottom_right",
    softmax: str = "softmax",
    dropout: float = 0.0,
    inputs: tuple = (),
) -> tuple[tuple, float | None, tuple]:
    """The fields of problem.Features up to the kind; the scale; window_left, window_right, softcap,
    dropout.

    Of options as ``attention`` takes them, and raises for them.
    """
    # What is right as it is asks for no function: each would be 1 % of a small call.
    if not (causal is True or causal is False):
        causal = as_flag("causal", causal)
    left, right, has_left, has_right = -1, -1, False, False
    if window_size is not NO_WINDOW:
        left, right = as_window(window_size)
        # bool: what torch.export computes from a length compares to a symbol.
        causal, has_left, has_right = causal or right == 0, bool(left >= 0), bool(right > 0)
    if type(softcap) is not float or softcap != 0.0:
        softcap = as_softcap(softcap)
    scale = None if softmax_scale is None else as_scale("softmax_scale", softmax_scale)
    is_steep = scale is not None and not -_STEEP <= scale <= _STEEP
    alibi = alibi_slopes is not None
    # To make a Features takes 2 % of a small call.
    kinds = (causal, has_left, has_right, softcap > 0, alibi, alignment, is_steep)
    features = (*kinds, inputs, softmax, dropout > 0)
    return features, scale, (left, right, softcap, dropout)


def _rows_first(layout: str, *tensors: torch.Tensor):
    """``tensors`` as (B, S, H, D)."""
    if layout not in LAYOUTS:
        raise ValueError(f"{layout=} must be one of {', '.join(LAYOUTS)}")
    return [x.transpose(1, 2) if _has_rows(x) else x for x in tensors]


def _has_rows(x) -> bool:
    """Whether ``x`` is a tensor of four dimensions, dense or jagged; the checks name others."""
    return getattr(x, "layout", None) in (torch.strided, torch.jagged) and x.ndim == 4
