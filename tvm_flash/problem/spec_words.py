"""A spec in the words of the command line, which cli/spec_text.py reads."""

from __future__ import annotations

from .spec import AttentionSpec

# What a spec computes besides attention, and its word.
COMPUTED = {"linear": "linear", "softmax": "row_softmax"}
_FUNCTIONS = ("score_mod", "mask_mod")


def text_of(spec: AttentionSpec) -> str:
    """The words of ``spec`` as commands read them; of its functions, that there are some."""
    right = spec.window_right or spec.causal
    ends = {(True, True): "window", (True, False): "window=left", (False, True): "window=right"}
    words = [
        spec.element.written,
        f"d={spec.head_dim}" * (spec.computes != "softmax"),
        f"dv={spec.head_dim_v}" * (spec.head_dim_v != spec.head_dim),
        "causal" * spec.causal,
        ends[spec.window_left, right] if spec.window_left or spec.window_right else "",
        "softcap" * spec.softcap,
        "alibi" * spec.alibi,
        spec.softmax * (spec.softmax != "softmax"),
        "dropout" * spec.dropout,
        "top_left" * (spec.alignment == "top_left"),
        "no_lse" * (spec.returns == "out"),
        spec.sequences * (spec.sequences != "dense"),
        "learned" * bool(spec.learned),
        COMPUTED.get(spec.computes, ""),
        *(f"{name}=FILE.py:FUNCTION" for name in _FUNCTIONS if getattr(spec, name) is not None),
    ]
    return ",".join(filter(None, words))


def has_words(spec: AttentionSpec) -> bool:
    """Whether the words mean ``spec``: none say lists of blocks, or which tables learn of many."""
    whole = not spec.learned or spec.learned == spec.learning().learned
    return whole and spec.block_mask is None
