"""The operators of packed and paged sequences as PyTorch sees them, and the peers' signatures."""

import inspect
import json

import pytest
import torch
from packed_problems import DIM, HEADS, KV_HEADS, cumulative, int32, packed_inputs, random
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import tvm_flash
from tvm_flash import (
    AttentionSpec,
    attention,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)
from tvm_flash.frontend.ops import spec_json, spec_name

LENGTHS = [(9, 14), (0, 3), (20, 15)]
CU_Q, CU_K = (cumulative(x) for x in zip(*LENGTHS, strict=True))
SPANS = (CU_Q[:-1], CU_Q[1:], CU_K[:-1], CU_K[1:])
PACKED = AttentionSpec(dtype="float32", head_dim=DIM, causal=True, sequences="packed")
PAGED = AttentionSpec(dtype="float32", head_dim=DIM, causal=True, sequences="paged")
FORWARD = torch.ops.tvm_flash.attention_packed_forward.default
BACKWARD = torch.ops.tvm_flash.attention_packed_backward.default
FORWARD_PAGED = torch.ops.tvm_flash.attention_paged_forward.default
PAGES = (random(6, 8, KV_HEADS, DIM, seed=7), random(6, 8, KV_HEADS, DIM, seed=8))
TABLE = int32(5, 1, 3, 0, 0, 2).reshape(3, 2)


@pytest.fixture
def qkv():
    return [x.requires_grad_() for x in packed_inputs(LENGTHS)[:3]]


def detached(tensors):
    return [x.detach() for x in tensors]


def attend(q, k, v, cu_q=CU_Q, cu_k=CU_K, **options):
    return attention(q, k, v, causal=True, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, **options)


def attend_pages(q, cu_q=CU_Q):
    return attention(
        q, *PAGES, causal=True, cu_seqlens_q=cu_q, seqused_k=int32(14, 3, 15), block_table=TABLE
    )


def test_opcheck_forward(qkv):
    torch.library.opcheck(FORWARD, (*qkv, *SPANS, [], spec_name(PACKED), 0.25, 15))
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in detached(qkv)]
    leaves = [x.requires_grad_() for x in heads_first]
    torch.library.opcheck(FORWARD, (*leaves, *SPANS, [], spec_json(PACKED), 0.25, 15))


@pytest.mark.parametrize("with_dlse", [False, True])
def test_opcheck_backward(with_dlse, qkv):
    qkv, name = detached(qkv), spec_name(PACKED)
    out, lse, low = FORWARD(*qkv, *SPANS, [], name, 0.25, 15)
    dlse = torch.randn_like(lse) if with_dlse else None
    saved = (out, torch.randn_like(out), lse)
    torch.library.opcheck(BACKWARD, (*qkv, *saved, *SPANS, [], name, 0.25, 15, low, dlse))


def test_opcheck_of_pages(qkv):
    spans = (*SPANS[:2], int32(0, 0, 1), int32(14, 3, 15), TABLE)
    torch.library.opcheck(
        FORWARD_PAGED,
        (qkv[0].detach(), *PAGES, *spans, [], spec_name(PAGED), 0.25, 15),
        {"num_splits": 4},
    )


def test_spans_with_gaps_are_the_operators_to_take(qkv):
    """Its callers may leave rows out anywhere, also in front."""
    q, k, v = detached(qkv)
    spans = (int32(3, 12), int32(9, 20), int32(2, 20), int32(9, 31))
    out, lse, _ = FORWARD(q, k, v, *spans, [], spec_name(PACKED), DIM**-0.5, 11)
    for start_q, end_q, start_k, end_k in torch.stack(spans, 1).tolist():
        rows, keys = slice(start_q, end_q), slice(start_k, end_k)
        want = attend(
            q[rows], k[keys], v[keys], int32(0, end_q - start_q), int32(0, end_k - start_k)
        )
        torch.testing.assert_close(out[rows], want)
    dead = torch.ones(len(q), dtype=torch.bool)
    dead[3:9] = dead[12:20] = False
    assert not out[dead].any() and (lse[:, dead] == -torch.inf).all()


