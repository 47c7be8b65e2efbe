"""A pairwise cover of the shared list of cases: what decides which code of a kernel one reaches."""

import pytest
from pairwise import cover


def factors(case):
    """Values of a case by name, pairs of which few cases hold."""
    variant = case.variant
    return {
        "dtype": case.dtype,
        "width": -(-max(case.head_dim, case.head_dim_v or 0) // 32),
        "rows of whole chunks": case.head_dim % 8 == 0,
        "widths": case.head_dim_v is None,
        "causal": (variant.get("causal"), variant.get("alignment")),
        "window": tuple(min(side, 1) for side in variant.get("window_size", (-1, -1))),
        "score": ("softcap" in variant, case.alibi, case.score_mod),
        "mask_mod": (case.mask_mod, case.block),
        "bias": case.bias,
        "dropout": "dropout_p" in variant,
        "view": case.view,
        "batch": min(case.batch, 1),
        "heads": (case.kv_heads < case.heads, case.kv_heads == 1),
        "logits": case.logits_scale,
        "tiles": (-(-case.seqlen_q // 64), -(-case.seqlen_k // 64)),
        "ends": (case.seqlen_q % 16 == 0, case.seqlen_k % 16 == 0),
    }


def sweeping(cases, factors=factors, is_long=lambda case: False):
    """``cases`` for `pytest -m sweep`, but for a pairwise cover of those that are not long."""
    few = cover([case for case in cases if not is_long(case)], factors)
    marks = {True: [], False: [pytest.mark.sweep]}
    return [pytest.param(case, id=case.name, marks=marks[case in few]) for case in cases]
