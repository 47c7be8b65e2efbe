"""What is measured: one attention problem, its operations and the bytes that it must move."""

from __future__ import annotations

from dataclasses import dataclass

from ..cases import Case
from ..problem.dtype import DTYPES
from ..problem.spec import AttentionSpec

MEMORY_SEQLENS = (2048, 4096, 8192)


@dataclass(frozen=True)
class Problem:
    """One measured problem: ``batch`` x ``heads`` of attention over ``seqlen`` keys.

    kv_heads: None means ``heads``. seqlen_q: None means ``seqlen``. window: row i sees the keys
    i - window to i (with ``causal``); None is unbounded.
    """

    dtype: str
    head_dim: int
    seqlen: int
    causal: bool
    batch: int = 1
    heads: int = 8
    kv_heads: int | None = None
    seqlen_q: int | None = None
    window: int | None = None

    def __post_init__(self):
        if self.causal and self.queries != self.seqlen:
            raise ValueError("causal with seqlen_q != seqlen: libraries align it differently")
        if self.window is not None and not self.causal:
            raise ValueError(f"window={self.window} looks back: it needs causal=True")

    @property
    def queries(self) -> int:
        """Rows of a head."""
        return self.seqlen if self.seqlen_q is None else self.seqlen_q

    @property
    def key_heads(self) -> int:
        """Heads of K and V."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def group(self) -> int:
        """Heads that share a key head."""
        return self.heads // self.key_heads

    @property
    def spec(self) -> AttentionSpec:
        """What a kernel for it is compiled for."""
        window = self.window is not None
        return AttentionSpec(
            dtype=self.dtype, head_dim=self.head_dim, causal=self.causal, window_left=window
        )

    @property
    def drawn_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How q and out, and how k and v are drawn; contenders lay them out as they like."""
        return (
            (self.batch, self.queries, self.heads, self.head_dim),
            (self.batch, self.seqlen, self.key_heads, self.head_dim),
        )

    @property
    def mask(self) -> str:
        """Which keys a row sees, in a word or two."""
        if self.window is not None:
            return f"window {self.window}"
        return "causal" if self.causal else "full"

    @property
    def name(self) -> str:
        """Readable key of the problem; sizes that most problems share are left out."""
        parts = [self.dtype, f"D={self.head_dim}", f"S={self.seqlen}", self.mask]
        if self.queries != self.seqlen:
            parts.append(f"Sq={self.queries}")
        if (self.batch, self.heads, self.key_heads) != (1, 8, 8):
            heads = f"H={self.heads}" + f"/{self.key_heads}" * (self.key_heads != self.heads)
            parts += [f"B={self.batch}", heads]
        return " ".join(parts)

    def flops(self, direction: str) -> float:
        """4*D a visible pair of query and key, 2.5 times that backward; causal is half of all."""
        pairs = float(self.queries * self.seqlen)
        if self.window is not None:
            width = min(self.window + 1, self.seqlen)
            pairs = width * self.seqlen - width * (width - 1) / 2
        elif self.causal:
            pairs /= 2
        forward = 4.0 * self.batch * self.heads * pairs * self.head_dim
        return forward * (2.5 if direction == "backward" else 1.0)

    def least_bytes(self, direction: str) -> int:
        """Every input once in, every output once out: q, k, v, out; backward those, dout and the
        gradients of q, k and v."""
        rows, keys = self._q_bytes(), self._k_bytes()
        return 4 * rows + 4 * keys if direction == "backward" else 2 * rows + 2 * keys

    def output_bytes(self, direction: str) -> int:
        """What a call leaves behind: out and the float32 lse of every row; backward the gradients
        besides."""
        lse = 4 * self.batch * self.heads * self.queries
        forward = self._q_bytes() + lse
        gradients = self._q_bytes() + 2 * self._k_bytes()
        return forward + (gradients if direction == "backward" else 0)

    def naive_bytes(self) -> int:
        """Bytes of the four Sq x S arrays that naive attention holds in its backward."""
        return 4 * self.batch * self.heads * self.queries * self.seqlen * self._item_bytes()

    def to_json(self) -> dict:
        """The fields, with their meaning spelled out."""
        return {
            "dtype": self.dtype,
            "head_dim": self.head_dim,
            "seqlen_q": self.queries,
            "seqlen_k": self.seqlen,
            "causal": self.causal,
            "window": self.window,
            "batch": self.batch,
            "heads": self.heads,
            "kv_heads": self.key_heads,
        }

    @classmethod
    def of(cls, case: Case) -> Problem:
        """The sizes of a listed case; of its variant a causal mask on as many rows as keys."""
        c, kv_heads = case, None if case.kv_heads == case.heads else case.kv_heads
        queries = None if c.seqlen_q == c.seqlen_k else c.seqlen_q
        causal = bool(c.variant.get("causal", False)) and queries is None
        sizes = (c.batch, c.heads, kv_heads, queries)
        return cls(c.dtype, c.head_dim, c.seqlen_k, causal, *sizes)

    def _q_bytes(self) -> int:
        return self.batch * self.heads * self.queries * self.head_dim * self._item_bytes()

    def _k_bytes(self) -> int:
        return self.batch * self.key_heads * self.seqlen * self.head_dim * self._item_bytes()

    def _item_bytes(self) -> int:
        return DTYPES[self.dtype].bytes


def memory_problems(seqlens: tuple[int, ...] = MEMORY_SEQLENS) -> list[Problem]:
    """The lengths at which memory is measured: twice the length should need twice the memory."""
    return [Problem("float32", 64, seqlen, causal=False) for seqlen in seqlens]