BAD_SPANS = {
    "past": ((0, 12), (9, 30), "sequence 1 has rows 12 .. 30 of q, which has 29"),
    "negative": ((-1, 12), (9, 20), "sequence 0 has rows -1 .. 9"),
    "decreasing": ((0, 12), (9, 11), "sequence 1 has rows 12 .. 11"),
    "overlapping": ((0, 8), (9, 20), "sequence 1 begins at row 8 of q, before the end 9"),
}


@pytest.mark.parametrize("name", BAD_SPANS)
def test_the_operators_guard_what_kernels_do_not(name, qkv):
    starts, ends, message = BAD_SPANS[name]
    spans = (int32(*starts), int32(*ends), int32(0, 9), int32(9, 20))
    with pytest.raises(ValueError, match=message):
        FORWARD(*qkv, *spans, [], spec_name(PACKED), 0.25, 15)


def test_a_spec_of_other_sequences_is_refused(qkv):
    dense = AttentionSpec(dtype="float32", head_dim=DIM, causal=True)
    for spec in (dense, PAGED):
        with pytest.raises(ValueError, match=f"{spec.sequences} sequences for the operator of pa"):
            FORWARD(*qkv, *SPANS, [], spec_name(spec), 0.25, 15)


def test_longest_k_must_not_be_exceeded(qkv):
    with pytest.raises(ValueError, match="max_seqlen_k=14 is too small: a sequence has 15 keys"):
        FORWARD(*qkv, *SPANS, [], spec_name(PACKED), 0.25, 14)


def test_second_and_forward_derivatives_are_refused_not_wrong(qkv):
    (grad,) = torch.autograd.grad(attend(*qkv).sum(), qkv[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of attention's gradient"):
        grad.square().sum().backward()
    q, k, v = detached(qkv)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        attend(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)), k, v)


def test_pages_have_no_gradient(qkv):
    out = attend_pages(qkv[0])
    with pytest.raises(NotImplementedError, match="attention to a cache has no gradient"):
        out.sum().backward()


def test_fake_and_meta_tensors_get_shapes_without_a_kernel(qkv):
    meta = [x.detach().to("meta") for x in (*qkv, CU_Q, CU_K)]
    out, lse = attend(*meta, max_seqlen_k=torch.tensor(15, device="meta"), return_lse=True)
    assert out.is_meta and out.shape == (29, HEADS, DIM) and lse.shape == (HEADS, 29)
    divided, lse = attend(*meta, num_splits=4, return_lse=True)
    assert divided.shape == out.shape and lse.shape == (HEADS, 29)
    mode, plain = FakeTensorMode(), (*detached(qkv), CU_Q, CU_K)
    with mode:
        fakes = [mode.from_tensor(x) for x in plain]
        leaves = [x.requires_grad_() for x in fakes[:3]]
        out = attend(*leaves, *fakes[3:], num_splits=4)
        grads = torch.autograd.grad(out.sum(), leaves)
    assert out.shape == (29, HEADS, DIM) and out.dtype == torch.float32
    assert [x.shape for x in grads] == [x.shape for x in qkv]


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_holds_for_other_lengths(mode, qkv):
    qkv = detached(qkv)
    graph = make_fx(lambda *x: attend(*x), tracing_mode=mode)(*qkv, CU_Q, CU_K)
    (node,) = [n for n in graph.graph.nodes if n.target is FORWARD]
    assert AttentionSpec.from_json(json.loads(node.args[8])) == PACKED
    assert torch.equal(graph(*qkv, CU_Q, CU_K), attend(*qkv))
    others = int32(0, 2, 29, 29), int32(0, 30, 30, 32)
    assert torch.equal(graph(*qkv, *others), attend(*qkv, *others))


def test_export(qkv):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v, cu_q, cu_k):
            return flash_attn_varlen_func(q, k, v, cu_q, cu_k, 20, 30, causal=True)

    program = torch.export.export(Layer(), (*detached(qkv), CU_Q, CU_K))
    assert torch.equal(program.module()(*detached(qkv), CU_Q, CU_K), attend(*detached(qkv)))


