"""The proof proves: outputs left out and bytes written beside them are found."""

from __future__ import annotations

import pytest
import torch

from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

import cuda_toys
from tvm.script import tirx as T

from tvm_flash.codegen import cache, cuda
from tvm_flash.ptx_interpreter import OutOfBounds, Uninitialised
from tvm_flash.schedules.cuda.program import CudaProgram, Launch
from tvm_flash.verify.buffers import StrayWrite, UnwrittenOutput
from tvm_flash.verify.plan import run_program


@pytest.fixture(scope="module")
def toy():
    program = cuda_toys.program("toy", "a", 64)
    return program, cuda.ptx_of(program)


@pytest.fixture
def tensors():
    q = torch.randn(1, 3, 2, 64, dtype=torch.float16)
    out, lse = torch.empty_like(q), torch.empty(1, 2, 3)
    return dict(zip(cuda_toys.PARAMETERS, (q, q, q, out, lse, 1.0), strict=True))


def test_outputs_are_poisoned_and_must_be_written(toy, tensors):
    tensors["v"] = torch.zeros(1, 3, 2, 64, dtype=torch.float16)
    with pytest.raises(UnwrittenOutput, match=r"384 of 384 elements of v .*v\[0, 0, 0, 0\]"):
        run_program(*toy, tensors, outputs=("out", "lse", "v"))
    assert tensors["v"].isnan().all()


def test_sums_that_the_caller_zeroed_keep_their_values(toy, tensors):
    tensors["v"] = torch.zeros(1, 3, 2, 64, dtype=torch.float16)
    run_program(*toy, tensors, outputs=("out", "lse", "v"), zeroed=("v",))
    assert (tensors["v"] == 0).all()


def test_inputs_cannot_be_written(toy, tensors):
    with pytest.raises(OutOfBounds, match="out"):
        run_program(*toy, tensors, outputs=("lse",))


def test_outputs_cannot_be_read_before_they_are_written(toy, tensors):
    program, ptx = toy
    second = CudaProgram("toy", program.parameters, program.launches[1:], written=program.written)
    with pytest.raises(Uninitialised, match="out"):
        run_program(second, ptx[1:], tensors)


def dense_rows(name: str):
    """``cuda_toys.scale_rows`` that declares strides and ignores them: TIRx goes by the layout."""

    @T.prim_func
    def func(qh: T.handle, oh: T.handle, softmax_scale: T.float32):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        B, Sq, H = T.int64(), T.int64(), T.int64()
        o0, o1, o2 = T.int64(), T.int64(), T.int64()
        q = T.match_buffer(qh, (B, Sq, H, 64), "float16")
        out = T.match_buffer(oh, (B, Sq, H, 64), "float16", strides=(o0, o1, o2, 1))
        T.device_entry()
        bx, by, bz = T.cta_id([T.cast(Sq, "int32"), T.cast(H, "int32"), T.cast(B, "int32")])
        tx = T.thread_id([64])
        out[bz, bx, by, tx] = q[bz, bx, by, tx] * T.cast(softmax_scale, "float16")

    return func


def test_bytes_between_the_rows_of_an_output_stay(tensors):
    arguments = ("q", "out", "softmax_scale")
    launch = Launch(dense_rows("toy_dense"), arguments, cuda_toys.rows, 64, 0)
    program = CudaProgram("toy", cuda_toys.PARAMETERS, (launch,))
    run_program(program, cuda.ptx_of(program), tensors, outputs=("out",))
    tensors["out"] = torch.empty(1, 3, 2, 80, dtype=torch.float16)[..., :64]
    with pytest.raises(StrayWrite, match="outside every output"):
        run_program(program, cuda.ptx_of(program), tensors, outputs=("out",))


def test_shapes_that_contradict_each_other(toy, tensors):
    tensors["out"] = torch.empty(1, 4, 2, 64, dtype=torch.float16)
    with pytest.raises(ValueError, match="Sq is 3 and 4"):
        run_program(*toy, tensors)


def test_compiled_texts_are_kept_by_content(monkeypatch, tmp_path):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path))
    made = []

    def make() -> bytes:
        made.append(1)
        return b"code"

    assert [cache.content("key", make) for _ in range(2)] == [b"code", b"code"]
    file = tmp_path / "cuda" / "key"
    file.write_bytes(file.read_bytes()[:-1])
    assert cache.content("key", make) == b"code"
    assert len(made) == 2
