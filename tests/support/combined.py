"""Attention of several features at once, against float64; small lists that pair them all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

import torch
from block_masks import random_mask
from pairwise import cover

from tvm_flash import attention
from tvm_flash.reference import attention_reference
from tvm_flash.verify.question import DRAWS
from tvm_flash.verify.rule import deviations, largest_error

B, H, SQ, SK, D = 2, 2, 70, 90, 16
BLOCK = (64, 64)
RNG = torch.tensor([5, 7])
# Queries and keys of each entry of packed sequences; dense ones have SQ and SK.
LENGTHS = ((33, SK), (SQ, 17))
# What learns beside q, k and v: a bias with the dimensions of these letters, or a factor per head.
LEARNED = ("", "bhqk", "bk", "head")


@dataclass(frozen=True)
class Combined:
    """learned: of ``LEARNED``. packed: entries of ``LENGTHS`` one behind the other."""

    dropout: bool = False
    learned: str = ""
    blocks: bool = False
    softmax: str = "softmax"
    kv_heads: int = H
    causal: bool = False
    packed: bool = False
    dtype: str = "float32"
    deterministic: bool = False
    seed: int = 0

    def __str__(self):
        named = {name: getattr(self, name) for name in ("dropout", "blocks", "causal", "packed")}
        ordered = "deterministic" * self.deterministic
        parts = [self.dtype, *(name for name, has in named.items() if has), ordered, self.learned]
        return "-".join(part for part in (*parts, self.softmax, f"{self.kv_heads}heads") if part)

    def check(self) -> None:
        """Assert the rule for out and the gradients of all that learns."""
        found = self._results(self._packed if self.packed else self._dense)
        exact, plain = self._answers
        if self.learned == "head":
            # Two sums over all pairs: whether PyTorch rounds them well is chance.
            others = (replace(self, seed=seed)._answers for seed in range(DRAWS))
            errors = [largest_error(*(x["dtable"] for x in other)) for other in others]
            plain["dtable"] = exact["dtable"] + max(errors)
        for deviation in deviations(self.dtype, found, exact, plain):
            assert deviation.ok, str(deviation)

    @property
    def _answers(self) -> tuple[dict, dict]:
        """The results of torch in float64, and in the dtype of the problem."""
        exact = self._results(attention_reference, torch.float64)
        return exact, self._results(attention_reference)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(self.seed))
        keys = (B, SK, self.kv_heads, D)
        shapes = {"q": (B, SQ, H, D), "k": keys, "v": keys, "out": (B, SQ, H, D)}
        drawn = {name: draw(shape).to(getattr(torch, self.dtype)) for name, shape in shapes.items()}
        if self.learned:
            sizes = dict(zip("bhqk", (B, H, SQ, SK), strict=True))
            shape = [n if letter in self.learned else 1 for letter, n in sizes.items()]
            drawn["dtable"] = draw(H) if self.learned == "head" else draw(shape)
        if self.softmax == "sink":
            drawn["sink"] = draw(H)
        return drawn

    def _results(self, call, dtype=None) -> dict[str, torch.Tensor]:
        given = {name: x.to(dtype) for name, x in self._tensors.items()}
        dout = given.pop("out")
        if self.packed:
            dout = torch.where(self._within(0)[..., None, None], dout, 0)
        leaves = {name: x.requires_grad_() for name, x in given.items()}
        out = call(*(leaves[x] for x in "qkv"), **self._options(leaves))
        out = out[0] if isinstance(out, tuple) else out
        gradients = torch.autograd.grad(out, list(leaves.values()), dout)
        if self.packed:
            out = torch.where(self._within(0)[..., None, None], out, 0)
        return {"out": out.detach()} | {
            f"d{name}".replace("dd", "d"): x for name, x in zip(leaves, gradients, strict=True)
        }

    def _options(self, leaves) -> dict:
        """Keywords of ``attention`` and of the reference."""
        options = {"causal": self.causal}
        if self.dropout:
            options |= {"dropout_p": 0.3, "rng": RNG}
        if self.blocks:
            options["block_mask"] = random_mask(SQ, SK, (B, H), BLOCK, seed=3)
        if self.learned == "head":
            options["score_mod"] = lambda s, b, h, q_idx, k_idx: s * leaves["dtable"][h]
        elif self.learned:
            options["bias"] = leaves["dtable"]
        if self.softmax == "sink":
            options["sink"] = leaves["sink"]
        else:
            options["softmax"] = self.softmax
        if self.packed:
            keys = torch.tensor([keys for _, keys in LENGTHS])
            options["mask_mod"] = lambda b, h, q_idx, k_idx: k_idx < keys[b]
        return options

    def _dense(self, *qkv, **options):
        return attention(*qkv, deterministic=self.deterministic, **options)

    def _packed(self, q, k, v, mask_mod, **options):
        """Entries packed in front of the call, and out of it back in rows of equal length."""
        queries, keys = (self._within(n) for n in (0, 1))
        ends = (torch.tensor([0, *n]).cumsum(0).int() for n in zip(*LENGTHS, strict=True))
        spans = dict(zip(("cu_seqlens_q", "cu_seqlens_k"), ends, strict=True))
        longest = {"max_seqlen_q": SQ, "max_seqlen_k": SK}
        out = self._dense(q[queries], k[keys], v[keys], **spans, **longest, **options)
        return torch.zeros_like(q).masked_scatter(queries[..., None, None], out)

    def _within(self, which: int) -> torch.Tensor:
        """Whether a row (B, SQ) of queries (0) or (B, SK) of keys (1) is one of its entry."""
        lengths = torch.tensor([entry[which] for entry in LENGTHS])
        return torch.arange((SQ, SK)[which]) < lengths[:, None]


def pairs(dtypes: tuple[str, ...], **fixed) -> list[Combined]:
    """Few combinations of these dtypes in which every pair of features meets."""
    axes = {
        "dropout": (True, False), "learned": LEARNED[::-1], "blocks": (True, False),
        "softmax": ("sink", "softmax", "sigmoid"), "kv_heads": (1, H), "causal": (True, False),
        "packed": (False, True), "dtype": dtypes, "deterministic": (False, True),
    }  # fmt: skip
    points = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
    # Packed sequences have no block masks; their last query is not that of the padded reference.
    points = [p for p in points if not (p["packed"] and (p["blocks"] or p["causal"]))]
    return [Combined(**point, **fixed) for point in cover(points, dict)]
