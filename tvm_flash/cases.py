"""The one list of attention problems that tests, builds and benchmarks walk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch

from .problem.block_maker import block_mask
from .problem.dtype import DTYPES
from .problem.numbers import NO_WINDOW, kinds_of, numbers_by_name
from .problem.spec import AttentionSpec
from .score import masks
from .score.bias import BIAS_AXES
from .score.mask_examples import EXAMPLES
from .score.variants import bias

VIEWS = ("bshd", "bhsd", "packed", "every_other")


@dataclass(frozen=True)
class Case:
    """One problem: what ``spec`` holds, run-time sizes, and what the inputs are like.

    variant: other keywords of ``attention``, the numbers of its call among them.

    view: memory of q, k, v: "bshd" contiguous; "bhsd" stored heads first and transposed; "packed"
    slices of wider rows, as from one projection; "every_other" position of a twice as long tensor.
    logits_scale multiplies q: 24 makes softmax rows nearly one-hot, where overflow would show.
    score_mod, mask_mod: keys of SCORE_MODS and MASK_MODS. block: (queries, keys) of the blocks of a
    block mask, which is made of the mask_mod. bias: letters of the dimensions, of "bhqk", of a bias
    in place of a score_mod.
    """

    name: str
    dtype: str = "float32"
    head_dim: int = 64
    head_dim_v: int | None = None
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    seqlen_q: int = 70
    seqlen_k: int = 90
    logits_scale: float = 1.0
    view: str = "bshd"
    alibi: bool = False
    score_mod: str | None = None
    mask_mod: str | None = None
    softmax: str = "softmax"
    block: tuple[int, int] | None = None
    bias: str = ""
    variant: dict[str, Any] = field(default_factory=dict, hash=False)

    @cached_property
    def spec(self) -> AttentionSpec:
        """The compile-time part."""
        mods = self.functions(torch.Generator().manual_seed(0))
        if self.bias:
            table = torch.ones([1] * len(self.bias), dtype=getattr(torch, self.dtype))
            mods["score_mod"] = bias(self.bias, table)
        kinds = kinds_of(self.variant.get("causal", False), *self._numbers)
        known = {"alignment": self.variant["alignment"]} if "alignment" in self.variant else {}
        spec, _ = AttentionSpec.capture(
            dtype=self.dtype,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            alibi=self.alibi,
            softmax=self.softmax,
            block_mask=self.block,
            **kinds,
            **known,
            **mods,
        )
        return spec

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """The numbers of its call, by their names among a kernel's arguments."""
        scale = self.variant.get("softmax_scale", self.head_dim**-0.5)
        return numbers_by_name(scale, *self._numbers)

    @property
    def _numbers(self) -> tuple:
        """Window, softcap and the probability of dropout."""
        given = {"window_size": NO_WINDOW, "softcap": 0.0, "dropout_p": 0.0} | self.variant
        return given["window_size"], given["softcap"], given["dropout_p"]

    def functions(self, generator: torch.Generator) -> dict[str, Callable | None]:
        """score_mod and mask_mod, with captured tables from ``generator``."""
        score_mod = SCORE_MODS[self.score_mod](self, generator) if self.score_mod else None
        mask_mod = MASK_MODS[self.mask_mod](self, generator) if self.mask_mod else None
        return {"score_mod": score_mod, "mask_mod": mask_mod}


class Inputs(NamedTuple):
    """Tensors of a case, and ``variant``: keywords of ``attention`` and ``attention_reference``."""

    q: torch.Tensor  # (B, Sq, H, D)
    k: torch.Tensor  # (B, Sk, Hk, D)
    v: torch.Tensor  # (B, Sk, Hk, Dv)
    dout: torch.Tensor  # (B, Sq, H, Dv)
    dlse: torch.Tensor  # (B, H, Sq) float32
    variant: dict[str, Any]


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Normally distributed inputs of ``case``, equal for equal seeds; none requires grad."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    c, dim_v = case, case.head_dim_v or case.head_dim
    q, k, v, dout = (
        _random(generator, shape, dtype, case.view)
        for shape in (
            (c.batch, c.seqlen_q, c.heads, c.head_dim),
            (c.batch, c.seqlen_k, c.kv_heads, c.head_dim),
            (c.batch, c.seqlen_k, c.kv_heads, dim_v),
            (c.batch, c.seqlen_q, c.heads, dim_v),
        )
    )
    q.mul_(case.logits_scale)
    dlse = torch.randn(c.batch, c.heads, c.seqlen_q, generator=generator)
    slopes = torch.rand(c.batch, c.heads, generator=generator) * 0.3 if case.alibi else None
    variant = {**case.variant, **case.functions(generator), "alibi_slopes": slopes}
    if case.softmax == "sink":
        variant["sink"] = torch.randn(case.heads, generator=generator)
    elif case.softmax != "softmax":
        variant["softmax"] = case.softmax
    if case.block:
        sizes = (case.batch, case.heads, case.seqlen_q, case.seqlen_k)
        variant["block_mask"] = block_mask(variant.pop("mask_mod"), *sizes, case.block)
    if case.bias:
        sizes = (case.batch, case.heads, case.seqlen_q, case.seqlen_k)
        kept = [n if at in case.bias else 1 for n, at in zip(sizes, BIAS_AXES, strict=True)]
        variant["bias"] = torch.randn(kept, generator=generator).to(dtype)
    if case.variant.get("dropout_p"):
        variant["rng"] = torch.randint(-(2**62), 2**62, (2,), generator=generator)
    return Inputs(q, k, v, dout, dlse, variant)


