"""What an ``attn_bias`` of xFormers lets queries see, as ``attention`` takes it.

Biases are known by the names of their classes, of which nothing is imported, and are read by the
fields that xFormers 0.0.2x to 0.0.35 gives them. A subclass may hide other pairs: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from ..frontend.values import NO_WINDOW

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Kind(NamedTuple):
    """What a class of biases says.

    rows: where an entry's queries and keys lie: of a bias and q, k, v (B, S, H, D), the rows that
    ``attention`` takes and its arguments for them. window: (left, right) of a bias.
    """

    rows: Callable[[Any, Rows], tuple[Rows, dict[str, Any]]]
    window: Callable[[Any], tuple[int, int]] = lambda bias: NO_WINDOW
    alignment: str = "bottom_right"


def seen_rows(bias: Any, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """q, k, v and other arguments of ``attention`` for ``bias`` and q, k, v (B, S, H, D).

    Raises NotImplementedError for a class that is not known, TypeError for one that is called as a
    known one and lacks its fields, ValueError for rows that it is not of.
    """
    if isinstance(bias, type):
        raise TypeError(f"attn_bias is the class {bias.__name__}: give an object of it")
    name = type(bias).__name__
    if name not in _KINDS:
        raise NotImplementedError(
            f"attn_bias of class {name} is not known here: give a tensor, bias.materialize(shape), "
            f"or one of {', '.join(_KINDS)}"
        )
    kind = _KINDS[name]
    try:
        window, (rows, options) = kind.window(bias), kind.rows(bias, rows)
    except AttributeError as error:
        raise TypeError(
            f"attn_bias of class {name} has no {error.name}, unlike those of xFormers up to 0.0.35"
        ) from error
    return rows, {"window_size": window, "alignment": kind.alignment, **options}


def _dense(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    return rows, {}


def _dense_with_tensor(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    return rows, {"bias": tensor_bias(bias._bias, rows[0])}


def tensor_bias(bias: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """A tensor (B, H, Sq, Sk), (B, G, H, Sq, Sk) or (B, Sq, Sk), with the heads of q in one
    dimension; ValueError for another number of dimensions."""
    if bias.ndim == 5:
        return bias.flatten(1, 2)
    if bias.ndim == 3 and q.shape[2] == 1:
        return bias.unsqueeze(1)
    if bias.ndim != 4:
        shape = (q.shape[0], q.shape[2], q.shape[1], "keys")
        raise ValueError(f"attn_bias of shape {tuple(bias.shape)} must be of shape {shape}")
    return bias


def _packed(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """Entries one behind the other, in q and in k."""
    (q, k, v), lengths = _of_queries(bias, rows)
    return (q, k[0], v[0]), {
        **lengths,
        "cu_seqlens_k": bias.k_seqinfo.seqstart,
        "max_seqlen_k": bias.k_seqinfo.max_seqlen,
    }


def _spaced(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """Keys of entries anywhere: each has a start and a length.

    One behind the other, as nearly all are, they are read where they lie; others are gathered.
    """
    (q, k, v), lengths = _of_queries(bias, rows)
    info, k, v = bias.k_seqinfo, k[0], v[0]
    starts, counts = info.seqstart_py[:-1], info.seqlen_py
    lengths["max_seqlen_k"] = info.max_seqlen
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    if all(end <= start for end, start in zip(ends, starts[1:], strict=False)):
        first = starts[0]
        cu_seqlens = info.seqstart - first if first else info.seqstart
        return (q, k[first:], v[first:]), {
            **lengths,
            "cu_seqlens_k": cu_seqlens,
            "seqused_k": info.seqlen,
        }
    if max(ends, default=0) > len(k) or min(starts, default=0) < 0:
        raise ValueError(f"attn_bias has keys at {starts} to {ends}, but there are {len(k)} rows")
    used = torch.tensor(_numbers(starts, ends), device=k.device)
    cu_seqlens = torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device=k.device)
    return (q, k[used], v[used]), {**lengths, "cu_seqlens_k": cu_seqlens}


def _numbers(starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    return [n for start, end in zip(starts, ends, strict=True) for n in range(start, end)]


def _padded_pages(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """Keys in pages, from position 0 of each entry on."""
    (q, k, v), lengths = _of_queries(bias, rows)
    if k.shape[1] % bias.page_size:
        raise ValueError(f"{k.shape[1]} rows of keys are not whole pages of {bias.page_size}")
    pages = tuple(x[0].unflatten(0, (-1, bias.page_size)) for x in (k, v))
    used = {"block_table": bias.block_tables, "seqused_k": bias.k_seqinfo.seqlen}
    return (q, *pages), {**lengths, **used}


def _spaced_pages(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """Keys in pages, from a position of each entry on; ``seqlen`` is past the last one's."""
    rows, options = _padded_pages(bias, rows)
    return rows, {**options, "leftpad_k": bias.k_seqinfo.seqstart[:-1]}


def _of_queries(bias, rows: Rows) -> tuple[Rows, dict[str, Any]]:
    """q (total, H, D), k, v (1, total_k, Hk, D), and where the queries of entries lie."""
    batches = [len(x) for x in rows]
    if batches != [1, 1, 1]:
        raise ValueError(
            f"query, key, value of batch {batches} must be of batch 1 beside a "
            f"{type(bias).__name__}: its entries lie one behind the other"
        )
    info, (q, k, v) = bias.q_seqinfo, rows
    return (q[0], k, v), {"cu_seqlens_q": info.seqstart, "max_seqlen_q": info.max_seqlen}


def _causal(bias) -> tuple[int, int]:
    return -1, 0


def _last_keys(bias) -> tuple[int, int]:
    return bias._window_size - 1, 0


def _both_ends(bias) -> tuple[int, int]:
    return bias.window_left, bias.window_right


_KINDS = {
    "LowerTriangularMask": _Kind(_dense, _causal, "top_left"),
    "LowerTriangularMaskWithTensorBias": _Kind(_dense_with_tensor, _causal, "top_left"),
    "LowerTriangularFromBottomRightMask": _Kind(_dense, _causal),
    "LowerTriangularFromBottomRightLocalAttentionMask": _Kind(_dense, _last_keys),
    "LocalAttentionFromBottomRightMask": _Kind(_dense, _both_ends),
    "BlockDiagonalMask": _Kind(_packed),
    "BlockDiagonalCausalMask": _Kind(_packed, _causal, "top_left"),
    "BlockDiagonalCausalFromBottomRightMask": _Kind(_packed, _causal),
    "BlockDiagonalCausalLocalAttentionMask": _Kind(_packed, _last_keys, "top_left"),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": _Kind(_packed, _last_keys),
    "BlockDiagonalPaddedKeysMask": _Kind(_spaced),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": _Kind(_spaced, _causal),
    "BlockDiagonalLocalAttentionPaddedKeysMask": _Kind(_spaced, _both_ends),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": _Kind(_spaced, _last_keys),
    "BlockDiagonalGappyKeysMask": _Kind(_spaced),
    "BlockDiagonalCausalWithOffsetGappyKeysMask": _Kind(_spaced, _causal),
    "PagedBlockDiagonalPaddedKeysMask": _Kind(_padded_pages),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask": _Kind(_padded_pages, _causal),
    "PagedBlockDiagonalGappyKeysMask": _Kind(_spaced_pages),
    "PagedBlockDiagonalCausalWithOffsetGappyKeysMask": _Kind(_spaced_pages, _causal),
}
