"""Three variants of attention as plain functions, each checked against dense torch, masks drawn.

    python examples/score_mods.py [--seqlen 384] [--out examples/out]

A score_mod changes a score, a mask_mod says who sees whom. Both are written once, on symbols or
tensors alike: here they become kernels (forward and backward), the dense check evaluates the same
functions on torch tensors, and so does the picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import tvm_flash

HEADS, HEAD_DIM, REACH = 4, 64, 32


def relative_position(bias):
    """A learned bias by distance, as in T5: bias (heads, 2*REACH + 1), far distances share one."""

    def score_mod(score, b, h, q_idx, k_idx):
        return score + bias[h, torch.clamp(q_idx - k_idx, -REACH, REACH) + REACH]

    return score_mod


def documents(document_of):
    """Several documents in one sequence: document_of (seqlen,) int, each sees only itself."""

    def mask_mod(b, h, q_idx, k_idx):
        return document_of[q_idx] == document_of[k_idx]

    return mask_mod


def causal_documents(document_of):
    """Masks compose: the document mask, and no key after its query."""
    same_document = documents(document_of)

    def mask_mod(b, h, q_idx, k_idx):
        return same_document(b, h, q_idx, k_idx) & (q_idx >= k_idx)

    return mask_mod


def prefix_lm(length):
    """The first ``length`` keys are seen by all, the others causally."""

    def mask_mod(b, h, q_idx, k_idx):
        return (k_idx < length) | (q_idx >= k_idx)

    return mask_mod


def dense(q, k, v, score_mod=None, mask_mod=None):
    """The same attention in float64 with every array written out; q, k, v (B, S, H, D)."""
    b, h, q_idx, k_idx = grid(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if score_mod is not None:
        scores = score_mod(scores, b, h, q_idx, k_idx)
    if mask_mod is not None:
        scores = scores.masked_fill(~mask_mod(b, h, q_idx, k_idx), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def grid(batch, heads, seqlen_q, seqlen_k):
    """Index tensors b, h, q_idx, k_idx that broadcast to (batch, heads, seqlen_q, seqlen_k)."""
    sizes = (batch, heads, seqlen_q, seqlen_k)
    shapes = [[-1 if axis == place else 1 for axis in range(4)] for place in range(4)]
    return [torch.arange(size).reshape(shape) for size, shape in zip(sizes, shapes, strict=True)]


def check(name, q, k, v, **mods):
    """Compare forward and backward of ``tvm_flash.attention`` with ``dense``; print the errors."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = tvm_flash.attention(*inputs, **mods)
    out.sum().backward()
    oracle = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = dense(*oracle, **mods)
    expected.sum().backward()
    pairs = [(out, expected), *((a.grad, b.grad) for a, b in zip(inputs, oracle, strict=True))]
    errors = [(a.double() - b.double()).abs().max().item() for a, b in pairs]
    words = zip(("out", "dq", "dk", "dv"), errors, strict=True)
    print(f"{name:18}", "  ".join(f"{word} {error:.1e}" for word, error in words))
    assert max(errors) < 1e-3, f"{name} differs from dense attention"


def visible(mask_mod, seqlen):
    """(seqlen, seqlen) bool: what query row i sees, for batch 0 and head 0."""
    b, h, q_idx, k_idx = grid(1, 1, seqlen, seqlen)
    return mask_mod(b, h, q_idx, k_idx).expand(1, 1, seqlen, seqlen)[0, 0]


def draw(masks, seqlen, folder):
    """A picture of the masks; text where matplotlib is not installed. Returns the file, if any."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        for name, mask_mod in masks.items():
            print(f"\n{name}\n{as_text(visible(mask_mod, seqlen))}")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(masks), figsize=(4 * len(masks), 4.4), squeeze=False)
    for axis, (name, mask_mod) in zip(axes[0], masks.items(), strict=True):
        axis.imshow(visible(mask_mod, seqlen), cmap="Blues", vmin=0, vmax=1.4)
        axis.set(title=name.replace("_", " "), xlabel="key", ylabel="query")
    figure.suptitle("who sees whom (blue: visible)")
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "masks.png", dpi=100)
    return folder / "masks.png"


def as_text(mask, size=32):
    """The mask in ``size`` lines of characters."""
    rows = torch.linspace(0, mask.shape[0] - 1, size).long()
    return "\n".join("".join("█ "[not cell] * 2 for cell in mask[row][rows]) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=384)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, options.seqlen, HEADS, HEAD_DIM) for _ in range(3))
    bias = torch.randn(HEADS, 2 * REACH + 1)
    lengths = torch.tensor([0.2, 0.5]).mul(options.seqlen).long()
    document_of = torch.bucketize(torch.arange(options.seqlen), lengths, right=True)
    masks = {
        "document": documents(document_of),
        "causal_document": causal_documents(document_of),
        "prefix_lm": prefix_lm(options.seqlen // 4),
    }
    print("largest errors against dense float64 attention")
    check("relative_position", q, k, v, score_mod=relative_position(bias))
    for name, mask_mod in masks.items():
        check(name, q, k, v, mask_mod=mask_mod)
    picture = draw(masks, options.seqlen, options.out)
    if picture:
        print(f"masks drawn in {picture}")


if __name__ == "__main__":
    main()