def _random(generator: torch.Generator, shape, dtype: torch.dtype, view: str) -> torch.Tensor:
    b, s, h, d = shape
    if view == "bhsd":
        return torch.randn(b, h, s, d, generator=generator).to(dtype).transpose(1, 2)
    if view == "packed":
        return torch.randn(b, s, h, 3 * d, generator=generator).to(dtype)[..., d : 2 * d]
    if view == "every_other":
        return torch.randn(b, 2 * s, h, d, generator=generator).to(dtype)[:, ::2]
    return torch.randn(shape, generator=generator).to(dtype)


def relative_bias(case: Case, generator: torch.Generator) -> Callable:
    """A learned bias per head and clipped distance (T5)."""
    reach = 16
    table = torch.randn(case.heads, 2 * reach + 1, generator=generator)

    def score_mod(score, b, h, q_idx, k_idx):
        return score + table[h, torch.clamp(q_idx - k_idx, -reach, reach) + reach]

    return score_mod


def tanh_gate(case: Case, generator: torch.Generator) -> Callable:
    """A smooth nonlinear function of the score, another one below the diagonal."""

    def score_mod(score, b, h, q_idx, k_idx):
        return torch.where(q_idx >= k_idx, 2 * torch.tanh(score) + 0.1 * score, score * 0.5)

    return score_mod


def scale_table(case: Case, generator: torch.Generator) -> Callable:
    """A temperature per batch entry and head, and a weight per key."""
    temperature = torch.rand(case.batch, case.heads, generator=generator) + 0.5
    weight = torch.randn(max(case.seqlen_k, 1), generator=generator)

    def score_mod(score, b, h, q_idx, k_idx):
        return score * temperature[b, h] + weight[k_idx]

    return score_mod


def document(case: Case, generator: torch.Generator) -> Callable:
    """Positions see those of their own document; documents are given by captured tables."""
    shape = (case.batch, max(case.seqlen_q, case.seqlen_k, 1))
    of_position = torch.randint(0, 3, shape, generator=generator).sort(dim=1).values

    return masks.document(of_position)


def checkerboard(case: Case, generator: torch.Generator) -> Callable:
    """Every other key, another half in every other row."""

    def mask_mod(b, h, q_idx, k_idx):
        return (q_idx + k_idx) % 2 == 0

    return mask_mod


def some_rows(case: Case, generator: torch.Generator) -> Callable:
    """A table of visible pairs in which whole rows see nothing."""
    shape = (max(case.seqlen_q, 1), max(case.seqlen_k, 1))
    visible = torch.rand(shape, generator=generator) < 0.4
    visible[::5] = False

    def mask_mod(b, h, q_idx, k_idx):
        return visible[q_idx, k_idx]

    return mask_mod


def staircase(case: Case, generator: torch.Generator) -> Callable:
    """Each head sees 70 keys further than the one before, but not the first query."""

    def mask_mod(b, h, q_idx, k_idx):
        return (k_idx < q_idx + 70 * h) & (q_idx > 0)

    return mask_mod


SCORE_MODS = {f.__name__: f for f in (relative_bias, tanh_gate, scale_table)}


def _named_mask(name: str) -> Callable:
    """A mask that papers name, for the longer of both lengths."""
    return lambda case, generator: EXAMPLES[name](max(case.seqlen_q, case.seqlen_k, 1))


# The named masks beside those of one case: "document" has another table for each entry.
MASK_MODS = {
    **{name: _named_mask(name) for name in EXAMPLES},
    **{f.__name__: f for f in (document, checkerboard, some_rows, staircase)},
}

