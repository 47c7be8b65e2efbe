"""A block as gpt-oss has it, trained through this package and by plain torch: one loss curve."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tvm_flash import attention

HEADS, KV_HEADS, HEAD_DIM, WINDOW = 4, 2, 32, 16
WIDTH, CONTEXT, BATCH, STEPS = 128, 64, 8, 200
# Codes of this file's characters, which are what is learned.
TEXT = torch.tensor(list(Path(__file__).read_bytes())).clamp(max=127)


def ours(q, k, v, sink, window):
    return attention(q, k, v, causal=True, window_size=(window, 0), sink=sink)


def plain(q, k, v, sink, window):
    """Every score in torch: a logit a head beside them, which has no value."""
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * HEAD_DIM**-0.5
    steps = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    seen = (steps >= 0) & ((steps <= window) | (window < 0))
    scores = scores.masked_fill(~seen, float("-inf"))
    logits = sink[:, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, logits], -1).softmax(-1)[..., :-1]
    return torch.einsum("bhij,bjhd->bihd", weights, v)


class Block(nn.Module):
    """Attention with sinks, over a window (-1: over all), and a gated feed-forward layer."""

    def __init__(self, attend, window):
        super().__init__()
        self.attend, self.window = attend, window
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.sink = nn.Parameter(torch.zeros(HEADS))
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.project = nn.Linear(HEADS * HEAD_DIM, WIDTH)
        self.gate_up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        rows = self.qkv(self.norm_1(x)).unflatten(-1, (-1, HEAD_DIM))
        q, k, v = rows.split([HEADS, KV_HEADS, KV_HEADS], dim=2)
        x = x + self.project(self.attend(q, k, v, self.sink, self.window).flatten(2))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def losses(attend):
    torch.manual_seed(0)
    blocks = nn.Sequential(Block(attend, WINDOW), Block(attend, -1))
    token, place, head = (
        nn.Embedding(128, WIDTH),
        nn.Embedding(CONTEXT, WIDTH),
        nn.Linear(WIDTH, 128),
    )
    model = nn.ModuleList([blocks, token, place, head])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    found = []
    for _ in range(STEPS):
        starts = torch.randint(len(TEXT) - CONTEXT - 1, (BATCH, 1))
        batch = TEXT[starts + torch.arange(CONTEXT + 1)]
        logits = head(blocks(token(batch[:, :-1]) + place.weight))
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found), blocks[0].sink.detach()


@pytest.mark.sweep
def test_a_block_like_gpt_oss_learns_as_in_torch():
    (own, sink), (want, _) = losses(ours), losses(plain)
    print(f"loss {want[0]:.4f} -> torch {want[-20:].mean():.4f}, ours {own[-20:].mean():.4f}; "
          f"largest difference {(own - want).abs().max():.2e}, sinks {sink.tolist()}")  # fmt: skip
    assert want[-20:].mean() < 0.6 * want[0] and sink.abs().min() > 1e-3
    torch.testing.assert_close(own, want, rtol=1e-3, atol=1e-3)
