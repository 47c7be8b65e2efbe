"""A spec as the words that the command line takes: what messages and lists call a problem."""

from __future__ import annotations

from .spec import AttentionSpec

# Stands for a function of the caller's, of which only the program is known.
FUNCTION = "FILE.py:FUNCTION"

# What a spec computes besides attention, and its word.
COMPUTED = {"linear": "linear", "softmax": "row_softmax"}

_WINDOWS = {(True, True): "window", (True, False): "window=left", (False, True): "window=right"}


def text_of(spec: AttentionSpec) -> str:
    """What ``cli.spec_text.parse_spec`` reads as ``spec``; traced functions are ``FUNCTION``."""
    right = spec.window_right or spec.causal
    words = [
        spec.element.written,
        f"d={spec.head_dim}" * (spec.computes != "softmax"),
        f"dv={spec.head_dim_v}" * (spec.head_dim_v != spec.head_dim),
        "causal" * spec.causal,
        _WINDOWS[spec.window_left, right] if spec.window_left or spec.window_right else "",
        "softcap" * spec.softcap,
        "alibi" * spec.alibi,
        f"score_mod={FUNCTION}" * bool(spec.score_mod),
        f"mask_mod={FUNCTION}" * bool(spec.mask_mod),
        "blocks={}x{}".format(*spec.block_mask) if spec.block_mask else "",
        spec.softmax * (spec.softmax != "softmax"),
        "dropout" * spec.dropout,
        "top_left" * (spec.alignment == "top_left"),
        "no_lse" * (spec.returns == "out"),
        spec.sequences * (spec.sequences != "dense"),
        _learned(spec),
        COMPUTED.get(spec.computes, ""),
    ]
    return ",".join(filter(None, words))


def _learned(spec: AttentionSpec) -> str:
    if frozenset(spec.learned) in (frozenset(), spec.differentiable_tables):
        return "learned" * bool(spec.learned)
    return f"learned={'+'.join(map(str, spec.learned))}"
