"""A kernel that is called directly checks how shapes fit, and does small problems by itself."""

from __future__ import annotations

import ctypes

import pytest
import torch

pytest.importorskip("tvm")

from tvm_flash.codegen.build import build
from tvm_flash.frontend.ops import spec_json
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.arranged import arranged
from tvm_flash.runtime.loader import opened
from tvm_flash.runtime.openmp import torch_openmp
from tvm_flash.verify.rule import allowed_error, largest_error

SPEC = AttentionSpec(dtype="float32", head_dim=16, alibi=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("direct") / "kernels"
    return opened(build([SPEC], path=folder, buckets=("tiny", "decode")))


@pytest.fixture(scope="module")
def kernels(library):
    """By direction and bucket."""
    return {(k.direction, bucket): k for k in library.kernels for bucket in k.buckets}


def arguments(kernel, **changed):
    """By name and in order, for 40 queries and 50 keys, but for the shapes ``changed``."""
    shapes = kernel.shapes((1, 4, 2, 40, 50), threads=1)
    shapes |= {"slopes": (1, 4)}
    for name, change in changed.items():
        shapes[name] = change(shapes[name]) if callable(change) else change
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def kv_heads(count):
    return dict.fromkeys(("k", "v"), (1, 50, count, 16))


WRONG = {
    "heads_no_multiple": (kv_heads(3), "multiple of num_kv_heads"),
    "no_kv_heads": (kv_heads(0), "multiple of num_kv_heads"),
    "more_kv_heads_than_heads": (kv_heads(8), "multiple of num_kv_heads"),
    "keys_without_values": ({"v": (1, 0, 2, 16)}, r"V\.shape|shape"),
    "values_without_keys": ({"k": (1, 0, 2, 16)}, r"V\.shape|shape"),
    "no_slopes": ({"slopes": (0, 4)}, "table0"),
    "slopes_of_other_heads": ({"slopes": (1, 3)}, "table0"),
}
WRONG_BACKWARD = {
    "too_few_rows": ({"dq_acc": lambda s: (*s[:3], s[3] - 1, s[4])}, "rows"),
    "no_copies": ({"dq_acc": lambda s: (0, *s[1:])}, "copy"),
}


def doors():
    for bucket in ("tiny", "decode"):
        yield from (("forward", bucket, name) for name in WRONG)
    yield from (("backward", "tiny", name) for name in WRONG if not name.endswith("heads"))
    yield from (("backward", "tiny", name) for name in WRONG_BACKWARD)


@pytest.mark.parametrize(("direction", "bucket", "name"), list(doors()))
def test_shapes_that_do_not_fit_are_refused(kernels, direction, bucket, name):
    changed, says = (WRONG | WRONG_BACKWARD)[name]
    if direction == "backward" and name in ("no_kv_heads", "heads_no_multiple"):
        changed = {**changed, "dk": changed["k"], "dv": changed["v"]}
    kernel = kernels[direction, bucket]
    with pytest.raises(ValueError, match=says):
        kernel(*arguments(kernel, **changed).values(), 0.25)


def test_a_refused_call_leaves_the_kernel_right(kernels):
    kernel = kernels["forward", "decode"]
    for _ in range(3):
        with pytest.raises(ValueError, match="multiple"):
            kernel(*arguments(kernel, **kv_heads(3)).values(), 0.25)
    given = arguments(kernel)
    for name in ("q", "k", "v", "slopes"):
        given[name].copy_(torch.randn(given[name].shape))
    kernel(*given.values(), 0.25)
    inputs = [given[name] for name in "qkv"]
    slopes = given["slopes"]
    exact, _ = attention_reference(*inputs, alibi_slopes=slopes, upcast=torch.float64)
    plain, _ = attention_reference(*inputs, alibi_slopes=slopes)
    assert largest_error(given["out"], exact) <= allowed_error("out", SPEC.dtype, exact, plain)


def test_operators_refuse_keys_without_values():
    q, k, v = torch.randn(1, 4, 2, 16), torch.randn(1, 50, 2, 16), torch.randn(1, 0, 2, 16)
    for tensors in ((q, k, v), (q, v, k)):
        with pytest.raises(ValueError, match="each key needs one value"):
            torch.ops.tvm_flash.attention_forward(*tensors, [], spec_json(SPEC), 0.25)


def test_in_another_order_a_library_zeroes_its_workspace(kernels):
    """The same bits as in its own order, of memory that was zeros."""
    kernel = next(k for (direction, _), k in kernels.items() if direction == "backward")
    given = arguments(kernel)
    for name in ("q", "k", "v", "out", "dout", "slopes"):
        given[name].normal_()
    given["lse"].fill_(4.0)
    own = [a.name if not a.is_table else "slopes" for a in kernel.arguments]
    given["softmax_scale"] = 0.25
    wanted = {name: x.clone() for name, x in given.items() if name != "softmax_scale"}
    kernel(*(wanted.get(name, 0.25) for name in own))
    given["dq_acc"].fill_(torch.nan)
    order = ["table0" if name == "slopes" else name for name in reversed(own)]
    function = arranged(kernel, order)
    function(*(given[name] for name in reversed(own)))
    assert all(torch.equal(given[name], wanted[name]) for name in ("dq", "dk", "dv"))
    with pytest.raises(TypeError, match="too few arguments"):
        function(given["q"])
    with pytest.raises(TypeError, match="a number in place of a tensor"):
        function(*[0.25] * len(own))
    make = kernel.module.get_function("tvm_flash_arranged")
    for wrong in ((), (kernel.function, 0), (1, 0, 0), (kernel.function, -1, 0)):
        with pytest.raises((TypeError, ValueError), match="tvm_flash_arranged"):
            make(*wrong)


@pytest.mark.parametrize(
    ("heads", "length", "teams"), [(1, 16, 0), (4, 16, 0), (64, 32, 1)], ids=str
)
def test_small_problems_start_no_team(library, kernels, heads, length, teams):
    """The OpenMP runtime replaced by one that counts."""
    started = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def run_team(work, data, threads, _flags):
        started.append(threads)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)(data)

    two, zero = (ctypes.CFUNCTYPE(ctypes.c_int)(lambda n=n: n) for n in (2, 0))
    bind = library.symbols.tvm_flash_bind_threads
    bind.restype = None
    q = torch.randn(1, length, heads, 16)
    out, lse = torch.empty_like(q), torch.empty(1, heads, length)
    bind(run_team, two, zero)
    try:
        kernels["forward", "tiny"](q, q, q, out, lse, torch.zeros(1, heads), 0.25)
    finally:
        real = torch_openmp()
        functions = (real.run_team, real.threads, real.in_parallel) if real else (None,) * 3
        bind(*map(ctypes.c_void_p, functions))
    assert started == [2] * teams
    expected, _ = attention_reference(q, q, q, upcast=torch.float64)
    assert largest_error(out, expected) < 1e-5