def values_and_gradients(function, leaves):
    results = function(*leaves)
    grads = torch.autograd.grad(results.sin().sum(), leaves)
    return [results.detach(), *grads]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_fullgraph(dynamic, qkv):
    torch._dynamo.reset()

    def block(q, k, v):
        return flash_attn_varlen_func(q * 2, k, v, CU_Q, CU_K, 20, 15, causal=True)

    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    eager = values_and_gradients(block, qkv)
    for got, want in zip(values_and_gradients(compiled, qkv), eager, strict=True):
        torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_what_is_compiled_serves_other_lengths(qkv):
    torch._dynamo.reset()
    counter, q, k, v = torch._dynamo.testing.CompileCounter(), *detached(qkv)

    def block(q, k, v, cu_q, cu_k, most_q, most_k):
        return flash_attn_varlen_func(q, k, v, cu_q, cu_k, most_q, most_k, causal=True)

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    for rows, most in ((29, 20), (27, 18), (25, 16)):
        cu, parts = int32(0, 9, 9, rows), [x[:rows].clone() for x in (q, k, v)]
        want = block(*parts, cu, cu, most, most)
        assert torch.equal(compiled(*parts, cu, cu, most, most), want)
    assert counter.frame_count == 1


def test_functions_of_the_sequence_in_a_compiled_region(qkv):
    torch._dynamo.reset()

    def block(q, k, v):
        return attend(q, k, v, score_mod=lambda s, b, h, i, j: s * (b + 1))

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*detached(qkv)), block(*detached(qkv)))


def test_compiled_nested_tensors(qkv):
    torch._dynamo.reset()
    q, k, v = detached(qkv)
    nested = [torch.nested.nested_tensor_from_jagged(x[:29], CU_Q.long()) for x in (q, k, v)]
    compiled = torch.compile(flash_attn_func, fullgraph=True, backend="aot_eager")
    got, want = (f(*nested, causal=True).values() for f in (compiled, flash_attn_func))
    assert torch.equal(got, want)


def test_vmap_gives_what_each_entry_gives(qkv):
    qkv = detached(qkv)
    stacked = [torch.stack([x, 2 * x, x.flip(1)]) for x in qkv]
    got = torch.vmap(attend)(*stacked)
    for n, entry in enumerate(zip(*stacked, strict=True)):
        assert torch.equal(got[n], attend(*entry))
    cu = torch.stack((CU_Q, int32(0, 1, 28, 29)))
    got = torch.vmap(attend, (None, None, None, 0))(*qkv, cu)
    assert torch.equal(got[1], attend(*qkv, cu[1]))
    with pytest.raises(ValueError, match="over a dimension of size 0: map one entry or more"):
        torch.vmap(attend)(*(x[:0] for x in stacked))


def test_gradients_by_torch_func(qkv):
    q, k, v = detached(qkv)
    got = torch.func.grad(lambda q: attend(q, k, v).sum())(q)
    (want,) = torch.autograd.grad(attend(q.requires_grad_(), k, v).sum(), q)
    assert torch.equal(got, want)


def test_checkpointing_and_inference_mode(qkv):
    kept = values_and_gradients(attend, qkv)
    again = values_and_gradients(
        lambda *x: torch.utils.checkpoint.checkpoint(attend, *x, use_reentrant=False), qkv
    )
    assert all(map(torch.equal, again, kept))
    with torch.inference_mode():
        assert torch.equal(attend(*qkv), kept[0])


def test_operations_are_counted_by_length(qkv):
    with FlopCounterMode(display=False) as forward:
        out = attend(*qkv)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    pairs = sum(queries * keys for queries, keys in LENGTHS)
    assert forward.get_total_flops() == 2 * HEADS * pairs * 2 * DIM
    assert backward.get_total_flops() == 2 * HEADS * pairs * 5 * DIM


