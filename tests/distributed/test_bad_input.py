"""What ranks cannot share is refused on every rank, before anything is sent."""

import pytest
import torch

from tvm_flash.distributed import ring_attention, ulysses_attention


def refusals(group, *arguments):
    return group.run("rank_tasks.refusal", *arguments)


REFUSED = {
    "rows differ": ("ring", {"rows": "other"}, {}, "q.shape[1]: 32 and 34"),
    "options differ": ("ring", {}, {"causal": "of rank"}, "differ in dtype or options"),
    "odd rows": ("ring", {"rows": "odd"}, {}, "33 rows of a rank are not 2 chunks"),
    "layout": ("ring", {}, {"layout": "striped"}, "layout='striped' must be one of zigzag"),
    "cu_seqlens_k alone": ("ring", {}, {"cu_seqlens_k": [0, 3]}, "needs cu_seqlens_q"),
    "learned table": ("ring", {}, {"score_mod": "learned"}, "use ulysses_attention"),
    "scale": ("ring", {}, {"softmax_scale": 2000.0}, "softmax_scale=2000.0 is beyond"),
    "dropout": (
        "ring",
        {},
        {"dropout_p": 0.1},
        "dropout_p=0.1 is not served by ring_attention: use",
    ),
    "nobody's": ("ring", {}, {"windows": 3}, "got an unexpected keyword argument 'windows'"),
    "heads": ("ulysses", {"heads": 3}, {}, "num_heads=3 of q must be a multiple of the 2 ranks"),
    "pages": ("ulysses", {}, {"block_table": [[0]]}, "keys in pages are not divided"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_on_every_rank(pair, case):
    *arguments, message = REFUSED[case]
    for text in refusals(pair, *arguments):
        assert message in text


def test_options_that_ask_for_nothing_are_taken(pair):
    asked = {"dropout_p": 0, "bias": None, "alibi_slopes": None, "softmax": "softmax"}
    assert refusals(pair, "ring", {}, asked) == ["not refused"] * 2


@pytest.mark.parametrize("function", [ring_attention, ulysses_attention])
def test_without_a_process_group(function):
    q = torch.randn(1, 8, 2, 32)
    with pytest.raises(ValueError, match="init_process_group"):
        function(q, q, q)
