"""Each kind of attention in torch, in the dtype of its arguments."""

from __future__ import annotations

import torch


def rises(score, b, h, q_idx, k_idx):
    return score + 0.05 * (q_idx - k_idx)


def exact(kind, q, k, v, sink, variant):
    """(out, lse) in float64; lse is None where the kind has none."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    rows, keys = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    x = q @ k.mT * q.shape[-1] ** -0.5
    if "score_mod" in variant:
        x = rises(x, 0, 0, rows, keys)
    shifted = rows + len(keys) - len(rows)
    left, right = variant.get("window_size", (10**6, 0))
    x = x.masked_fill((keys > shifted + right) | (keys < shifted - left), -torch.inf)
    if kind == "sigmoid":
        return (x.sigmoid() @ v).transpose(1, 2), None
    extra = {"softmax": None, "softmax1": torch.zeros(q.shape[1]), "sink": sink}[kind]
    if extra is None:
        seen = (x > -torch.inf).any(-1, keepdim=True)
        p = torch.where(seen, torch.where(seen, x, 0.0).softmax(-1), 0.0)
        lse = x.logsumexp(-1)
    else:
        joined = torch.cat([x, extra.double()[None, :, None, None].expand(*x.shape[:3], 1)], -1)
        p, lse = joined.softmax(-1)[..., :-1], joined.logsumexp(-1)
    return (p @ v).transpose(1, 2), lse
