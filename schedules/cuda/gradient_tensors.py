"""Parameters of the backward kernels."""

from __future__ import annotations

from tvm import tirx

from ...definition.signature import Signature, View
from ...spec import AttentionSpec
from .builder import Tensor


def gradient_tensors(
    sig: Signature, spec: AttentionSpec, names: tuple[str, ...], depth: int = 0
) -> list[Tensor]:
    """Parameters of the backward kernels by their public names; ``depth``: columns of dq_acc."""
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
        elif name in ("lse", "dlse", "delta"):
            tensors.append(Tensor(name, rows, "float32"))
        else:
            tensors.append(Tensor(name, views[name], spec.dtype))
    return tensors
