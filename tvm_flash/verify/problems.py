"""The problems that every kernel is run on: lengths around its own tile, views, hard values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..cases import Case
from ..problem.numbers import usual_numbers
from ..problem.spec import AttentionSpec


@dataclass(frozen=True)
class Problem:
    """Run-time sizes and what the inputs are like.

    view, logits_scale: as in ``cases.Case``. softmax_scale, window_size, softcap: for specs that
    have such; None are the usual ones (``problem.numbers``). integers: captured integer tables hold
    numbers below it.
    """

    name: str
    seqlen_q: int
    seqlen_k: int
    batch: int = 1
    heads: int = 2
    kv_heads: int = 1
    view: str = "bshd"
    logits_scale: float = 1.0
    softmax_scale: float | None = None
    window_size: tuple[int, int] | None = None
    softcap: float | None = None
    integers: int = 3

    @classmethod
    def of_sizes(cls, name: str, sizes: Sequence[int]) -> Problem:
        """A problem with B, H, Hk, Sq, Sk = ``sizes``."""
        batch, heads, kv_heads, seqlen_q, seqlen_k = sizes
        return cls(name, seqlen_q, seqlen_k, batch, heads, kv_heads)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, H, Hk, Sq, Sk."""
        return self.batch, self.heads, self.kv_heads, self.seqlen_q, self.seqlen_k

    def numbers(self, head_dim: int) -> dict[str, Any]:
        """The numbers of a call by name, also those that a spec has not."""
        known = {"softmax_scale": self.softmax_scale, "softcap": self.softcap}
        if self.window_size is not None:
            known |= dict(zip(("window_left", "window_right"), self.window_size, strict=True))
        given = {name: number for name, number in known.items() if number is not None}
        return usual_numbers(head_dim, self.seqlen_k) | given

    def case(self, spec: AttentionSpec) -> Case:
        """Inputs of this problem for ``spec``, whose variants are left to ``question.ask``."""
        dims = (spec.dtype, spec.head_dim, spec.head_dim_v)
        known = {"softmax": spec.softmax}
        if spec.dropout:
            known["variant"] = {"dropout_p": self.numbers(spec.head_dim)["dropout"]}
        return Case(self.name, *dims, *self.sizes, self.logits_scale, self.view, **known)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def problems(block_q: int, block_k: int, quick: bool = False) -> list[Problem]:
    """Problems for a kernel whose tile is ``block_q`` x ``block_k``; ``quick``: the telling one.

    Rows without a key are those of ``tall`` under a causal mask or a window aligned at the end.
    """
    below_q, below_k = max(block_q // 2 + 1, 1), max(block_k // 2 - 1, 1)
    several_q, several_k = 2 * block_q + 5, 3 * block_k + 7
    several = Problem(
        "several_tiles", several_q, several_k, heads=4, kv_heads=2, view="bhsd", softmax_scale=0.2,
        window_size=(block_k + 5, block_q // 2), softcap=2.0,
    )  # fmt: skip
    if quick:
        return [several]
    return [
        Problem(
            "below_a_tile", below_q, below_k, batch=2, heads=1, window_size=(0, 3), softcap=0.5
        ),
        Problem("one_tile", block_q, block_k, heads=3, integers=block_k, softcap=3.0),
        Problem(
            "above_a_tile", block_q + 1, block_k + 1, kv_heads=2, view="packed",
            window_size=(2**30, 0),
        ),
        several,
        Problem("one_row", 1, 4 * block_k - 3, batch=2, heads=4, integers=4 * block_k),
        Problem("tall", several_q, below_k, batch=2, view="every_other", window_size=(3, 1)),
        Problem(
            "large_logits", block_q - block_q // 8, block_k + 9, logits_scale=24.0, softcap=15.0
        ),
    ]  # fmt: skip
