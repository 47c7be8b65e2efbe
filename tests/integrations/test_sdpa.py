"""torch's own modules on our kernels, while ``tvm_flash.sdpa`` is on."""

import contextlib
import io
import threading

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from tvm_flash import sdpa
from tvm_flash.integrations import sdpa_kernels
from tvm_flash.verify.rule import allowed_error, largest_error


@pytest.fixture
def served(monkeypatch):
    """For each call that reached the overriding kernels, whether ours served it."""
    found, posed = [], sdpa_kernels._posed

    def watched(*given):
        result = posed(*given)
        found.append(result is not None)
        return result

    monkeypatch.setattr(sdpa_kernels, "_posed", watched)
    return found


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def masks():
    keep = random(2, 1, 65, 70) > -0.5
    keep[0, 0, 3] = False
    return {"none": None, "bool": keep, "bias": random(65, 70)}


def results(dtype, heads_k, mask, is_causal, rows_first, scale):
    """out and gradients of a call of torch's function, of the layouts that modules make."""
    q, k, v = (
        random(2, length, h, 32, seed=n).transpose(1, 2)
        if rows_first
        else random(2, h, length, 32, seed=n)
        for n, (h, length) in enumerate(((4, 65), (heads_k, 70), (heads_k, 70)))
    )
    q, k, v = (x.to(dtype).requires_grad_() for x in (q, k, v))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    out = scaled_dot_product_attention(
        q, k, v, mask, is_causal=is_causal, enable_gqa=heads_k != 4, scale=scale
    )
    grads = torch.autograd.grad(out, (q, k, v), random(*out.shape, seed=9).to(out.dtype))
    return dict(zip(("out", "dq", "dk", "dv"), (out.detach(), *grads), strict=True))


@pytest.mark.parametrize(
    ("dtype", "heads_k", "mask", "is_causal", "rows_first", "scale"),
    [
        ("float32", 4, "none", True, False, None),
        ("float32", 2, "bool", False, True, 0.3),
        ("bfloat16", 4, "bias", False, False, None),
        ("float16", 1, "none", True, True, None),
    ],
)
def test_the_function_keeps_the_error_rule_and_its_strides(
    served, dtype, heads_k, mask, is_causal, rows_first, scale
):
    given = (heads_k, masks()[mask], is_causal, rows_first, scale)
    plain, exact = (results(getattr(torch, x), *given) for x in (dtype, "float64"))
    with sdpa():
        got = results(getattr(torch, dtype), *given)
    assert served == [True, True]
    for name, x in got.items():
        assert x.stride() == plain[name].stride()
        assert largest_error(x, exact[name]) <= allowed_error(name, dtype, exact[name], plain[name])


def test_what_kernels_do_not_serve_is_torchs(served):
    with sdpa():
        for x in (random(1, 2, 9, 16, dtype=torch.float64), random(1, 2, 9, 4)):
            got = scaled_dot_product_attention(x.requires_grad_(), x, x, is_causal=True)
            torch.autograd.grad(got.sum(), x)
    assert served == [False] * 4


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_backward_takes_the_other_kernels_results(served, ours_first):
    q, k, v = (random(2, 4, n, 16, seed=n).requires_grad_() for n in (65, 70, 70))
    mask = masks()["bool"]  # a row sees no key
    wanted = torch.autograd.grad(
        scaled_dot_product_attention(q, k, v, mask).square().sum(), (q, k, v)
    )
    switch = (sdpa.enable, sdpa.disable) if ours_first else (sdpa.disable, sdpa.enable)
    with contextlib.nullcontext() if ours_first else sdpa():
        switch[0]()
        loss = scaled_dot_product_attention(q, k, v, mask).square().sum()
        switch[1]()
        got = torch.autograd.grad(loss, (q, k, v))
    assert served == [True]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


