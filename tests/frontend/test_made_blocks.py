"""Block lists that a call with a mask_mod alone gets."""

import pytest
import torch

from tvm_flash import attention, capture
from tvm_flash.frontend import made_lists
from tvm_flash.reference import attention_reference

S = 200
DOCUMENT = torch.arange(S) // 70


def random(heads, seed):
    return torch.randn(2, S, heads, 16, generator=torch.Generator().manual_seed(seed))


Q, K, V = random(4, 0), random(2, 1), random(2, 2)


@pytest.fixture
def made(monkeypatch):
    """The answers that are kept, of calls so small that they would get no lists."""
    kept = made_lists._Kept()
    monkeypatch.setattr(made_lists, "_kept", kept)
    monkeypatch.setattr(made_lists, "LEAST_PAIRS", 1)
    monkeypatch.setattr(made_lists, "LEAST_HEADS", 1)
    monkeypatch.setattr(made_lists, "BLOCK", (32, 64))
    return kept._answers


def same_document(b, h, q_idx, k_idx):
    return DOCUMENT[q_idx] == DOCUMENT[k_idx]


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"causal": True}, marks=pytest.mark.sweep),  # the last one is causal too
        pytest.param({"window_size": (30, 50), "alignment": "top_left"}, marks=pytest.mark.sweep),
        {"causal": True, "window_size": (90, -1), "score_mod": lambda s, b, h, i, j: s - 0.1 * j},
    ],
)
def test_a_call_is_the_one_without_lists(made, options):
    given = [x.clone().requires_grad_() for x in (Q, K, V)]
    got = attention(*given, mask_mod=same_document, **options)
    (stored,) = made.values()
    assert len(stored[1]) < 0.6 * 7 * 4  # blocks
    want, _ = attention_reference(*given, mask_mod=same_document, upcast=torch.float64, **options)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    upstream = random(4, 3)
    found = torch.autograd.grad(got, given, upstream)
    exact = torch.autograd.grad(want, given, upstream.double())
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-4, check_dtype=False)
    assert torch.equal(attention(*given, mask_mod=same_document, **options), got)
    assert len(made) == 1