# Pairs of lengths on both sides of tile sizes, of each other, and of one.
_LENGTHS = [
    (1, 1), (1, 37), (37, 1), (2, 300), (16, 16), (63, 65), (64, 64), (65, 63), (97, 128),
    (113, 203), (203, 113), (129, 257),
]  # fmt: skip
_DIMS = {
    "float32": (8, 16, 32, 40, 59, 80, 96, 111, 128, 192, 256, 512),
    "bfloat16": (8, 40, 59, 111, 128, 256),
    "float16": (16, 59, 80, 128),
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "window": {"variant": {"window_size": (20, 5)}},
    "window_left": {"variant": {"window_size": (11, -1)}},
    "window_right": {"variant": {"window_size": (-1, 7)}},
    "window_causal": {"variant": {"window_size": (16, 0)}},
    "window_empty_rows": {"variant": {"window_size": (3, 3)}, "seqlen_q": 90, "seqlen_k": 40},
    "softcap": {"variant": {"softcap": 2.0}},
    "softcap_causal": {"variant": {"softcap": 15.0, "causal": True}, "logits_scale": 24.0},
    "alibi": {"alibi": True},
    "alibi_causal": {"alibi": True, "variant": {"causal": True}},
    "top_left": {"variant": {"causal": True, "alignment": "top_left"}},
    # Whole tiles of keys that no query sees.
    "top_left_wide": {
        "variant": {"causal": True, "alignment": "top_left"}, "seqlen_q": 1, "seqlen_k": 200,
    },
    "top_left_tall": {
        "variant": {"causal": True, "alignment": "top_left"}, "seqlen_q": 90, "seqlen_k": 40,
    },
    "sink": {"softmax": "sink"},
    "sink_causal": {"softmax": "sink", "variant": {"causal": True}, "seqlen_q": 90, "seqlen_k": 40},
    "softmax1": {"softmax": "softmax1"},
    "sigmoid": {"softmax": "sigmoid", "variant": {"causal": True}},
    "sigmoid_score_mod": {"softmax": "sigmoid", "score_mod": "relative_bias"},
    "dropout": {"variant": {"dropout_p": 0.3}},
    "dropout_causal": {"variant": {"dropout_p": 0.17, "causal": True}, "heads": 4},
    "everything": {
        "variant": {"causal": True, "window_size": (40, 0), "softcap": 5.0, "dropout_p": 0.5},
        "alibi": True,
        "softmax": "sink", "score_mod": "relative_bias", "mask_mod": "document", "heads": 4,
    },
    "bias": {"bias": "bhqk", "variant": {"causal": True}},
    "bias_of_heads": {"bias": "hk", "kv_heads": 1},
    "bias_of_keys": {"bias": "bk", "variant": {"dropout_p": 0.3}},
    **{name: {"score_mod": name} for name in SCORE_MODS},
    **{name: {"mask_mod": name, "batch": 1} for name in EXAMPLES},
    **{name: {"mask_mod": name} for name in ("document", "checkerboard", "some_rows")},
    "blocks": {
        "mask_mod": "staircase", "block": (64, 64), "batch": 1, "seqlen_q": 130, "seqlen_k": 190,
    },
    "blocks_causal": {
        "mask_mod": "document", "block": (64, 128), "kv_heads": 1, "alibi": True,
        "seqlen_q": 130, "seqlen_k": 150, "variant": {"causal": True},
    },
    "mods_causal": {
        "score_mod": "scale_table", "mask_mod": "checkerboard", "variant": {"causal": True},
    },
}  # fmt: skip


def _correctness() -> Iterator[Case]:
    causal = {"variant": {"causal": True}}
    for sq, sk in _LENGTHS:
        for mask, fields in (("full", {}), ("causal", causal)):
            yield Case(f"lengths_{sq}x{sk}_{mask}", seqlen_q=sq, seqlen_k=sk, batch=1, **fields)
    for sq, sk in ((0, 5), (5, 0), (0, 0)):
        yield Case(f"lengths_{sq}x{sk}", seqlen_q=sq, seqlen_k=sk)
    yield Case("batch_0", batch=0)
    for dtype, dims in _DIMS.items():
        for dim in dims:
            yield Case(f"{DTYPES[dtype].short}_dim_{dim}", dtype, dim, batch=1, **causal)
    for dtype, dim, dim_v in (("float32", 40, 24), ("float32", 24, 80), ("bfloat16", 64, 128)):
        yield Case(f"{DTYPES[dtype].short}_dims_{dim}_{dim_v}", dtype, dim, dim_v, **causal)
    for name, fields in _VARIANTS.items():
        yield Case(name, **fields)
    for dtype in ("bfloat16", "float16"):
        for name in (
            "window_causal",
            "softcap",
            "alibi_causal",
            "relative_bias",
            "document",
            "sink",
            "sigmoid",
            "dropout",
        ):
            yield Case(f"{DTYPES[dtype].short}_{name}", dtype, **_VARIANTS[name])
    for dtype in _DIMS:
        yield Case(f"{DTYPES[dtype].short}_full", dtype, seqlen_q=113, seqlen_k=203)
        yield Case(f"{DTYPES[dtype].short}_large_logits", dtype, logits_scale=24.0, **causal)
        yield Case(f"{DTYPES[dtype].short}_gqa", dtype, heads=6, kv_heads=2, **causal)
    yield Case("mqa", heads=5, kv_heads=1)
    for view in VIEWS[1:]:
        yield Case(f"view_{view}", view=view, heads=4, **causal)
        yield Case(f"bf16_view_{view}", "bfloat16", view=view, kv_heads=1)


def _bench() -> Iterator[Case]:
    for dtype in ("float32", "bfloat16"):
        for dim in (64, 128):
            for seqlen in (512, 2048, 8192):
                for causal in (False, True):
                    yield Case(
                        f"{DTYPES[dtype].short}_d{dim}_s{seqlen}" + "_causal" * causal,
                        dtype, dim, batch=1, heads=8, kv_heads=8,
                        seqlen_q=seqlen, seqlen_k=seqlen, variant={"causal": causal},
                    )  # fmt: skip


CORRECTNESS = tuple(_correctness())
BENCH = tuple(_bench())
CASES = CORRECTNESS + BENCH
