"""torch's FlexAttention as a contender: compiled for each problem, by Inductor into Triton."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from .contender import Attention
from .problems import Problem


def compiled_flex(problem: Problem, rows: int, mask_mod: Callable | None, device: str) -> Attention:
    """flex_attention compiled for ``rows`` rows of ``problem``, a mask_mod on as many keys."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = mask_mod and create_block_mask(mask_mod, None, None, rows, rows, device=device)
    # Its cache holds a few shapes; beyond them it would run flex_attention unfused.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return partial(compiled, block_mask=mask, enable_gqa=problem.group > 1)
