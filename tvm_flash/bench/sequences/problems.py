"""Problems of sequences of any lengths: packed, or against a cache that may grow in the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...problem.spec import AttentionSpec
from ..problems import Problem


@dataclass(frozen=True)
class SequencesProblem(Problem):
    """``lengths``: the keys of each sequence; ``listed``: a name for them. Make it by ``of``."""

    lengths: tuple[int, ...] = ()
    listed: str = ""

    @classmethod
    def of(cls, lengths: Sequence[int], listed: str, dtype: str, head_dim: int, **fields):
        """The problem of sequences of ``lengths``; fields: the others, by their names."""
        known = {"dtype": dtype, "head_dim": head_dim, "causal": False, "listed": listed}
        sizes = {"seqlen": max(lengths), "batch": len(lengths), "lengths": tuple(lengths)}
        return cls(**{**known, **sizes, **fields})

    @property
    def parts(self) -> tuple[Problem, ...]:
        """Each sequence as a dense problem."""
        sizes = (self.heads, self.kv_heads, self.seqlen_q)
        return tuple(
            Problem(self.dtype, self.head_dim, n, self.causal, 1, *sizes) for n in self.lengths
        )

    @property
    def total(self) -> int:
        """Keys of all sequences together."""
        return sum(self.lengths)

    @property
    def name(self) -> str:
        rows = f"{self.batch} x {self.seqlen}" if len(set(self.lengths)) == 1 else self.listed
        parts = [self.dtype, f"D={self.head_dim}", rows, self.mask]
        if self.queries != self.seqlen:
            parts.append(f"Sq={self.queries}")
        if self.key_heads != self.heads:
            parts.append(f"H={self.heads}/{self.key_heads}")
        return " ".join(parts)

    def flops(self, direction: str) -> float:
        return sum(part.flops(direction) for part in self.parts)

    def least_bytes(self, direction: str) -> int:
        return sum(part.least_bytes(direction) for part in self.parts)

    def output_bytes(self, direction: str) -> int:
        return sum(part.output_bytes(direction) for part in self.parts)

    def to_json(self) -> dict:
        """As of a dense problem of the longest sequence, and what the lengths are called."""
        return {**super().to_json(), "lengths": self.listed, "total_k": self.total}


class PackedProblem(SequencesProblem):
    """Sequences one behind the other in (total, H, D), as many queries as keys."""

    @property
    def spec(self) -> AttentionSpec:
        return replace(super().spec, sequences="packed")

    @property
    def drawn_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (
            (self.total, self.heads, self.head_dim),
            (self.total, self.key_heads, self.head_dim),
        )

    @property
    def padding(self) -> float:
        """Operations of the batch padded to its longest sequence, over those of the sequences."""
        dense = replace(self.parts[0], seqlen=self.seqlen, batch=self.batch)
        return dense.flops("forward") / self.flops("forward")


@dataclass(frozen=True)
class CachedProblem(SequencesProblem):
    """Equally many queries of each sequence against its keys, which lie in pages.

    past: positions that come before ``lengths`` in each sequence.
    """

    page_size: int = 16
    past: int = 0

    @property
    def spec(self) -> AttentionSpec:
        return replace(super().spec, sequences="paged")

    @property
    def drawn_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        queries = (self.batch, self.queries, self.heads, self.head_dim)
        return queries, (self.total, self.key_heads, self.head_dim)

    @property
    def name(self) -> str:
        return f"{super().name} page={self.page_size}"

    @property
    def page_counts(self) -> list[int]:
        """How many pages each sequence has."""
        return [-(-(self.past + n) // self.page_size) for n in self.lengths]

    def page_table(self) -> torch.Tensor:
        """(B, most) int32: the pages of each sequence, in an order as of a cache long in use."""
        counts = self.page_counts
        generator = torch.Generator().manual_seed(0)
        pages = torch.randperm(sum(counts), generator=generator, dtype=torch.int32).split(counts)
        return torch.nn.utils.rnn.pad_sequence(list(pages), batch_first=True)

    def to_json(self) -> dict:
        return {**super().to_json(), "page_size": self.page_size}


@dataclass(frozen=True)
class AppendedProblem(CachedProblem):
    """``lengths`` new keys of each sequence, equally many, are rotated and appended to its pages.

    One query of a sequence sees its last key alone: what is measured is the appending.
    """

    seqlen_q: int | None = 1
    past: int = 100  # the new keys begin and end within pages

    @property
    def spec(self) -> AttentionSpec:
        causal = {"causal": True, "window_left": True}
        return AttentionSpec(dtype=self.dtype, head_dim=self.head_dim, sequences="paged", **causal)

    @property
    def mask(self) -> str:
        return "appended"

    @property
    def drawn_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        rows = (self.batch, 1, self.heads, self.head_dim)
        return rows, (self.batch, self.seqlen, self.key_heads, self.head_dim)

    def flops(self, direction: str) -> float:
        """Two products and a sum for each element of a rotated key."""
        return 3.0 * self.total * self.key_heads * self.head_dim

    def least_bytes(self, direction: str) -> int:
        """New keys and values in, and out into the cache."""
        return 4 * self.total * self.key_heads * self.head_dim * self.spec.element.bytes


class StepProblem(CachedProblem):
    """A step of a server: the first sequence is a prompt, of the others the last query is there."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Queries of each sequence."""
        return self.lengths[0], *[1] * (self.batch - 1)

    @property
    def parts(self) -> tuple[Problem, ...]:
        prompt, *others = super().parts
        return prompt, *(replace(one, causal=False, seqlen_q=1) for one in others)

    @property
    def mask(self) -> str:
        return "step"

    @property
    def drawn_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        _, keys = super().drawn_shapes
        return (sum(self.rows), self.heads, self.head_dim), keys
