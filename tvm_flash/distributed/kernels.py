"""The calls of a plan on the operators of packed sequences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from ..frontend import ragged_ops  # noqa: F401  defines the operators
from ..frontend.functional import options_of
from ..frontend.problem import problem_of
from ..problem.arguments import NUMBERS
from .positions import Functions
from .rectangles import Call


@dataclass(frozen=True)
class Kernels:
    """Attention of the rectangles of a call; what they have in common.

    functions: the score_mod and mask_mod, of positions in the whole sequence; or None.
    """

    softmax_scale: float
    softcap: float
    deterministic: bool
    functions: Functions | None

    def forward(self, call: Call, q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        """out (rows, H, Dv), lse (H, rows) of the rows of ``call.queries``.

        q (total_q, H, D), k (total_k, Hk, D) and v (total_k, Hk, Dv): of the ranks that have the
        queries and the keys. Rows that see nothing here are 0 and -inf.
        """
        rows, keys = slice(*call.queries), slice(*call.keys)
        given = self._given(call, q[rows], k[keys], v[keys])
        out, lse, _ = torch.ops.tvm_flash.attention_packed_forward(**given)
        return out, lse

    def backward(self, call: Call, q, k, v, out, dout, lse, dlse) -> tuple[torch.Tensor, ...]:
        """dq of the rows of ``call.queries``, dk and dv of those of ``call.keys``.

        out, lse and their gradients are those of all keys: P = exp(S - lse) is then the part of the
        whole softmax that lies in this call, and the gradients are parts of a sum.
        """
        rows, keys = slice(*call.queries), slice(*call.keys)
        given = self._given(call, q[rows], k[keys], v[keys])
        lse = lse[:, rows].contiguous()
        return torch.ops.tvm_flash.attention_packed_backward(
            **given,
            out=out[rows],
            dout=dout[rows],
            lse=lse,
            # What a kernel gives is of its call alone: merged sums have no second half.
            lse_low=torch.zeros_like(lse) if self._has_low else None,
            dlse=None if dlse is None else dlse[:, rows].contiguous(),
        )[:3]

    @property
    def _has_low(self) -> bool:
        return self.functions is not None and self.functions.captured.score_mod is not None

    def _given(self, call: Call, q, k, v) -> dict:
        """The arguments of both operators by name."""
        left, right = call.window
        window = (-1 if left is None else left, -1 if right is None else right)
        # The two alignments are one for squares, of which libraries hold the usual one.
        alignment = "bottom_right" if call.is_square else "top_left"
        features, _, numbers = options_of(
            False, window, self.softcap, self.softmax_scale, None, alignment
        )
        mods = None if self.functions is None else self.functions.of(call, q.device)
        (spec, _), tables = problem_of(q, k, v, (*features, "packed"), mods, None)
        return {
            "q": q, "k": k, "v": v, **_spans(call, q.device), "tables": list(tables), "spec": spec,
            "softmax_scale": self.softmax_scale, "max_seqlen_k": call.longest_k,
            "deterministic": self.deterministic,
            **dict(zip((a.name for a in NUMBERS[1:]), numbers, strict=True)),
        }  # fmt: skip


@lru_cache(maxsize=1024)
def _spans(call: Call, device: torch.device) -> dict[str, torch.Tensor]:
    """Where the sequences of a call lie, counted from its first row and its first key."""
    places = {}
    for axis, spans, (origin, _) in (
        ("q", [r.queries for r in call.rectangles], call.queries),
        ("k", [r.keys for r in call.rectangles], call.keys),
    ):
        numbers = torch.tensor(spans, dtype=torch.int32) - origin
        starts, ends = numbers.T.contiguous().to(device)
        places |= {f"starts_{axis}": starts, f"ends_{axis}": ends}
    return places
