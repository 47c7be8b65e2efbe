"""A T5-like block, whose bias by distance is learned, trained beside PyTorch's."""

import pytest
import torch

from tvm_flash import attention
from tvm_flash.reference import attention_reference

S, HEADS, DIM, BUCKETS, STEPS = 48, 2, 16, 16, 200


def buckets():
    """The bucket of each distance; far ones share some (T5, Raffel et al., 2020)."""
    distance = torch.arange(2 * S - 1) - (S - 1)
    far = 4 + (distance.abs().clamp(min=4) / 4).log2().int()
    return (torch.where(distance.abs() < 4, distance.abs(), far)).clamp(max=7) + 8 * (distance < 0)


def losses(function):
    """The losses of ``STEPS`` steps; the task, copying the token three places before, needs the
    bias."""
    generator = torch.Generator().manual_seed(0)

    def parameter(*shape):
        return torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.2)

    width, of_distance = HEADS * DIM, buckets()
    weights = [parameter(width, width) for _ in range(4)]
    table = torch.nn.Parameter(torch.zeros(BUCKETS, HEADS))
    optimizer = torch.optim.Adam([*weights, table], lr=0.01)

    def score_mod(score, b, h, q_idx, k_idx):
        return score + table[of_distance[q_idx - k_idx + (S - 1)], h]

    found = []
    for _ in range(STEPS):
        x = torch.randn(4, S, width, generator=generator)
        q, k, v = ((x @ w).view(4, S, HEADS, DIM) for w in weights[:3])
        out = function(q, k, v, score_mod=score_mod)
        out = out[0] if isinstance(out, tuple) else out
        loss = (out.flatten(2) @ weights[3] - x.roll(3, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found), table.detach()


@pytest.mark.slow
def test_training_follows_torch():
    (ours, table), (torch_s, other) = map(losses, (attention, attention_reference))
    assert ours[-20:].mean() < 0.8 * ours[:20].mean()
    torch.testing.assert_close(ours, torch_s, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(table, other, rtol=5e-2, atol=5e-2)
