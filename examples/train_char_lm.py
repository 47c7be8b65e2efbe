"""Train a small language model twice, through tvm_flash and through SDPA: one loss curve.

    python examples/train_char_lm.py [--steps 300] [--out examples/out]

The text is this repository's own; both runs start from the same weights and see the same batches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import tvm_flash

ROOT = Path(__file__).resolve().parent.parent
LAYERS, HEADS, HEAD_DIM, CONTEXT, BATCH = 3, 4, 32, 128, 16
WIDTH = HEADS * HEAD_DIM


def ours(q, k, v):
    """q, k, v (B, S, H, D) through this package."""
    return tvm_flash.flash_attn_func(q, k, v, causal=True)


def sdpa(q, k, v):
    """q, k, v (B, S, H, D) through torch."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and beside a shortcut."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x):
        """x (B, S, WIDTH)."""
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, HEADS, HEAD_DIM)).unbind(2)
        x = x + self.project(self.attention(q, k, v).flatten(2))
        return x + self.feed(self.norm_2(x))


class LanguageModel(nn.Module):
    """A decoder-only transformer over characters."""

    def __init__(self, vocabulary, attention):
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(attention) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def forward(self, tokens):
        """tokens (B, S) int64 -> logits (B, S, vocabulary)."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def read_text():
    """Characters of the repository's sources and documents, as numbers, and how many differ."""
    files = [p for p in ROOT.rglob("*") if p.suffix in {".py", ".md"}]
    own = [p for p in files if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted(own))
    number = {character: n for n, character in enumerate(sorted(set(text)))}
    return torch.tensor([number[c] for c in text]), len(number)


def train(attention, text, vocabulary, steps, seed=0):
    """Loss after each step."""
    torch.manual_seed(seed)
    model = LanguageModel(vocabulary, attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH, 1))
        window = text[starts + torch.arange(CONTEXT + 1)]
        logits = model(window[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plot(curves, path):
    """Both curves in one picture, where matplotlib is installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.2))
    for (name, losses), style in zip(curves.items(), ("-", "--"), strict=True):
        axis.plot(losses, style, label=name, linewidth=3 if style == "-" else 1.5)
    axis.set(xlabel="step", ylabel="loss (nats per character)", title="one loss curve, two kernels")
    axis.legend()
    axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"curves drawn in {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tolerance", type=float, default=0.01, help="nats, at any step")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    text, vocabulary = read_text()
    print(f"{len(text)} characters, {vocabulary} different; {options.steps} steps each")
    curves = {}
    for name, attention in {"tvm_flash": ours, "SDPA": sdpa}.items():
        train(attention, text, vocabulary, steps=1)  # ours compiles its kernels at the first call
        started = time.perf_counter()
        curves[name] = train(attention, text, vocabulary, options.steps)
        print(f"{name:9} {time.perf_counter() - started:6.1f} s")
    rows = list(zip(*curves.values(), strict=True))
    print(f"{'step':>6} {'tvm_flash':>10} {'SDPA':>10} {'difference':>11}")
    for step in sorted({*range(0, len(rows), max(1, len(rows) // 10)), len(rows) - 1}):
        a, b = rows[step]
        print(f"{step:6} {a:10.4f} {b:10.4f} {abs(a - b):11.1e}")
    plot(curves, options.out / "train_char_lm.png")
    largest = max(abs(a - b) for a, b in rows)
    print(f"largest difference at any step: {largest:.1e}")
    assert largest < options.tolerance, f"the curves part by {largest}"
    assert rows[-1][0] < rows[0][0], "the model did not learn"


if __name__ == "__main__":
    main()
