"""Padded batches to packed sequences and back, by the names that FlashAttention-2.7 gives them."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from .frontend.packed_rows import is_readable

__all__ = ["index_first_axis", "index_put_first_axis", "pad_input", "unpad_input"]


def unpad_input(
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    unused_mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """The rows of ``hidden_states`` (B, S, ...) that ``attention_mask`` (B, S) marks, packed.

    attention_mask: bool or integer, not 0 where a row is a token. unused_mask: like it, for rows
    that are kept but not counted as used.

    Returns the rows (total, ...), differentiable; their indices in the flattened batch (total,)
    int64; cu_seqlens (B + 1,) int32; the longest sequence, an int (a GPU is waited for); and the
    used rows of each sequence (B,) int32. ValueError, TypeError: masks of another shape or dtype.
    """
    _check_rows("hidden_states", hidden_states, 2)
    used = _as_bool("attention_mask", attention_mask, hidden_states)
    kept = used
    if unused_mask is not None:
        kept = used | _as_bool("unused_mask", unused_mask, hidden_states)
    lengths = kept.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    return (
        _rows(hidden_states, indices),
        indices,
        pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        int(lengths.max()) if len(lengths) else 0,
        used.sum(-1, dtype=torch.int32),
    )


def pad_input(
    hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int
) -> torch.Tensor:
    """Packed rows (total, ...) where they stood in a batch (batch, seqlen, ...), zeros elsewhere.

    indices: as ``unpad_input`` returns them. Differentiable. Errors as ``index_put_first_axis``.
    """
    return index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(
        0, (batch, seqlen)
    )


def index_first_axis(input: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows ``indices`` (n,) of ``input`` (rows, ...); differentiable, rows may repeat.

    TypeError, ValueError: indices that are no integers, or outside of the rows (not read on GPUs).
    """
    _check_rows("input", input, 1)
    _check_indices(indices, input, len(input))
    return input.index_select(0, indices)


def index_put_first_axis(
    values: torch.Tensor, indices: torch.Tensor, first_axis_dim: int
) -> torch.Tensor:
    """Zeros (first_axis_dim, ...) with ``values`` (n, ...) at rows ``indices`` (n,), all different.

    Differentiable. TypeError, ValueError: indices that are no integers, not as many as values, or
    outside of the rows (not read on GPUs).
    """
    _check_rows("values", values, 1)
    _check_indices(indices, values, first_axis_dim)
    if len(indices) != len(values):
        raise ValueError(f"{len(values)} rows, but {len(indices)} indices: one for each row")
    rows = values.new_zeros(first_axis_dim, *values.shape[1:])
    return rows.index_copy_(0, indices.long(), values)


def _rows(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Rows ``indices`` (n,) of x (B, S, ...) flattened."""
    batch, seqlen = x.shape[:2]
    if batch * seqlen == 0 or x.stride(0) == seqlen * x.stride(1):
        return index_first_axis(x.flatten(0, 1), indices)
    return x[indices // seqlen, indices % seqlen]  # flattening would copy all of x


def _check_rows(name: str, x, leading: int) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.ndim < leading:
        shape = "(batch, seqlen, ...)" if leading == 2 else "(rows, ...)"
        raise ValueError(f"{name} of shape {tuple(x.shape)} must be {shape}")


def _as_bool(name: str, mask, hidden_states: torch.Tensor) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(mask).__name__}")
    if mask.is_floating_point() or mask.is_complex():
        # 0 and -inf, to be added to scores, would select the wrong rows.
        raise TypeError(f"{name} of {mask.dtype} must be bool or integer: pass {name} != 0, say")
    if mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} must be (batch, seqlen) = "
            f"{tuple(hidden_states.shape[:2])}"
        )
    if mask.device != hidden_states.device:
        raise ValueError(f"{name} is on {mask.device}, rows on {hidden_states.device}: move one")
    return mask.bool()


def _check_indices(indices, x: torch.Tensor, rows: int) -> None:
    if not isinstance(indices, torch.Tensor) or indices.dtype not in (torch.int32, torch.int64):
        kind = getattr(indices, "dtype", type(indices).__name__)
        raise TypeError(f"indices of {kind} must be an int64 (or int32) tensor")
    if indices.ndim != 1:
        raise ValueError(f"indices of shape {tuple(indices.shape)} must be (n,)")
    if indices.device != x.device:
        raise ValueError(f"indices are on {indices.device}, rows on {x.device}: move one")
    if len(indices) and is_readable(indices):
        least, most = (end.item() for end in indices.aminmax())
        if least < 0 or most >= rows:
            raise ValueError(f"indices of {least}..{most} must lie in 0..{rows - 1}")
