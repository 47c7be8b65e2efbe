"""What kernels of warp groups ask of a spec, whatever they compute."""

from __future__ import annotations

from collections.abc import Collection

from ....problem.spec import AttentionSpec
from ..arch import CudaArch


def operand_reasons(
    spec: AttentionSpec, arch: CudaArch, sequences: Collection[str] = ("dense",)
) -> list[str]:
    """Why operands of ``spec`` cannot be brought by TMA and multiplied by wgmma on ``arch``.

    sequences: the kinds that the kernel knows the places of.
    """
    piece = 16 // spec.element.bytes
    checks = [
        (not arch.warp_groups, f"{arch.name} has no products of warp groups: sm_90a has"),
        (
            spec.element.operand not in ("f16", "bf16"),
            f"dtype={spec.dtype} must be float16 or bfloat16",
        ),
        (
            spec.sequences not in sequences,
            f"sequences={spec.sequences} must be {' or '.join(sequences)}",
        ),
        (
            spec.head_dim % piece or spec.head_dim_v % piece,
            f"head_dim={spec.head_dim}, head_dim_v={spec.head_dim_v} must be multiples of {piece}: "
            "strides of a tensor map are multiples of 16 bytes",
        ),
    ]
    return [text for wrong, text in checks if wrong]
