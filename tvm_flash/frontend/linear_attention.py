"""Linear attention for users: weights are products of features, and time is linear in length."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..feature_maps import FEATURE_MAPS
from ..problem.size_checks import check_heads
from ..score.layouts import check_dense
from . import linear_ops
from .checks import check_first, check_like, check_tensors
from .values import as_flag, as_number, autocast


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    feature_map: str | Callable[[torch.Tensor], torch.Tensor] | None = None,
    causal: bool = False,
    decay: torch.Tensor | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    return_state: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """out_i = sum_j w_ij v_j / sum_j w_ij with w_ij = scale g^(i - j) phi(q_i) . phi(k_j).

    j goes over all keys; with ``causal`` up to i. Katharopoulos et al., "Transformers are RNNs",
    2020, section 3; with a decay and without the normaliser the retention of Sun et al.,
    "Retentive Network", 2023, section 2. Time and memory are linear in the length, by products
    within chunks and a state between them.

    q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv): float32, bfloat16 or float16, with any
    strides; H a multiple of Hk; causal needs Sq = Sk. Under autocast they and their features are
    cast to its dtype. feature_map: phi, "elu1" (elu + 1) or a function of a tensor (..., D) to
    features of up to 512 columns (``tvm_flash.feature_maps``); None: q and k are features. decay
    (H,): g of each head in (0, 1], causal only.
    normalize: False leaves out the denominator; a row whose denominator is 0, as of no keys, is 0.
    initial_state (B, H, F, Dv + 1) float32, F features: what an earlier call with ``return_state``
    gave for the keys before these; a sum of scale g^(n - 1 - j) phi(k_j) v_j^T, with that of
    phi(k_j), times the same, as its last column.

    Returns out (B, Sq, H, Dv) in q's dtype, with ``return_state`` also the state behind the last
    key. Sums are float32. Differentiable once in q, k, v, the state and decay. Raises ValueError or
    TypeError for tensors that do not fit.
    """
    phi = _feature_map(feature_map)
    causal, normalize = as_flag("causal", causal), as_flag("normalize", normalize)
    scale = as_number("scale", scale)
    q, k, v = autocast(q), autocast(k), autocast(v)
    check_tensors(q, k, v)
    q, k = autocast(phi(q)), autocast(phi(k))
    _check(q, k, v, causal)
    batch, heads, kv_heads = q.shape[0], q.shape[2], k.shape[2]
    rates = _checked_decay(decay, q, causal)
    shape = (batch, heads, q.shape[3], v.shape[3] + 1)
    if initial_state is None:
        initial_state = q.new_zeros(shape, dtype=torch.float32)
    _check_floats("initial_state", initial_state, shape, q)
    fill = linear_ops.filled
    nothing, ones = fill(0.0, q, heads), fill(1.0, q, heads)
    has_own = (k.shape[1], kv_heads) != (q.shape[1], heads)
    no_key, key = (fill(0.0, k, kv_heads), fill(1.0, k, kv_heads)) if has_own else (nothing, ones)
    weight = key if scale == 1 else fill(scale, k, kv_heads)
    out, _, state = linear_ops.linear(
        q, k, v, nothing, no_key, key, weight, ones, rates, initial_state, 0, int(normalize), 1,
        causal,
    )  # fmt: skip
    return (out, state) if return_state else out


def _feature_map(given) -> Callable[[torch.Tensor], torch.Tensor]:
    if callable(given):
        return given
    if given not in [*FEATURE_MAPS]:  # a list may be asked for what has no hash
        names = ", ".join(repr(name) for name in FEATURE_MAPS)
        raise ValueError(f"feature_map={given!r:.60} must be one of {names}, or a function")
    return FEATURE_MAPS[given]


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> None:
    """Raise unless features of q and k, and v, fit each other."""
    check_first(q)
    if (k.dtype, v.dtype) != (q.dtype, q.dtype):
        raise TypeError(
            f"features have dtypes {q.dtype} and {k.dtype}, v has {v.dtype}: one of them"
        )
    if (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or k.shape[:3] != v.shape[:3]:
        raise ValueError(
            f"features of q {tuple(q.shape)} and k {tuple(k.shape)}, and v {tuple(v.shape)}, must "
            "be (B, Sq, H, F), (B, Sk, Hk, F) and (B, Sk, Hk, Dv)"
        )
    check_heads(q.shape[2], k.shape[2])
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"causal=True needs as many queries as keys, not {q.shape[1]} and {k.shape[1]}: give "
            "earlier keys as initial_state"
        )


def _checked_decay(decay, q: torch.Tensor, causal: bool) -> torch.Tensor:
    """(H,) float32 on q's device: ``decay``, or ones."""
    if decay is None:
        return q.new_ones((q.shape[2],), dtype=torch.float32)
    if not causal:
        raise ValueError("decay needs causal=True: without an order there is no distance")
    _check_floats("decay", decay, (q.shape[2],), q)
    if decay.is_cpu and not torch.compiler.is_compiling():
        for rate in decay.tolist():
            if not 0 < rate <= 1:
                raise ValueError(f"decay={rate} must lie in (0, 1]")
    return decay


def _check_floats(name: str, x, shape: tuple[int, ...], q: torch.Tensor) -> None:
    """Raise unless ``x`` is a dense float32 tensor of this shape beside q."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dense(name, x)
    check_like(name, x, shape, torch.float32, q)
