"""Offsets beyond 2^31 elements, shared memory without bank conflicts, tiles that are skipped."""

from dataclasses import dataclass

import pytest
import torch
from interpreted import interpreted

from tvm_flash.problem.arguments import named_sizes
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.ptx_interpreter import DeviceMemory, launch
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.verify.plan import bind, grid_of, parsed
from tvm_flash.verify.rule import largest_error

# Elements between batches: products with it overflow 32 bits, and 31 with a sign.
APART = 3 * 2**31 + 8


@dataclass
class FarApart:
    """(B, S, H, D) whose batches lie ``APART`` elements from each other in device memory."""

    batches: torch.Tensor
    address: int

    @property
    def shape(self):
        return self.batches.shape

    def stride(self):
        return (APART, *self.batches.stride()[1:])

    def data_ptr(self):
        return self.address

    def map(self, memory, name, writable=False):
        self.bytes = [x.contiguous().view(torch.uint8).flatten().numpy() for x in self.batches]
        for n, part in enumerate(self.bytes):
            at = self.address + n * APART * self.batches.element_size()
            memory.map(f"{name}[{n}]", at, part, initialised=not writable, writable=writable)

    def result(self):
        parts = [torch.from_numpy(x).view(self.batches.dtype) for x in self.bytes]
        return torch.stack(parts).view(self.batches.shape)


def test_offsets_of_64_bits():
    spec = AttentionSpec(head_dim=64, dtype="float16")
    kernel = interpreted(spec, "forward")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, n, 2, 64, generator=generator).half() for n in (40, 70, 70))
    lse = torch.empty(3, 2, 40)
    memory = DeviceMemory()
    far = {
        name: FarApart(x, (n + 1) << 44)
        for n, (name, x) in enumerate({"q": q, "k": k, "v": v, "out": torch.empty_like(q)}.items())
    }
    for name, tensor in far.items():
        tensor.map(memory, name, writable=name == "out")
    memory.map("lse", lse.data_ptr(), lse.view(torch.uint8).flatten().numpy(), False, True)
    ((step, ptx),) = zip(kernel.program.launches, kernel.ptx, strict=True)
    arguments = bind(step, ptx, {**far, "lse": lse, "softmax_scale": 0.125})
    grid = grid_of(step, named_sizes((3, 2, 2, 40, 70)))
    ptx_kernel = parsed(ptx).kernels[f"{step.name}_kernel"]
    block = (step.threads, 1, 1)
    launch(ptx_kernel, grid, block, arguments, memory, shared_bytes=step.shared_bytes)
    exact, exact_lse = attention_reference(q, k, v, upcast=torch.float64)
    assert largest_error(far["out"].result(), exact) < 2e-3
    assert largest_error(lse, exact_lse) < 1e-5


def run(spec, seqlen=256, keys=0):
    """Reports of the forward and the backward kernels on one head; keys: default as queries."""
    generator = torch.Generator().manual_seed(0)
    keys = keys or seqlen

    def random(rows, columns):
        numbers = torch.randn(1, rows, 1, columns, generator=generator)
        return numbers.to(getattr(torch, spec.dtype))

    q, k, v = (
        random(seqlen, spec.head_dim),
        random(keys, spec.head_dim),
        random(keys, spec.head_dim_v),
    )
    out, lse = random(seqlen, spec.head_dim_v), torch.empty(1, 1, seqlen)
    given = {"q": q, "k": k, "v": v, "out": out, "dout": torch.randn_like(out), "lse": lse}
    given |= {"softmax_scale": spec.head_dim**-0.5, "window_left": 64}
    forward, backward = interpreted(spec, "forward"), interpreted(spec, "backward")
    values = backward.sizes((1, 1, 1, seqlen, keys), threads=1)
    for kernel in (forward, backward):
        kernel(*completed(kernel.arguments, given, new_tensors(values)).values())
    return [*forward.reports, *backward.reports]


@pytest.mark.parametrize(
    "head_dim",
    [40, 64, 96, 128, *(pytest.param(dim, marks=pytest.mark.sweep) for dim in (80, 192, 256))],
)
def test_no_bank_conflicts(head_dim):
    for report in run(AttentionSpec(head_dim=head_dim, dtype="float16"), 128):
        assert report.total_bank_conflicts == 0


def products(reports):
    return sum(n for report in reports for op, n in report.instructions.items() if "mma" in op)


def test_tiles_outside_the_mask_are_skipped():
    full = products(run(AttentionSpec(head_dim=64, dtype="float16"), 768))
    causal = AttentionSpec(head_dim=64, dtype="float16", causal=True)
    window = AttentionSpec(head_dim=64, dtype="float16", causal=True, window_left=True)
    # 768 rows are 6 query tiles of 128 forward, 6 key tiles of 128 backward.
    assert products(run(causal, 768)) / full < 0.6
    assert products(run(window, 768)) / full < 0.35


@pytest.mark.parametrize(("rows", "keys"), [(1, 16), (33, 33), (16, 97)])
def test_warps_without_rows_or_keys_make_no_products(rows, keys):
    """Tiles of 128 queries by 64 keys forward, of 32 by 128 backward, each of four warps of 32."""
    spec = AttentionSpec(head_dim=64, dtype="float16")
    (whole, *whole_backward), (forward, *backward) = (
        (products([one]) for one in run(spec, *sizes)) for sizes in ((128,), (rows, keys))
    )
    warps = -(-rows // 32)
    assert forward == whole * warps / 4 * -(-keys // 64) / 2
    # One of five products, dQ, is of all keys of a tile for all warps.
    share = (-(-keys // 32) + 1) / 5
    assert sum(backward) == sum(whole_backward) * warps / 4 * share
