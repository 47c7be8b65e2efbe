"""Under autocast tensors are cast as for torch's own attention, on every door."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import tvm_flash
from tvm_flash import attention, flash_attn_func
from tvm_flash import scaled_dot_product_attention as sdpa
from tvm_flash.frontend.values import autocast
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtypes=(torch.float32,) * 3):
    return [random(1, 20, 2, 16, seed=n, dtype=dtype) for n, dtype in enumerate(dtypes)]


DOORS = {
    "attention": attention,
    "flash_attn_func": flash_attn_func,
    "qkvpacked": lambda q, k, v: tvm_flash.flash_attn_qkvpacked_func(torch.stack((q, k, v), 2)),
    "kvpacked": lambda q, k, v: tvm_flash.flash_attn_kvpacked_func(q, torch.stack((k, v), 2)),
    "sdpa": lambda *x: sdpa(*(t.transpose(1, 2) for t in x)).transpose(1, 2),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_casts(door, dtype):
    """Result and gradients, backward inside and outside the region, against float64."""
    leaves = [x.requires_grad_() for x in inputs()]
    cast = [x.detach().to(dtype) for x in leaves]

    def results(function, leaves):
        out = function(*leaves)
        out = out[0] if isinstance(out, tuple) else out
        return out, *torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)

    with torch.autocast("cpu", dtype=dtype):
        got = results(DOORS[door], leaves)
    outside = torch.autograd.grad(got[0], leaves, torch.ones_like(got[0]))
    assert got[0].dtype == dtype and all(x.dtype == torch.float32 for x in got[1:])
    assert all(torch.equal(a, b) for a, b in zip(got[1:], outside, strict=True))
    exact = results(attention_reference, [x.double().requires_grad_() for x in cast])
    plain = results(attention_reference, [x.requires_grad_() for x in cast])
    for n, name in enumerate(("out", "dq", "dk", "dv")):
        allowed = allowed_error(name, str(dtype).removeprefix("torch."), exact[n], plain[n])
        assert largest_error(got[n], exact[n]) <= allowed, name


MIXED = [
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.float16),
    (torch.float16,) * 3,
    (torch.float64,) * 3,
    (torch.float64, torch.float32, torch.float32),
    (torch.int32, torch.float32, torch.float32),
]


@pytest.mark.parametrize("dtypes", MIXED, ids=str)
@pytest.mark.parametrize("region", [torch.bfloat16, torch.float16])
def test_dtypes_are_those_of_torch(dtypes, region):
    q, k, v = (x.transpose(1, 2) for x in inputs(dtypes))
    with torch.autocast("cpu", dtype=region):
        try:
            want = F.scaled_dot_product_attention(q, k, v)
        except RuntimeError:
            want = None
        if want is None or want.dtype == torch.float64:  # which it does not cast, and we have not
            with pytest.raises(TypeError, match=r"dtype"):
                sdpa(q, k, v)
            return
        got = sdpa(q, k, v)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bool], ids=str)
def test_masks_are_cast_as_torch_casts_them(dtype):
    """The lowest float32 is -inf in bfloat16: a row of it sees no key."""
    mask = random(20, 20, seed=5) * 3
    mask[3] = torch.finfo(torch.float32).min
    mask = mask > 0 if dtype == torch.bool else mask.to(dtype)
    q, k, v = (x.transpose(1, 2) for x in inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = (f(q, k, v, mask) for f in (sdpa, F.scaled_dot_product_attention))
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


def test_a_region_that_is_switched_off_casts_nothing():
    q, k, v = inputs()
    want = attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(attention(q, k, v), want)
        assert attention(q, k, v).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"k\.dtype"):
        attention(q, k.half(), v)


@pytest.fixture
def cuda_region():
    """Autocast for CUDA, also where there is none: torch.autocast would switch itself off."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.float16)
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


def test_each_device_has_its_own_region(cuda_region):
    with FakeTensorMode():
        for dtype in FLOATS:
            x = torch.empty(1, 4, 1, 32, device="cuda", dtype=dtype)
            assert autocast(x).dtype == torch.float16
            assert attention(x, x.float(), x.bfloat16()).dtype == torch.float16
        for dtype in (torch.float64, torch.int32, torch.bool):
            assert autocast(torch.empty(4, device="cuda", dtype=dtype)).dtype == dtype
        for device in ("cpu", "meta", "xpu"):
            x = torch.empty(4, device=device)
            assert autocast(x) is x
    q, k, v = inputs()
    assert attention(q, k, v).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16), FakeTensorMode():
        x = torch.empty(1, 4, 1, 32, device="cuda")
        assert attention(x, x, x).dtype == torch.float16


@pytest.mark.parametrize("inside", [True, False], ids=["region inside", "region outside"])
def test_compiled_regions_cast_too(inside):
    torch._dynamo.reset()
    leaves = [x.requires_grad_() for x in inputs()]

    def block(q, k, v):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            return attention(q, k.bfloat16(), v) if inside else attention(q, k, v)

    def results(function):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not inside):
            out = function(*leaves)
            grads = torch.autograd.grad(out.float().sin().sum(), leaves)
        return out, *grads

    def plain(q, k, v):
        return attention(q, k, v)

    function = block if inside else plain
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for got, want in zip(results(compiled), results(function), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    assert results(compiled)[0].dtype == torch.bfloat16