NONE, WINDOW = "None", "(-1, -1)"
# Names, order and defaults of FlashAttention-2 (flash_attn/flash_attn_interface.py).
_TAIL = [
    ("dropout_p", "0.0"), ("softmax_scale", NONE), ("causal", "False"), ("window_size", WINDOW),
    ("softcap", "0.0"), ("alibi_slopes", NONE), ("deterministic", "False"),
    ("return_attn_probs", "False"),
]  # fmt: skip
_LENGTHS = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
SIGNATURES = {
    "flash_attn_varlen_func": (["q", "k", "v", *_LENGTHS], [*_TAIL, ("block_table", NONE)]),
    "flash_attn_varlen_qkvpacked_func": (["qkv", "cu_seqlens", "max_seqlen"], _TAIL),
    "flash_attn_varlen_kvpacked_func": (["q", "kv", *_LENGTHS], _TAIL),
    "flash_attn_with_kvcache": (
        ["q", "k_cache", "v_cache"],
        [
            ("k", NONE), ("v", NONE), ("rotary_cos", NONE), ("rotary_sin", NONE),
            ("cache_seqlens", NONE), ("cache_batch_idx", NONE), ("cache_leftpad", NONE),
            ("block_table", NONE), ("softmax_scale", NONE), ("causal", "False"),
            ("window_size", WINDOW), ("softcap", "0.0"), ("rotary_interleaved", "True"),
            ("alibi_slopes", NONE), ("num_splits", "0"), ("return_softmax_lse", "False"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_of_flash_attention(name):
    needed, optional = SIGNATURES[name]
    parameters = inspect.signature(getattr(tvm_flash, name)).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional if p.default is p.empty] == needed
    found = [(p.name, str(p.default)) for p in positional if p.default is not p.empty]
    assert found == optional


def test_the_signature_of_torch():
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    ours, torchs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (tvm_flash.varlen_attention, varlen.varlen_attn)
    )
    # Later releases may add keywords.
    assert ours[: len(torchs)] == torchs[: len(ours)]
    assert getattr(varlen, "AuxRequest", None) is None or varlen.AuxRequest(lse=True).lse


def test_what_flash_attention_3_has_besides_is_of_speed_or_refused_by_name():
    q = random(29, HEADS, DIM)
    lengths = (CU_Q, CU_Q, 20, 20)
    want = flash_attn_varlen_func(q, q, q, *lengths, causal=True)
    speed = {"num_splits": 3, "pack_gqa": True, "sm_margin": 8, "attention_chunk": 0, "qv": None}
    speed["causal"] = True
    assert torch.equal(flash_attn_varlen_func(q, q, q, *lengths, **speed), want)
    refused = {
        "attention_chunk": (5, "mask_mod"), "qv": (q, "join q and qv"),
        "k_descale": (torch.ones(2), "softmax_scale"),
    }  # fmt: skip
    for name, (value, reason) in refused.items():
        with pytest.raises(NotImplementedError, match=f"{name}=.* is not served: .*{reason}"):
            flash_attn_varlen_func(q, q, q, *lengths, **{name: value})
        with pytest.raises(NotImplementedError, match=f"{name}=.* is not served: .*{reason}"):
            flash_attn_with_kvcache(q[None], q[None], q[None], **{name: value})
        with pytest.raises(NotImplementedError, match=f"{name}=.* is not served: .*{reason}"):
            flash_attn_func(q[None], q[None], q[None], **{name: value})
    assert flash_attn_func(q[None], q[None], q[None], pack_gqa=True).shape == q[None].shape
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_len'"):
        flash_attn_varlen_func(q, q, q, *lengths, max_len=3)


def test_q_and_qv_joined_are_what_flash_attention_3_computes():
    """As the refusal of qv advises: scores q k^T + qv v^T, scaled by both widths."""
    q, qv, k, v = (random(1, 9, HEADS, DIM, seed=n) for n in range(4))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) + torch.einsum("bqhd,bkhd->bhqk", qv, v)
    want = torch.einsum("bhqk,bkhd->bqhd", (scores * (2 * DIM) ** -0.5).softmax(-1), v)
    got = flash_attn_func(torch.cat([q, qv], -1), torch.cat([k, v], -1), v)
    torch.testing.assert_close(got, want)


def test_names_of_flash_attentions_modules():
    interface = tvm_flash.flash_attn_interface
    for name in interface.__all__:
        assert getattr(interface, name) is getattr(tvm_flash, name)
    assert tvm_flash.apply_rotary_emb is tvm_flash.apply_rotary
    assert {*SIGNATURES} <= {*interface.__all__}