def test_lists_follow_what_the_function_reads(made):
    table = DOCUMENT.clone()

    def by_table(b, h, q_idx, k_idx):
        return table[q_idx] == table[k_idx]

    before = attention(Q, K, V, mask_mod=by_table)
    table.copy_(torch.arange(S) // 20)
    changed = attention(Q, K, V, mask_mod=by_table)
    assert len(made) == 2 and not torch.equal(before, changed)
    want = attention(Q, K, V, mask_mod=capture(mask_mod=by_table))
    torch.testing.assert_close(changed, want)
    # The same function of other memory with the first numbers finds the first lists.
    assert torch.equal(attention(Q, K, V, mask_mod=same_document), before) and len(made) == 2


@pytest.mark.parametrize("table", [torch.tensor(70), torch.tensor(70.0).bfloat16()], ids=str)
def test_a_number_that_is_a_tensor(made, table):
    def near(b, h, q_idx, k_idx):
        return (q_idx - k_idx).abs() < table

    got = attention(Q, K, V, mask_mod=near)
    assert len(made) == 1
    torch.testing.assert_close(got, attention(Q, K, V, mask_mod=capture(mask_mod=near)))


def test_a_captured_tensor_may_grow_afterwards(made):
    table = DOCUMENT.clone()
    attention(Q, K, V, mask_mod=lambda b, h, q_idx, k_idx: table[q_idx] == table[k_idx])
    assert len(made) == 1 and table.resize_(2 * S).shape == (2 * S,)


def test_lists_of_each_entry_and_head(made):
    first, step = torch.tensor([0, 1]), torch.tensor([1, 2, 3, 4])

    def mask_mod(b, h, q_idx, k_idx):
        return (q_idx // 64 - k_idx // 64 + first[b]) % step[h] == 0

    got = attention(Q, K, V, mask_mod=mask_mod)
    (stored,) = made.values()
    assert stored[0].shape[:2] == (2, 4)
    torch.testing.assert_close(got, attention(Q, K, V, mask_mod=capture(mask_mod=mask_mod)))


@pytest.mark.parametrize(
    "mask_mod",
    [
        lambda b, h, q_idx, k_idx: q_idx + 500 >= k_idx,
        lambda b, h, q_idx, k_idx: DOCUMENT[q_idx - k_idx] == 0,
        lambda b, h, q_idx, k_idx: DOCUMENT[:50][q_idx] == DOCUMENT[k_idx],
    ],
    ids=["most are seen", "an index below 0", "an index past the end"],
)
def test_calls_without_lists(made, mask_mod):
    got = attention(Q, K, V, mask_mod=mask_mod)
    assert not any(made.values())
    assert torch.equal(got, attention(Q, K, V, mask_mod=capture(mask_mod=mask_mod)))


def test_who_watches_gets_no_lists(made):
    torch.func.vmap(lambda q: attention(q, K, V, mask_mod=same_document))(Q[None])
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(Q, K, V, mask_mod=same_document), attention(Q, K, V, mask_mod=same_document)
    )
    assert len(made) == 1  # of the last call


def test_a_function_beside_a_captured_one_is_refused_as_everywhere(made):
    captured = capture(lambda score, b, h, q_idx, k_idx: score * 2)
    with pytest.raises(TypeError, match="a Captured holds both functions"):
        attention(Q, K, V, score_mod=captured, mask_mod=same_document)


def near(b, h, q_idx, k_idx):
    return (q_idx - k_idx).abs() < 40


def test_compiled_functions_of_positions_have_lists(made):
    """As constants, for sizes that are; what captured tensors hold then may change unseen."""
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    got = compiled(Q, K, V, mask_mod=near, causal=True)
    assert len(made) == 1
    assert torch.equal(got, attention(Q, K, V, mask_mod=near, causal=True)) and len(made) == 1


@pytest.mark.sweep
def test_what_is_compiled_for_any_length_has_none(made):
    of_any_length = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=True)
    longer = [torch.cat([x, x], 1) for x in (Q, K, V)]
    for given in ((Q, K, V), longer):
        got = of_any_length(*given, mask_mod=near)
        assert not made
        torch.testing.assert_close(got, attention(*given, mask_mod=capture(mask_mod=near)))
    of_any_length(Q, K, V, mask_mod=same_document)
    assert not made


def test_a_function_is_traced_once(made):
    """Whether it gets lists or not, and the score_mod beside it too."""
    calls = []

    def most(b, h, q_idx, k_idx):
        calls.append(q_idx)
        return q_idx + 500 >= k_idx

    def score_mod(score, b, h, q_idx, k_idx):
        calls.append(score)
        return score

    attention(Q, K, V, score_mod=score_mod, mask_mod=most)
    assert len(made) == 1
    calls.clear()
    attention(Q, K, V, score_mod=score_mod, mask_mod=most)
    assert len(calls) == 2


def test_small_calls_and_few_heads_have_none(monkeypatch):
    monkeypatch.setattr(made_lists, "lists_of", None)  # which nobody calls
    want = attention(Q, K, V, mask_mod=capture(mask_mod=same_document))
    assert torch.equal(attention(Q, K, V, mask_mod=same_document), want)


def test_numbers_that_nobody_may_read(made, monkeypatch):
    """On a GPU captured tensors are not read: a function that has none gets lists all the same."""
    monkeypatch.setattr(made_lists, "is_readable", lambda x: False)
    attention(Q, K, V, mask_mod=same_document)
    assert not made
    attention(Q, K, V, mask_mod=lambda b, h, q_idx, k_idx: q_idx // 70 == k_idx // 70)
    assert len(made) == 1
