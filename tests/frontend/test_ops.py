"""The operators as PyTorch sees them: schemas, fake kernels, autograd, compile, vmap, export."""

import dataclasses
import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import tvm_flash
from tvm_flash import AttentionSpec, attention
from tvm_flash.frontend import problem
from tvm_flash.frontend.ops import spec_json, spec_name
from tvm_flash.reference import attention_reference

B, SQ, SK, H, HK, D = 2, 20, 33, 4, 2, 16
SPEC = AttentionSpec(dtype="float32", head_dim=D, causal=True)
FORWARD = torch.ops.tvm_flash.attention_forward.default
BACKWARD = torch.ops.tvm_flash.attention_backward.default
BIAS = torch.linspace(-1, 1, H * 33).reshape(H, 33)
DOCUMENT = torch.arange(SK) // 9


def score_mod(score, b, h, q_idx, k_idx):
    return 1.5 * torch.tanh(score) + BIAS[h, torch.clamp(q_idx - k_idx, -16, 16) + 16]


def mask_mod(b, h, q_idx, k_idx):
    return DOCUMENT[q_idx] == DOCUMENT[k_idx]


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    shapes = ((B, SQ, H, D), (B, SK, HK, D), (B, SK, HK, D))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def detached(tensors):
    return [x.detach() for x in tensors]


def views(name, q, k, v):
    """q, k, v as other memory layouts hold them."""
    if name == "heads_first":
        return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    if name == "packed":
        return list(torch.stack([q, q.flip(0), q.flip(1)], dim=2).unbind(2))
    if name == "no_keys":
        return [q, k[:, :0], v[:, :0]]
    if name == "head_dim_first":
        return [x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v)]
    return [q, k, v]


@pytest.mark.parametrize("name", ["plain", "heads_first", "packed", "head_dim_first", "no_keys"])
def test_opcheck_forward(name, qkv):
    leaves = [x.requires_grad_() for x in views(name, *detached(qkv))]
    torch.library.opcheck(FORWARD, (*leaves, [], spec_name(SPEC), 0.25))


def test_opcheck_forward_with_tables(qkv):
    spec, tables = AttentionSpec.capture(
        dtype="float32", head_dim=D, score_mod=score_mod, mask_mod=mask_mod
    )
    torch.library.opcheck(FORWARD, (*qkv, tables, spec_json(spec), 0.25))


@pytest.mark.parametrize("with_dlse", [False, True])
def test_opcheck_backward(with_dlse, qkv):
    qkv = detached(qkv)
    out, lse, low = FORWARD(*qkv, [], spec_name(SPEC), 0.25)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse) if with_dlse else None
    given = (*qkv, out, dout, lse, [], spec_name(SPEC), 0.25, low, dlse)
    torch.library.opcheck(BACKWARD, given)


def test_a_spec_travels_between_processes_as_json(qkv):
    text = spec_json(SPEC)
    assert AttentionSpec.from_json(json.loads(text)) == SPEC
    by_name, by_json = (FORWARD(*qkv, [], key, 0.25)[0] for key in (spec_name(SPEC), text))
    assert torch.equal(by_name, by_json)
    with pytest.raises(ValueError, match="another process: pass its JSON"):
        FORWARD(*qkv, [], "attn_of_nobody", 0.25)


def test_the_operators_guard_what_kernels_do_not(qkv):
    q, k, v = qkv
    with pytest.raises(ValueError, match="num_heads=3 of q must be a multiple of num_kv_heads=2"):
        FORWARD(q[:, :, :3], k, v, [], spec_name(SPEC), 0.25)
    spec = dataclasses.replace(SPEC, alibi=True)
    with pytest.raises(ValueError, match="must have elements"):
        FORWARD(q, k, v, [torch.zeros(B, 0)], spec_name(spec), 0.25)


