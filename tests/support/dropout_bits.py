"""A problem whose results are the pattern of dropout: equal scores, values that tell keys apart."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tvm_flash import attention
from tvm_flash.problem.dropout import kept

B, H, HK, SQ, SK, DIM = 2, 2, 1, 70, 90, 96
P, RNG = 0.3, torch.tensor([2**40 + 123, -456])


class Pattern(NamedTuple):
    """Which weights (B, H, Sq, Sk) the forward kept, and dV and dQ; a group's heads in dV added."""

    forward: torch.Tensor
    by_values: torch.Tensor
    by_scores: torch.Tensor


def expected() -> Pattern:
    """That of ``problem.dropout``."""
    whole = torch.from_numpy(kept(P, RNG.tolist(), (B, H, SQ, SK)))
    return Pattern(whole, whole.view(B, HK, H // HK, SQ, SK).sum(2), whole)


def found(dtype: torch.dtype, **options) -> Pattern:
    """That of ``attention`` in ``dtype``.

    With zeros as queries every weight is 1 / Sk. A unit vector for each value makes out row by row
    what was kept; one for each row of dO makes dV that. With ones as dO, dP is one everywhere that
    is kept, so that dS, which unit vectors as keys make dQ of, is positive there.
    """
    q = torch.zeros(B, SQ, H, DIM, dtype=dtype, requires_grad=True)
    keys = torch.eye(DIM, dtype=dtype)[None, :SK, None].expand(B, SK, HK, DIM)
    k, v = (keys.clone().requires_grad_() for _ in range(2))
    out = attention(q, k, v, softmax_scale=1.0, dropout_p=P, rng=RNG, **options)
    rows = torch.eye(DIM, dtype=dtype)[None, :SQ, None].expand_as(out)
    (dv,) = torch.autograd.grad(out, v, rows, retain_graph=True)
    (dq,) = torch.autograd.grad(out, q, torch.ones_like(out))
    counts = (dv.float() * SK * (1 - P)).round().long()
    return Pattern(
        out.transpose(1, 2)[..., :SK] > 0.5 / SK,
        counts.permute(0, 2, 3, 1)[:, :, :SQ],
        dq.transpose(1, 2)[..., :SK] > 0,
    )


def assert_same(got: Pattern, want: Pattern) -> None:
    """Assert that every weight is kept, or dropped, in both."""
    for name, a, b in zip(Pattern._fields, got, want, strict=True):
        assert torch.equal(a, b), name
