"""What is measured: self attention at the sizes that the list of cases names."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..cases import BENCH, Case

QUICK_SEQLEN = 512
MEMORY_SEQLENS = (2048, 4096, 8192)


@dataclass(frozen=True)
class Problem:
    """One measured problem: self attention of ``batch`` x ``heads`` over ``seqlen`` positions."""

    dtype: str
    head_dim: int
    seqlen: int
    causal: bool
    batch: int = 1
    heads: int = 8

    @property
    def name(self) -> str:
        """Readable key of the problem."""
        mask = "causal" if self.causal else "full"
        return f"{self.dtype} D={self.head_dim} S={self.seqlen} {mask}"

    def flops(self, direction: str) -> float:
        """4*B*H*S*S*D forward (half of it when causal), 2.5 times that backward."""
        forward = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        forward *= 0.5 if self.causal else 1.0
        return forward * (2.5 if direction == "backward" else 1.0)

    def naive_bytes(self) -> int:
        """Bytes of the four S x S arrays that naive attention holds in its backward."""
        size = torch.finfo(getattr(torch, self.dtype)).bits // 8
        return 4 * self.batch * self.heads * self.seqlen**2 * size

    @classmethod
    def of(cls, case: Case) -> Problem:
        """The problem of a listed case."""
        causal = bool(case.variant.get("causal", False))
        return cls(case.dtype, case.head_dim, case.seqlen_q, causal, case.batch, case.heads)


def listed_problems(quick: bool = False) -> list[Problem]:
    """Those of ``cases.BENCH``; ``quick`` keeps the short ones."""
    problems = [Problem.of(case) for case in BENCH]
    return [p for p in problems if p.seqlen <= QUICK_SEQLEN] if quick else problems


def memory_problems(seqlens: tuple[int, ...] = MEMORY_SEQLENS) -> list[Problem]:
    """The lengths at which memory is measured: twice the length should need twice the memory."""
    return [Problem("float32", 64, seqlen, causal=False) for seqlen in seqlens]
