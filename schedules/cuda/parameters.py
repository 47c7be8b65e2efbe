"""Parameters of kernels by their public names."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...definition.signature import Signature
from ...problem.arguments import RNG
from .builder import Tensor


def parameter_tensors(sig: Signature, names: Sequence[str], depth: int = 0) -> list[Tensor]:
    """The arguments called ``names``, in order; ``depth``: columns of dq_acc, of which GPUs have
    one copy."""
    sums = {"copies": 1, "rows": tirx.Var("rows_pad", "int64"), "head_dim_pad": depth}
    return [Tensor(name, sig.view(name, **sums), sig.dtype(name)) for name in names]


def attention_tensors(sig: Signature, names: Sequence[str], depth: int = 0) -> list[Tensor]:
    """The same of a kernel that drops weights, where the spec does."""
    return parameter_tensors(sig, (*names, *[RNG] * sig.spec.dropout), depth)
