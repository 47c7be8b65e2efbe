"""What each variant of attention costs beside plain attention, timed in turns, and its picture.

python benchmarks/variants.py            # times: results/variants.json; update_readme.py -> docs
python benchmarks/variants.py --pictures # draws docs/variants.png
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tvm_flash import attention, block_mask, masks, top_blocks
from tvm_flash.artifact.folder import replacing
from tvm_flash.bench.host import describe
from tvm_flash.bench.table import Table, numbers, words
from tvm_flash.bench.timing import Patience, Timing, interleaved

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "variants.json"
PICTURE = ROOT / "docs" / "variants.png"
BATCH, SEQLEN, HEADS, HEAD_DIM = 1, 2048, 8, 64
SHOWN = 64  # positions of a picture
PATIENCE = Patience(5, 30, 2.0, shortest=1e-3)


@dataclass(frozen=True)
class Variant:
    """A row: its name, the formula of the score or weight, and the keywords of a call, as code.

    In formulas s is a scaled dot product of query i and key j of head h. The code is evaluated
    where ``tables`` stand, so that what the page says is what was timed.
    """

    name: str
    formula: str
    call: str

    def keywords(self, q: torch.Tensor, k: torch.Tensor) -> dict:
        """The keywords of a call with q and k (B, S, H, D)."""
        return eval(f"dict({self.call})", {**_FUNCTIONS, "q": q, "k": k, **tables(q.shape[1])})


_FUNCTIONS = {
    "torch": torch, "masks": masks, "block_mask": block_mask, "top_blocks": top_blocks,
}  # fmt: skip


def tables(seqlen: int) -> dict[str, torch.Tensor | int]:
    """What the calls capture or pass, equal in every run."""
    draw = torch.Generator().manual_seed(0)
    positions, height = torch.arange(seqlen), 2 ** ((seqlen.bit_length() - 1) // 2)
    return {
        "slopes": 2.0 ** -torch.arange(1.0, HEADS + 1),
        "sink": torch.randn(HEADS, generator=draw),
        "near": torch.randn(HEADS, 65, generator=draw),
        "bias": torch.randn(1, HEADS, seqlen, seqlen, generator=draw),
        "learned": torch.randn(1, HEADS, 1, seqlen, generator=draw, requires_grad=True),
        "documents": positions * 4 // seqlen,
        "some": (positions == 0) | (positions == seqlen // 2),
        "temperature": torch.full((), 0.125, requires_grad=True),
        "window": seqlen // 8,
        "block": max(seqlen // 16, 16),
        "grid": (height, seqlen // height),
        "n": seqlen,
    }


VARIANTS = (
    Variant("causal", "j <= i", "causal=True"),
    Variant("sliding window", "i - w <= j <= i", "causal=True, window_size=(window, 0)"),
    Variant("temperature that learns", "t q_i k_j", "softmax_scale=temperature"),
    Variant("softcap", "c tanh(s / c)", "softcap=5.0"),
    Variant("ALiBi", "s - m_h abs(i - j)", "alibi_slopes=slopes"),
    Variant("bias", "s + B[h, i, j]", "bias=bias"),
    Variant("bias that learns", "s + B[h, j]", "bias=learned"),
    Variant(
        "relative bias (T5)",
        "s + T[h, i - j]",
        "score_mod=lambda s, b, h, i, j: s + near[h, torch.clamp(i - j, -32, 32) + 32]",
    ),
    Variant(
        "tanh of the score",
        "2 tanh(s)",
        "score_mod=lambda s, b, h, i, j: 2 * torch.tanh(s)",
    ),
    Variant("sink", "exp(s) / (exp(a_h) + sum exp(s))", "sink=sink"),
    Variant("softmax1", "exp(s) / (1 + sum exp(s))", "softmax='softmax1'"),
    Variant("sigmoid", "1 / (1 + exp(-s))", "softmax='sigmoid'"),
    Variant("dropout", "w / (1 - p) or 0", "dropout_p=0.1"),
    Variant("documents", "d_i = d_j", "mask_mod=masks.document(documents)"),
    Variant(
        "documents, by blocks",
        "d_i = d_j",
        "block_mask=block_mask(masks.document(documents), 1, 1, n, n)",
    ),
    Variant("prefix LM", "j <= i or j < n", "mask_mod=masks.prefix_lm(window)"),
    Variant(
        "Longformer", "abs(i - j) <= w or global", "mask_mod=masks.longformer(window // 2, some)"
    ),
    Variant(
        "dilated window",
        "i - j = 3 n, abs(n) <= w",
        "mask_mod=masks.dilated_window(window // 4, 3)",
    ),
    Variant(
        "StreamingLLM", "i - w <= j <= i or j < 4 <= i", "mask_mod=masks.sink_window(4, window)"
    ),
    Variant(
        "Sparse Transformer, strided",
        "j <= i, i - j < w or w divides i - j",
        "mask_mod=masks.sparse_strided(window // 2)",
    ),
    Variant(
        "Sparse Transformer, fixed",
        "j <= i, one block or its end",
        "mask_mod=masks.sparse_fixed(window // 2)",
    ),
    Variant("NATTEN", "j near i on a grid", "mask_mod=masks.neighborhood(grid, (3, 3))"),
    Variant(
        "BigBird",
        "near, global or drawn blocks",
        "mask_mod=masks.bigbird(n, block, global_blocks=1, random=1)",
    ),
    Variant(
        "BigBird, by blocks",
        "near, global or drawn blocks",
        "block_mask=block_mask(masks.bigbird(n, block, global_blocks=1, random=1), 1, 1, n, n)",
    ),
    Variant(
        "random blocks",
        "drawn blocks",
        "block_mask=block_mask(masks.random_blocks(n, block, 2), 1, 1, n, n, (block, block))",
    ),
    Variant(
        "selected blocks",
        "best 2 blocks by mean q and k",
        "block_mask=top_blocks(q, k, (block, block), 2)",
    ),
)


def main() -> None:
    """Time the variants, or draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", action="store_true", help="draw the weights instead")
    if parser.parse_args().pictures:
        draw(PICTURE)
        return
    rows = [measured(variant) for variant in VARIANTS]
    with replacing(RESULTS) as temporary:
        found = {"machine": describe().to_json(), "rows": rows}
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(variant: Variant) -> dict:
    """Median seconds of a forward and a backward, of plain attention and of ``variant``."""
    draw = torch.Generator().manual_seed(1)
    shape = BATCH, SEQLEN, HEADS, HEAD_DIM
    q, k, v, dout = (torch.randn(shape, generator=draw) for _ in range(4))
    keywords = {"plain": {}, "variant": variant.keywords(q, k)}
    calls = {name: partial(attention, q, k, v, **given) for name, given in keywords.items()}
    forward = interleaved(calls, PATIENCE)
    learned = [x for x in keywords["variant"].values() if getattr(x, "requires_grad", False)]
    inputs = [x.requires_grad_() for x in (q, k, v)]
    outs = {name: call() for name, call in calls.items()}
    backward = interleaved(
        {
            name: partial(torch.autograd.grad, out, wanted, dout, retain_graph=True)
            for (name, out), wanted in zip(outs.items(), (inputs, inputs + learned), strict=True)
        },
        PATIENCE,
    )
    return {"variant": variant.name, "forward": _ratio(forward), "backward": _ratio(backward)}


