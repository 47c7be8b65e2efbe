"""flex_attention as torch's own, on its BlockMasks."""

import pytest
import torch
from torch.nn.attention import flex_attention as theirs
from torch.nn.attention.flex_attention import AuxRequest, and_masks, create_block_mask, or_masks

from tvm_flash import flex_attention

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Q, K, V = random(2, 4, 200, 32), random(2, 2, 200, 32, seed=1), random(2, 2, 200, 16, seed=2)


def causal(b, h, q_idx, k_idx):
    return q_idx >= k_idx


def near_or_first(b, h, q_idx, k_idx):
    return (q_idx - k_idx < 64) | (k_idx < 4)


def alibi(score, b, h, q_idx, k_idx):
    return score + (k_idx - q_idx) * (h + 1) * 0.01


BLOCKS = create_block_mask(
    and_masks(causal, or_masks(near_or_first, lambda b, h, q, k: k == q)), 2, 4, 200, 200, "cpu"
)


@pytest.mark.parametrize("score_mod", [None, alibi])
@pytest.mark.parametrize(
    "block_mask", [None, BLOCKS, theirs._create_empty_block_mask(Q, K)], ids=["no", "some", "all"]
)
def test_results_are_torchs(score_mod, block_mask):
    options = dict(score_mod=score_mod, block_mask=block_mask, enable_gqa=True, scale=0.2)
    out, aux = theirs.flex_attention(Q, K, V, **options, return_aux=AuxRequest(lse=True))
    torch.testing.assert_close(flex_attention(Q, K, V, **options), out)
    torch.testing.assert_close(flex_attention(Q, K, V, **options, return_lse=True), (out, aux.lse))
    got, own = flex_attention(Q, K, V, **options, return_aux=AuxRequest(max_scores=True))
    assert torch.equal(got, flex_attention(Q, K, V, **options)) and own.lse is None
    torch.testing.assert_close(own.max_scores, largest(score_mod, block_mask))


def largest(score_mod, block_mask):
    """The maximum of each row of scores; torch has none on CPUs."""
    scores, at = Q @ K.repeat_interleave(2, 1).mT * 0.2, torch.arange(200)
    if score_mod is not None:
        scores = score_mod(scores, 0, torch.arange(4)[:, None, None], at[:, None], at)
    if block_mask is BLOCKS:
        scores = scores.masked_fill(~BLOCKS.mask_mod(at[0], at[0], at[:, None], at), -torch.inf)
    return scores.amax(-1)


def test_gradients_on_cpus_and_one_entry_of_keys_for_all():
    given = [x.clone().requires_grad_() for x in (Q, K[:1], V[:1])]
    out, lse = flex_attention(*given, alibi, BLOCKS, enable_gqa=True, return_lse=True)
    q, k, v = (x.clone().requires_grad_() for x in (Q, K[:1], V[:1]))
    scores = q @ k.repeat_interleave(2, 1).mT * 32**-0.5
    at = torch.arange(200)
    scores = alibi(scores, 0, torch.arange(4)[:, None, None], at[:, None], at)
    scores = scores.masked_fill(~BLOCKS.mask_mod(at[0], at[0], at[:, None], at), -torch.inf)
    wanted = scores.softmax(-1) @ v.repeat_interleave(2, 1), scores.logsumexp(-1)
    torch.testing.assert_close((out, lse), wanted)
    upstream = [random(*x.shape, seed=5) for x in wanted]
    got = torch.autograd.grad((out, lse), given, upstream)
    torch.testing.assert_close(
        got, torch.autograd.grad(wanted, (q, k, v), upstream), atol=1e-5, rtol=1e-4
    )


def test_compiled():
    call = dict(score_mod=alibi, block_mask=BLOCKS, enable_gqa=True)
    compiled = torch.compile(flex_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Q, K, V, **call), flex_attention(Q, K, V, **call))


def test_rows_without_keys():
    mask = create_block_mask(lambda b, h, q, k: q > k, None, None, 200, 200, "cpu")
    out, aux = flex_attention(
        Q, K, V, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True, max_scores=True)
    )
    assert (out[:, :, 0] == 0).all()
    assert all((x[..., 0] == -torch.inf).all() and x[..., 1:].isfinite().all() for x in aux[:2])


def test_bad_input():
    for call, error, message in (
        (lambda: flex_attention(Q, K, V), ValueError, "4 heads, key has 2: set enable_gqa"),
        (lambda: flex_attention(Q[0], K[0], V[0]), ValueError, "must be .B, H, Sq, D."),
        (
            lambda: flex_attention(Q, Q, Q, return_lse=True, return_aux=AuxRequest(lse=True)),
            ValueError,
            "return_lse and return_aux together",
        ),
        (
            lambda: flex_attention(Q, Q[:, :, :100], Q[:, :, :100], block_mask=BLOCKS),
            ValueError,
            "block_mask is of 200 queries and 200 keys",
        ),
        (lambda: flex_attention(Q, Q, Q, block_mask=3), TypeError, "must be a BlockMask"),
    ):
        with pytest.raises(error, match=message):
            call()
