"""The element types of q, k, v and out: one row for each, with all that depends on the type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DType:
    """An element type as the parts of this package see it.

    name: as torch and TVM call it, and as specs hold it. short: in names of kernels and files.
    written: as people write it on a command line. bytes: of an element. operand: what tensor cores
    multiply, as PTX calls it; three tf32 products make one of float32. exp2_degree: least degree of
    the polynomial that CPUs take for the exponential. Its relative error, 7.5e-8 (5), 3e-6 (4) or
    7.5e-5 (3), is near float32's own rounding (6e-8), or far below float16's (4.9e-4) and
    bfloat16's (3.9e-3). lse_round_off: what that polynomial may add to the error of lse, which is
    the logarithm of a sum of such exponentials.
    """

    name: str
    short: str
    written: str
    bytes: int
    operand: str
    exp2_degree: int
    lse_round_off: float

    @property
    def torch(self) -> torch.dtype:
        """The torch.dtype of that name; torch is imported when it is first asked for."""
        import torch

        return getattr(torch, self.name)


DTYPES = {
    row.name: row
    for row in (
        DType("float32", "f32", "fp32", 4, "tf32", exp2_degree=5, lse_round_off=2e-5),
        DType("bfloat16", "bf16", "bf16", 2, "bf16", exp2_degree=3, lse_round_off=2e-4),
        DType("float16", "f16", "fp16", 2, "f16", exp2_degree=4, lse_round_off=2e-4),
    )
}
