"""A cache where a call fails, where nobody reads its numbers, and under PyTorch's modes."""

import pytest
import torch
from held_cache import CAPACITY, COS, SEQLENS, SIN, B, Held, append_to
from packed_problems import DIM, HEADS, KV_HEADS, int32, random
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tvm_flash import flash_attn_with_kvcache

with torch.inference_mode():
    OF_INFERENCE = torch.empty(B, 1, HEADS, DIM)

FAILURES = {
    "full": ({"cache_seqlens": int32(37, CAPACITY, 64)}, RuntimeError),
    "negative": ({"cache_seqlens": int32(37, -1, 64)}, ValueError),
    "padding": ({"cache_leftpad": int32(39, 0, 0)}, ValueError),
    "scale": ({"softmax_scale": float("inf")}, ValueError),
    "slopes": ({"alibi_slopes": torch.ones(HEADS + 1)}, ValueError),
    "heads": ({"q": random(B, 1, 3, DIM)}, ValueError),
    "values": ({"v": random(B, 2, KV_HEADS, DIM)}, ValueError),
    "overlapping memory for the result": (
        {"out": random(B, 1, 1, DIM).expand(-1, -1, 4, -1)},
        ValueError,
    ),
    "memory for the result that wants a gradient": (
        {"out": torch.empty(B, 1, HEADS, DIM, requires_grad=True)},
        ValueError,
    ),
    "a view for the result of a q that wants a gradient": (
        {"out": random(2, B, 1, HEADS, DIM)[0], "q": random(B, 1, HEADS, DIM).requires_grad_()},
        ValueError,
    ),
    "memory for the result of inference mode": ({"out": OF_INFERENCE}, ValueError),
    "positions without angles": ({"rotary_cos": COS[:50], "rotary_sin": SIN[:50]}, ValueError),
}


@pytest.mark.parametrize("store", ["rows", 16])
@pytest.mark.parametrize("name", FAILURES)
def test_a_call_that_fails_leaves_the_cache_as_it_was(name, store):
    changes, error = FAILURES[name]
    held, before = Held(store), Held(store)
    with pytest.raises(error):
        append_to(held, **changes)
    for now, was in ((held.k, before.k), (held.v, before.v)):
        assert torch.equal(now.view(torch.int32), was.view(torch.int32))


@pytest.mark.parametrize(
    "what", ["ragged_ops.resolve", "ragged_ops.from_layouts", "append_ops.resolve"]
)
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_no_kernel_and_no_memory_leave_the_cache_as_it_was(what, wants_gradient, monkeypatch):
    """Both kernels are found, and memory is taken, before a row is written."""

    def fail(*args, **options):
        raise MemoryError("no room")

    held, before, q = Held(16), Held(16), random(B, 1, HEADS, DIM)
    monkeypatch.setattr(f"tvm_flash.frontend.{what}", fail)
    with pytest.raises(MemoryError):
        append_to(held, q=q.requires_grad_(wants_gradient))
    assert torch.equal(held.k.view(torch.int32), before.k.view(torch.int32))


def test_what_does_not_fit_is_left_out_where_numbers_are_not_read():
    """As on GPUs: under a mode of dispatch nobody reads them. What fits is written all the same."""
    held, before = Held("rows"), Held("rows")
    rows = random(B, 4, KV_HEADS, DIM, seed=1)
    with FlopCounterMode(display=False):
        append_to(held, cache_seqlens=int32(37, CAPACITY - 1, CAPACITY), k=rows, v=rows)
    assert torch.equal(held.rows(0)[37:41], rows[0])
    assert torch.equal(held.rows(1)[-1], rows[1, 0])
    assert torch.equal(held.rows(1)[:-1].isnan(), before.rows(1)[:-1].isnan())
    assert torch.equal(held.rows(2).isnan(), before.rows(2).isnan())


def test_gradients_are_refused_not_wrong():
    held, q = Held(16), random(B, 1, HEADS, DIM).requires_grad_()
    new = random(B, 1, KV_HEADS, DIM).requires_grad_()
    out, _ = append_to(held, q=q, k=new)
    assert not held.k.requires_grad and held.k.grad_fn is None
    with pytest.raises(NotImplementedError, match="attention to a cache has no gradient"):
        out.sum().backward()


def test_caches_that_autograd_would_not_have_written():
    """Where columns lie apart K is copied back; nothing refuses that once V is written."""
    shape = (*Held("rows").k.shape[:-1], 2 * DIM)
    wide = torch.zeros(shape, requires_grad=True)
    with torch.inference_mode():
        of_inference = torch.zeros(shape)
    for memory in (wide, of_inference):
        held, rows = Held("rows"), random(B, 1, KV_HEADS, DIM, seed=1)
        held.k = memory[..., ::2]
        append_to(held, k=rows, v=rows)
        assert torch.equal(memory.detach()[0, 37, :, ::2], rows[0, 0])
        assert torch.equal(held.rows(0, held.v)[37], rows[0, 0])


def test_fake_tensors_get_shapes_and_leave_nothing_behind():
    mode, held = FakeTensorMode(), Held("rows")
    with mode:
        fake = lambda *shape: torch.empty(*shape)  # noqa: E731
        out = flash_attn_with_kvcache(
            fake(5, 2, HEADS, DIM), fake(5, 8, KV_HEADS, DIM), fake(5, 8, KV_HEADS, DIM),
            fake(5, 2, KV_HEADS, DIM), fake(5, 2, KV_HEADS, DIM),
            cache_seqlens=torch.empty(5, dtype=torch.int32),
        )  # fmt: skip
    assert out.shape == (5, 2, HEADS, DIM)
    assert append_to(held)[0].isfinite().all()


def test_a_compiled_call_attends_and_appends():
    torch._dynamo.reset()
    held, other, q = Held(16), Held(16), random(B, 1, HEADS, DIM)
    memory = torch.empty_like(q)
    k, v = (random(B, 1, KV_HEADS, DIM, seed=n) for n in (1, 2))

    def step(held, q, k, v, out=None):
        return held(q, k, v, COS, SIN, cache_seqlens=SEQLENS, causal=True, out=out)[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(other, q, k, v, memory), step(held, q, k, v))
    assert torch.equal(memory, step(held, q, k, v))
    assert torch.equal(held.k.nan_to_num(), other.k.nan_to_num())
