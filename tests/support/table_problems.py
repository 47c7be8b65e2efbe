"""Attention whose scores read tensors that learn, its gradients by PyTorch, and the error rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error

B, H, HK, SQ, SK, D = 2, 4, 2, 70, 90, 16
FULL = (B, H, SQ, SK)


@dataclass(frozen=True)
class Learning:
    """shapes: of the tensors that learn. options(*tensors): keywords of ``attention`` and of the
    reference."""

    name: str
    shapes: tuple
    options: Callable
    dtype: torch.dtype = torch.float32
    of_tables: torch.dtype = torch.float32

    def __str__(self):
        return self.name

    def check(self, attention: Callable, **more) -> None:
        """Assert the rule for the gradients of ``attention`` by q, k, v and the tensors."""
        exact, plain, found = (
            self.gradients(*how)
            for how in (
                (attention_reference, torch.float64),
                (attention_reference, None),
                (partial(attention, **more), None),
            )
        )
        dtype = str(self.dtype).removeprefix("torch.")
        for name, got in found.items():
            allowed = allowed_error(name, dtype, exact[name], plain[name])
            assert largest_error(got, exact[name]) <= allowed, (self.name, name)

    def gradients(self, attention: Callable, dtype=None) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = {"q": (B, SQ, H, D), "k": (B, SK, HK, D), "v": (B, SK, HK, D), "o": (B, SQ, H, D)}
        draw = partial(torch.randn, generator=generator)
        q, k, v, dout = (draw(shape).to(self.dtype).to(dtype) for shape in shapes.values())
        # In (0.2, 1.2): scales, caps and slopes are not negative.
        tables = [
            (torch.rand(shape, generator=generator) + 0.2).to(self.of_tables).to(dtype)
            for shape in self.shapes
        ]
        leaves = [x.requires_grad_() for x in (q, k, v, *tables)]
        out = attention(*leaves[:3], **self.options(*leaves[3:]))
        out = out[0] if isinstance(out, tuple) else out
        names = ("dq", "dk", "dv", *(f"dtable{n}" for n in range(len(tables))))
        return dict(zip(names, torch.autograd.grad(out, leaves, dout), strict=True))


def bias(kept: str, **fields) -> Learning:
    """A bias with the dimensions ``kept`` of "bhqk", under a causal mask."""
    shape = tuple(n if letter in kept else 1 for letter, n in zip("bhqk", FULL, strict=True))
    return Learning(f"bias_{kept}", (shape,), lambda x: {"bias": x, "causal": True}, **fields)


def _t5(table, temperature):
    """A bias by clipped distance, whose pairs share elements, and a factor per head."""

    def score_mod(score, b, h, q_idx, k_idx):
        return score * temperature[h] + table[torch.clamp(q_idx - k_idx, -9, 9) + 9, h]

    return {"score_mod": score_mod}


def _swapped(table):
    """Two reads of one table, whose indices cross."""
    return {"score_mod": lambda s, b, h, q, k: s * table[b, h % 2] + table[h % 2, b] * table[1, 0]}


def _rows_and_products(rows, keys):
    return {
        "score_mod": lambda s, b, h, q, k: torch.tanh(s * rows[b, q]) + rows[b, q] * keys[k // 2],
        "window_size": (20, 8),
    }


BIASES = [bias("".join(x for x, bit in zip("bhqk", f"{n:04b}", strict=True) if bit == "1"))
          for n in range(16)]  # fmt: skip
OTHERS = [
    Learning("t5", ((19, H), (H,)), _t5),
    Learning("swapped", ((2, 2),), _swapped),
    Learning("rows_and_products", ((B, SQ), (SK // 2,)), _rows_and_products),
    Learning("alibi", ((H,),), lambda x: {"alibi_slopes": x, "causal": True}),
]
