"""TVM's lowering of TIRx kernels without its search for common subexpressions."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.backend.cuda import transforms as cuda_transforms
from tvm.tirx import compilation_pipeline

PIPELINE = "tvm_flash_cuda"


@tvm.transform.module_pass(opt_level=0)
def _lower(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """The passes of TVM's pipeline "tirx", in its order, but for CommonSubexprElim.

    That one makes kernel parameters of whatever the host can compute, so that a kernel's signature
    would no longer be its tensors' shapes and strides; nvcc finds the same subexpressions. The
    switch that TVM has for it reads an option that cannot be set.
    """
    passes = tirx.transform
    return tvm.ir.transform.Sequential(
        [
            passes.LowerTIRx(),
            tvm.s_tir.transform.UnifyThreadBinding(),
            passes.StmtSimplify(),
            passes.LowerTIRxOpaque(),
            passes.FlattenBuffer(),
            passes.BF16ComputeLegalize(),
            passes.NarrowDataType(32),
            passes.VectorizeLoop(True),
            passes.UnrollLoop(),
            passes.StmtSimplify(),
            passes.FP8ComputeLegalize(),
            passes.VerifyMemory(),
            passes.AnnotateEntryFunc(),
            passes.SplitHostDevice(),
            cuda_transforms.LowerIket(),
            passes.MakePackedAPI(),
            passes.FP8StorageLegalize(),
            passes.BF16StorageLegalize(),
        ]
    )(mod)


def _pipeline():
    _, finalize_host, finalize_device = compilation_pipeline.tirx_pipeline()
    return _lower, finalize_host, finalize_device


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