def _ratio(timings: dict[str, Timing]) -> dict[str, float]:
    seconds = {name: timing.median for name, timing in timings.items()}
    return {**seconds, "ratio": seconds["variant"] / seconds["plain"]}


def table(found: dict) -> Table:
    """The rows for people; times are over those of plain attention."""
    taken = {row["variant"]: row for row in found["rows"]}
    columns = [*words("variant", "score, weight or mask", "keywords of `attention(q, k, v, ...)`")]
    columns += numbers("forward", "backward")
    rows = [
        (
            variant.name,
            variant.formula,
            f"`{variant.call}`",
            *(_cost(taken.get(variant.name), d) for d in ("forward", "backward")),
        )
        for variant in VARIANTS
    ]
    return Table("", tuple(columns), rows)


def _cost(row: dict | None, direction: str) -> str:
    return "not timed" if row is None else f"{row[direction]['ratio']:.2f}"


def weights(variant: Variant, seqlen: int) -> torch.Tensor:
    """The weights (Sq, Sk) of head 0: what attention gives where row j of V is e_j."""
    draw = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, seqlen, HEADS, HEAD_DIM, generator=draw) * 1.2 for _ in range(2))
    v = torch.eye(seqlen)[None, :, None].expand(1, seqlen, HEADS, seqlen)
    return attention(q, k, v, **variant.keywords(q, k))[0, :, 0].detach()


def draw(path: Path) -> None:
    """Write a picture of every variant's weights to ``path``."""
    from matplotlib.figure import Figure

    shown = (Variant("plain", "s", ""), *VARIANTS)
    columns = 6
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, variant in zip(places, shown, strict=False):
        axes.imshow(weights(variant, SHOWN).sqrt(), cmap="Blues", vmin=0, interpolation="nearest")
        axes.set_title(variant.name, fontsize=9)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
    for axes in places[len(shown) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