VARIANTS = {
    "causal": {"causal": True},
    "window": {"window_size": (3, 2)},
    "softcap_and_alibi": {"softcap": 2.0, "alibi_slopes": torch.linspace(0.1, 0.4, H)},
    "functions": {"score_mod": score_mod, "mask_mod": mask_mod},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_finite_differences(name, qkv):
    """Along random directions, through out and lse; a wide step, for kernels in float32."""
    qkv, step = detached(qkv), 1e-2
    out_weight, lse_weight = torch.randn(B, SQ, H, D).double(), torch.randn(B, H, SQ).double()

    def loss(*tensors):
        out, lse = attention(*tensors, return_lse=True, **VARIANTS[name])
        return (out * out_weight).sum() + (lse * lse_weight).sum()

    leaves = [x.clone().requires_grad_() for x in qkv]
    grads = torch.autograd.grad(loss(*leaves), leaves)
    for n, grad in enumerate(grads):
        direction = torch.randn_like(grad)
        ahead, behind = (
            loss(*(x + s * direction if m == n else x for m, x in enumerate(qkv)))
            for s in (step, -step)
        )
        slope = ((ahead - behind) / (2 * step)).item()
        assert slope == pytest.approx((grad * direction).sum().item(), rel=2e-3, abs=2e-3)


def test_frozen_inputs_get_no_gradient(qkv):
    q, k, v = detached(qkv)
    attention(q.requires_grad_(), k, v).sum().backward()
    assert q.grad.any() and k.grad is None


def test_lse_is_differentiable_alone(qkv):
    def grads(function):
        return torch.autograd.grad(function(*qkv)[1].square().sum(), qkv, allow_unused=True)

    *ours, dv = grads(lambda *x: attention(*x, return_lse=True))
    *exact, _ = grads(lambda *x: attention_reference(*x, upcast=torch.float64))
    for got, want in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert not dv.any()


def test_only_inputs_out_and_lse_are_saved(qkv):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out, lse = attention(*qkv, causal=True, return_lse=True)
    held = [x for x in saved if x.numel()]
    assert {x.data_ptr() for x in held} == {x.data_ptr() for x in (*qkv, out, lse)}
    assert len(held) == 5


def test_the_second_derivative_is_refused_not_wrong(qkv):
    (grad,) = torch.autograd.grad(attention(*qkv).sum(), qkv[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of attention's gradient"):
        grad.square().sum().backward()


def test_forward_mode_is_refused_not_wrong(qkv):
    q, k, v = detached(qkv)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        attention(torch.autograd.forward_ad.make_dual(q, torch.ones_like(q)), k, v)


def test_vmap_gives_what_each_entry_gives(qkv):
    stacked = [torch.stack([x, 2 * x, x.flip(1)]) for x in detached(qkv)]
    got = torch.vmap(lambda *x: attention(*x, causal=True))(*stacked)
    assert torch.equal(got[2], attention(*(x[2] for x in stacked), causal=True))


def test_fake_and_meta_tensors_get_shapes_without_a_kernel(qkv):
    meta = attention(*(x.detach().to("meta") for x in qkv), return_lse=True)
    mode, plain = FakeTensorMode(), detached(qkv)
    with mode:
        fake = attention(*map(mode.from_tensor, plain), return_lse=True)
    for out, lse in (meta, fake):
        assert out.shape == (B, SQ, H, D) and lse.shape == (B, H, SQ) and lse.dtype == torch.float32


def test_a_problem_that_was_seen_costs_one_look_up(qkv, monkeypatch):
    q, k, v = detached(qkv)
    first = attention(q, k, v, causal=True)

    def seen_before(*args):
        raise AssertionError(f"{args} were looked at again")

    for name in ("check_sizes", "_spec"):
        monkeypatch.setattr(problem, name, seen_before)
    assert torch.equal(attention(q, k, v, causal=True, softmax_scale=D**-0.5), first)
    with pytest.raises(AssertionError, match="looked at again"):
        attention(q[:, 1:], k, v, causal=True)


def test_a_problem_that_was_seen_is_checked_all_the_same(qkv):
    q, k, v = detached(qkv)
    attention(q, k, v, causal=True)
    for wrong, message in (
        ((q, k, v[:, 1:]), "k has 33 rows, v has 32"),
        ((q, k.double(), v), "k.dtype"),
        ((q, k, v.to("meta")), "v.device"),
        ((q, k[..., :8], v), "head_dim of q is 16, of k 8"),
    ):
        for _ in range(2):
            with pytest.raises((TypeError, ValueError), match=message):
                attention(*wrong, causal=True)
    for window in ((2, 1.5), (2, "1")):
        with pytest.raises(TypeError):
            attention(q, k, v, window_size=window)


def test_symbolic_sizes_have_no_hash_and_need_none(qkv):
    trace = make_fx(lambda *x: attention(*x, causal=True), tracing_mode="symbolic")
    traced = trace(*detached(qkv))
    shorter = [x[:, 1:] for x in detached(qkv)]
    assert torch.equal(traced(*shorter), attention(*shorter, causal=True))


CAPTURED = tvm_flash.capture(score_mod, mask_mod)
COMPILED = {
    "causal": lambda q, k, v: attention(q, k, v, causal=True),
    "window_and_lse": lambda q, k, v: attention(q, k, v, window_size=(7, 3), return_lse=True),
    "softcap_and_alibi": lambda q, k, v: attention(
        q, k, v, softcap=3.0, alibi_slopes=torch.ones(H), layout="bshd"
    ),
    "functions": lambda q, k, v: attention(q, k, v, score_mod=score_mod, mask_mod=mask_mod),
    "captured": lambda q, k, v: attention(q, k, v, score_mod=CAPTURED),
    "with_tables": lambda q, k, v: attention(
        q, k, v, score_mod=CAPTURED.with_tables(BIAS + k.detach().sum(), DOCUMENT)
    ),
    "flash_attn_func": lambda q, k, v: tvm_flash.flash_attn_func(
        q, k, v, 0.0, None, True, return_attn_probs=True
    )[:2],
    "sdpa_mask": lambda q, k, v: tvm_flash.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        q[0, :, 0, :1] > k[0, :, 0, 0], enable_gqa=True,
    ),
}  # fmt: skip


def values_and_gradients(function, leaves):
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    grads = torch.autograd.grad(sum(x.sin().sum() for x in results), leaves)
    return [*(x.detach() for x in results), *grads]


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", COMPILED)
def test_compile_fullgraph(name, dynamic, qkv):
    torch._dynamo.reset()
    function = COMPILED[name]
    # The compiler's own code generator has nothing to do with us and takes seconds.
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    eager = values_and_gradients(function, qkv)
    for got, want in zip(values_and_gradients(compiled, qkv), eager, strict=True):
        torch.testing.assert_close(got, want, atol=0, rtol=0)


@pytest.mark.slow
def test_compile_with_inductor_and_new_lengths(qkv):
    torch._dynamo.reset()

    def block(q, k, v):
        return attention(q * 2, k, v, causal=True).flatten(2).relu()

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for length in (SQ, SQ - 3):
        inputs = [x[:, :length].detach().requires_grad_() for x in qkv]
        for got, want in zip(
            values_and_gradients(compiled, inputs), values_and_gradients(block, inputs), strict=True
        ):
            torch.testing.assert_close(got, want)


def test_a_function_made_inside_a_compiled_region(qkv):
    torch._dynamo.reset()

    def block(q, k, v):
        def near(b, h, q_idx, k_idx):
            return (q_idx - k_idx).abs() <= 4

        return attention(q, k, v, mask_mod=near)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*qkv), block(*qkv))


def test_export_needs_nothing_of_this_process(qkv):
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return attention(q, k, v, causal=True)

    program = torch.export.export(Layer(), tuple(detached(qkv)))
    (node,) = [n for n in program.graph.nodes if n.target is FORWARD]
    assert AttentionSpec.from_json(json.loads(node.args[4])) == SPEC
    assert torch.equal(program.module()(*detached(qkv)), attention(*qkv, causal=True))


def test_checkpointing_and_inference_mode(qkv):
    def block(*x):
        return attention(*x, causal=True)

    checkpoint = torch.utils.checkpoint.checkpoint
    kept = values_and_gradients(block, qkv)
    again = values_and_gradients(lambda *x: checkpoint(block, *x, use_reentrant=False), qkv)
    for got, want in zip(again, kept, strict=True):
        assert torch.equal(got, want)
    with torch.inference_mode():
        assert torch.equal(block(*qkv), kept[0])


def test_gradients_have_the_strides_of_their_inputs(qkv):
    leaves = [x.requires_grad_() for x in views("heads_first", *detached(qkv))]
    for leaf, grad in zip(
        leaves, torch.autograd.grad(attention(*leaves).sum(), leaves), strict=True
    ):
        assert grad.stride() == leaf.stride()
