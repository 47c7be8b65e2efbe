"""Parameters of kernels by their public names."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from ...definition.signature import Signature, View
from ...problem.spec import AttentionSpec
from .builder import Tensor

ROW_STATISTICS = ("lse", "lse_low", "dlse", "delta", "row_max", "row_sum")


def parameter_tensors(
    sig: Signature, spec: AttentionSpec, names: Sequence[str], depth: int = 0
) -> list[Tensor]:
    """The parameters called ``names``, in order; ``depth``: columns of dq_acc.

    Row statistics (B, H, Sq) are float32, tensors of rows in the dtype of ``spec``.
    """
    views = {
        "q": sig.query("q"), "k": sig.key("k"), "v": sig.value("v"), "out": sig.output("o"),
        "dout": sig.output("do"), "dq": sig.query("dq"), "dk": sig.key("dk"), "dv": sig.value("dv"),
    }  # fmt: skip
    rows = View(sig.rows, ())
    padded = tirx.Var("rows_pad", "int64")
    sums = View((1, *sig.rows[:2], padded, depth), ())
    tensors = []
    for name in names:
        if name == "dq_acc":
            tensors.append(Tensor(name, sums, "float32"))
        elif name in ROW_STATISTICS:
            tensors.append(Tensor(name, rows, "float32"))
        else:
            tensors.append(Tensor(name, views[name], spec.dtype))
    return tensors
