"""Loss curves of training through this package beside those of plain torch: docs/training.png.

python benchmarks/training.py

Two small models, 200 steps each, with equal weights and batches: a block as T5 has it, whose bias
by distance is learned, and two blocks as gpt-oss has them, with learned sinks, fewer key heads and
a window in every other layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tvm_flash import attention
from tvm_flash.reference import attention_reference

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "training.png"
STEPS = 200
# Codes of this file's characters, which are what is learned.
TEXT = torch.tensor(list(Path(__file__).read_bytes())).clamp(max=127)
HEADS, KV_HEADS, HEAD_DIM, WINDOW = 4, 2, 32, 16
WIDTH, CONTEXT, BATCH = 128, 64, 8
T5_LENGTH, T5_HEADS, T5_DIM, BUCKETS = 48, 2, 16, 16


def plain(q, k, v, **options):
    """``attention`` in torch's operations, every score an array."""
    return attention_reference(q, k, v, **options)[0]


class Block(nn.Module):
    """Attention with sinks, over a window (-1: over all), and a gated feed-forward layer."""

    def __init__(self, attend: Callable, window: int):
        super().__init__()
        self.attend, self.window = attend, (window, 0)
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.sink = nn.Parameter(torch.zeros(HEADS))
        self.qkv = nn.Linear(WIDTH, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.project = nn.Linear(HEADS * HEAD_DIM, WIDTH)
        self.gate_up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        """x (B, CONTEXT, WIDTH)."""
        rows = self.qkv(self.norm_1(x)).unflatten(-1, (-1, HEAD_DIM))
        q, k, v = rows.split([HEADS, KV_HEADS, KV_HEADS], dim=2)
        out = self.attend(q, k, v, causal=True, window_size=self.window, sink=self.sink)
        x = x + self.project(out.flatten(2))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def gpt_oss_like(attend: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses (STEPS,) of predicting characters by ``attend``, and the sinks of a layer."""
    torch.manual_seed(0)
    blocks = nn.Sequential(Block(attend, WINDOW), Block(attend, -1))
    token, place = nn.Embedding(128, WIDTH), nn.Embedding(CONTEXT, WIDTH)
    head = nn.Linear(WIDTH, 128)
    model = nn.ModuleList([blocks, token, place, head])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss():
        starts = torch.randint(len(TEXT) - CONTEXT - 1, (BATCH, 1))
        batch = TEXT[starts + torch.arange(CONTEXT + 1)]
        logits = head(blocks(token(batch[:, :-1]) + place.weight))
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    return trained(loss, optimizer), blocks[0].sink.detach()


def t5_like(attend: Callable) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses (STEPS,) of copying the vector three places before, which needs the bias; its
    table (BUCKETS, T5_HEADS)."""
    generator = torch.Generator().manual_seed(0)
    width, of_distance = T5_HEADS * T5_DIM, buckets()
    weights = [nn.Parameter(torch.randn(width, width, generator=generator) * 0.2) for _ in range(4)]
    table = nn.Parameter(torch.zeros(BUCKETS, T5_HEADS))

    def score_mod(score, b, h, q_idx, k_idx):
        return score + table[of_distance[q_idx - k_idx + (T5_LENGTH - 1)], h]

    def loss():
        x = torch.randn(4, T5_LENGTH, width, generator=generator)
        q, k, v = ((x @ w).view(4, T5_LENGTH, T5_HEADS, T5_DIM) for w in weights[:3])
        out = attend(q, k, v, score_mod=score_mod)
        return (out.flatten(2) @ weights[3] - x.roll(3, 1)).square().mean()

    return trained(loss, torch.optim.Adam([*weights, table], lr=0.01)), table.detach()


def buckets() -> torch.Tensor:
    """The bucket of each distance; far ones share some (T5, Raffel et al., 2020)."""
    distance = torch.arange(2 * T5_LENGTH - 1) - (T5_LENGTH - 1)
    far = 4 + (distance.abs().clamp(min=4) / 4).log2().int()
    near = torch.where(distance.abs() < 4, distance.abs(), far)
    return near.clamp(max=7) + 8 * (distance < 0)


def trained(loss: Callable, optimizer) -> torch.Tensor:
    """The losses of ``STEPS`` steps."""
    found = []
    for _ in range(STEPS):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    return torch.tensor(found)


MODELS = {"T5-like: a bias that learns": t5_like, "gpt-oss-like: sinks, a window": gpt_oss_like}


def main() -> None:
    """Train each model twice, print what differs, draw the curves."""
    curves = {name: [model(attend)[0] for attend in (attention, plain)] for name, model in
              MODELS.items()}  # fmt: skip
    for name, (own, torchs) in curves.items():
        first, last = (f"{x[:20].mean():.4f} -> {x[-20:].mean():.4f}" for x in (own, torchs))
        difference = (own - torchs).abs().max()
        print(f"{name}: here {first}, torch {last}, largest difference {difference:.1e}")
    draw(curves, PICTURE)


def draw(curves: dict[str, list[torch.Tensor]], path: Path) -> None:
    """Write the curves, and below each what they differ by, to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    places = figure.subplots(2, len(curves), sharex=True, height_ratios=(3, 1), squeeze=False)
    for (loss, difference), (name, (own, torchs)) in zip(places.T, curves.items(), strict=True):
        loss.plot(torchs, color="#E69F00", linewidth=3, label="torch")
        loss.plot(own, color="#0072B2", linewidth=1, label="here")
        loss.set_title(name, fontsize=10)
        loss.set_ylabel("loss")
        loss.legend(frameon=False)
        difference.semilogy((own - torchs).abs().clamp(min=1e-9), color="#333333", linewidth=1)
        difference.set_ylabel("difference")
        difference.set_xlabel("step")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