class Padded(nn.Module):
    """An encoder of two layers, told which keys are padding."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        padding = torch.arange(x.shape[1]) > torch.tensor([[15], [30]])
        return self.encoder(x, src_key_padding_mask=padding)


MODULES = {
    "multi-head": lambda: nn.MultiheadAttention(32, 4, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True),
    "decoder": lambda: nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0, batch_first=True),
    "padded": Padded,
    "transformer": lambda: nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_modules(served, name, training):
    x = random(2, 20, 32)
    module = MODULES[name]().train(training).requires_grad_(training)
    given = (x,) * {"multi-head": 3, "decoder": 2, "transformer": 2}.get(name, 1)

    def call():
        out = module(*given, **({"need_weights": False} if name == "multi-head" else {}))
        out = out[0] if isinstance(out, tuple) else out
        if not training:
            return (out,)
        return out, *torch.autograd.grad(out.square().sum(), tuple(module.parameters()))

    wanted = call()
    with sdpa():
        got = call()
    assert served and all(served)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_compiled_traced_and_exported(served):
    class Block(nn.Module):
        def forward(self, q, k):
            return scaled_dot_product_attention(q, k, k, is_causal=True) * 2

    block, (q, k) = Block(), (random(2, 4, 20, 16, seed=n) for n in (1, 2))
    wanted = block(q, k)
    traced = torch.jit.trace(block, (q, k))
    file = io.BytesIO()
    torch.export.save(torch.export.export(block, (q, k)), file)
    exported = torch.export.load(io.BytesIO(file.getvalue())).module()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with sdpa():
        for other in (traced, exported, compiled):
            served.clear()
            torch.testing.assert_close(other(q, k), wanted)
            assert served == [True]


def test_the_last_exit_restores_torch(served):
    x = random(1, 2, 9, 16)
    fast_path = torch.backends.mha.get_fastpath_enabled()

    def calls():
        served.clear()
        scaled_dot_product_attention(x, x, x)
        return len(served)

    inside, leave = threading.Event(), threading.Event()

    def other():
        with sdpa():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with sdpa():
        thread.start()
        assert inside.wait(60)
        sdpa.enable()
    assert calls() == 1 and sdpa.enabled
    assert not torch.backends.mha.get_fastpath_enabled()
    leave.set()
    thread.join()
    assert calls() == 1
    sdpa.disable()
    assert calls() == 0 and not sdpa.enabled
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    with pytest.raises(RuntimeError, match="without an sdpa"):
        sdpa.disable()
    with pytest.raises(KeyError), sdpa():
        raise KeyError
    assert calls() == 0


def test_torchs_list_of_implementations(served):
    from torch.nn import attention

    x = random(1, 2, 9, 16)
    assert sdpa.register() == "tvm" and "tvm" in attention.list_flash_attention_impls()
    assert not sdpa.enabled
    for _ in range(2):  # activating anew restores first
        attention.activate_flash_attention_impl("tvm")
        scaled_dot_product_attention(x, x, x)
    assert served == [True, True] and attention.current_flash_attention_impl() == "tvm"
    attention.restore_flash_attention_impl()
    scaled_dot_product_attention(x, x, x)
    assert len(served) == 2 and not sdpa.enabled
    assert attention.current_flash_attention_impl() is None
    attention.activate_flash_attention_impl("tvm")
    sdpa.disable()  # one too many
    attention.restore_flash_attention_impl()
    assert attention.current_flash_attention_impl() is None and not sdpa.enabled
    with pytest.raises(TypeError, match="name=5 must be a str"):
        sdpa.register(5)
    for name in ("", "FA4"):
        with pytest.raises(ValueError, match="must be a new name, not of FA3, FA4"):
            sdpa.register(name)


def test_kernels_of_gpus_are_put_where_torch_has_its_own(served):
    """Torch's kernels for CUDA are not in builds for CPUs: others stand in for them here.

    Called past the dispatcher's choice, which needs a GPU, on tensors of the CPU.
    """
    names = [name for name, key, _ in sdpa_kernels.PAIRS if key == "CUDA"]
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{names[0]}", "CUDA"):
        pytest.skip("torch's own kernels must not be called with tensors of the CPU")
    theirs = torch.library.Library("aten", "IMPL")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def call(name, *given):
        return torch.library.get_kernel(f"aten::{name}", "CUDA").call_boxed(keys, *given)

    try:
        for name in names:
            theirs.impl(name, lambda *_, **__: pytest.fail("torch's own kernel"), "CUDA")
        q, k = (random(2, 4, n, 16, seed=n) for n in (20, 30))
        with sdpa():
            out, lse, *others = call(names[0], q, k, k, 0.0, True)
            grads = call(names[1], out, q, k, k, out, lse, *others[:4], 0.0, True, *others[4:6])
        x = [t.clone().requires_grad_() for t in (q, k, k)]
        wanted = scaled_dot_product_attention(*x, is_causal=True)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(tuple(grads), torch.autograd.grad(wanted, x, out))
        assert served == [True, True]
        with pytest.raises(pytest.fail.Exception):
            call(names[0], q, k, k)
    finally:
        theirs._destroy()


def test_kernels_of_gpus_answer_as_torchs_fake_kernels(served):
    """On CPU tensors: there is no GPU here that the dispatcher could choose."""
    forward, backward = (kernel for _, key, kernel in sdpa_kernels.PAIRS if key == "CUDA")
    q, k = (random(2, 4, n, 16, seed=n) for n in (20, 30))
    out, lse, *others = forward(None, None, q, k, k, 0.0, True)
    with torch.device("meta"):
        fake = torch.ops.aten._scaled_dot_product_flash_attention(
            *(x.to("meta") for x in (q, k, k)), 0.0, True
        )
    assert [getattr(x, "shape", x) for x in (out, lse, *others)] == [
        getattr(x, "shape", x) for x in fake
    ]
    x = [t.clone().requires_grad_() for t in (q, k, k)]
    wanted = scaled_dot_product_attention(*x, is_causal=True)
    torch.testing.assert_close(out, wanted)
    grads = backward(
        None, None, out, q, k, k, out, lse, None, None, 20, 30, 0.0, True, *others[4:6]
    )
    torch.testing.assert_close(grads, torch.autograd.grad(wanted, x, out))
