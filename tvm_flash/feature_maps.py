"""Feature maps of linear attention: functions of tensors (..., D), differentiable by torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["FEATURE_MAPS", "elu1", "positive_random_features", "softmax_features"]

FeatureMap = Callable[[torch.Tensor], torch.Tensor]


def elu1(x: torch.Tensor) -> torch.Tensor:
    """elu(x) + 1: positive, as wide as x (Katharopoulos et al., 2020, section 3.2.1)."""
    return torch.nn.functional.elu(x) + 1


def softmax_features(x: torch.Tensor) -> torch.Tensor:
    """softmax of x over its columns: positive, of sum 1 (Shen et al., "Efficient Attention", 2021).

    For queries; keys of that paper have a softmax over the sequence.
    """
    return torch.softmax(x, dim=-1)


# What linear_attention knows by name.
FEATURE_MAPS: dict[str | None, FeatureMap] = {None: lambda x: x, "elu1": elu1}


def positive_random_features(
    head_dim: int,
    features: int = 256,
    *,
    softmax_scale: float | None = None,
    seed: int = 0,
) -> FeatureMap:
    """Features whose products estimate exp(scale q . k), without bias (Choromanski et al.,
    "Rethinking Attention with Performers", 2021, section 2.3 and lemma 1).

    phi(x) = exp(W x - |x|^2 / 2) / sqrt(features) for x times sqrt(scale); the rows of W
    (features, head_dim) are normal, orthogonal in groups of head_dim. softmax_scale: None is
    1 / sqrt(head_dim). The error falls with 1 / sqrt(features) and grows with exp(|q| |k|).
    Computed in float32, under autocast too, given in the dtype of x; no row is shifted by its
    maximum, so that features of different calls, and keys of a state, fit each other.
    """
    scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
    directions = _orthogonal_rows(features, head_dim, seed)

    def phi(x: torch.Tensor) -> torch.Tensor:
        scaled = x.float() * scale**0.5
        with torch.autocast(x.device.type, enabled=False):
            exponents = scaled @ directions.to(x.device).T
        exponents = exponents - scaled.square().sum(-1, keepdim=True) / 2
        return (exponents.exp() * features**-0.5).to(x.dtype)

    return phi


def _orthogonal_rows(rows: int, columns: int, seed: int) -> torch.Tensor:
    """(rows, columns): each normally distributed, orthogonal within groups of ``columns``."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-rows // columns)
    normal = torch.randn(blocks, columns, columns, generator=generator)
    directions = torch.linalg.qr(normal).Q.flatten(0, 1)[:rows]
    lengths = torch.randn(rows, columns, generator=generator).norm(dim=1, keepdim=True)
    return directions * lengths
