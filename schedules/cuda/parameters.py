"""Parameters of kernels by their public names."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...definition.signature import Signature, View
from ...problem.spec import AttentionSpec
from .builder import Tensor


def parameter_tensors(
    sig: Signature, spec: AttentionSpec, names: Sequence[str], depth: int = 0
) -> list[Tensor]:
    """The arguments called ``names``, in order; ``depth``: columns of dq_acc, of which GPUs have
    one copy."""
    sums = {"copies": 1, "rows": tirx.Var("rows_pad", "int64"), "head_dim_pad": depth}
    return [Tensor(name, sig.view(name, **sums), sig.dtype(name)) for name in names]


def input_tensors(sig: Signature) -> list[Tensor]:
    """The inputs of the kind of softmax."""
    return [_dense(x) for x in sig.inputs.values()]


def rng_tensors(sig: Signature) -> list[Tensor]:
    """Seed and offset of dropout, where there is that."""
    return [] if sig.rng is None else [_dense(sig.rng)]


def _dense(x: tirx.Buffer) -> Tensor:
    return Tensor(x.name, View(tuple(x.shape), ()), x.dtype)
