"""The call of linear attention's kernel: one product of sums, forward and in every gradient.

Rows of q, k and v have one more column, in float32 (q_extra, k_extra, v_extra): with the hats,

    out^_i = r_i sum_j g^(i - j) (q^_i . k^_j) w_j v^_j        j <= i where the spec is causal

A column of ones beside v makes the normaliser, out_extra. The gradients of this product are three
products of the same kind, of the same tensors in other places (docs/linear_attention.md).
"""

from __future__ import annotations

from dataclasses import replace

from .argument import Argument
from .sequences.shapes import Shapes
from .spec import AttentionSpec

# Whether rows are walked from the last to the first; whether r_i = 1 / out_extra_i (0 where that is
# 0), out_weight being left unread.
REVERSE = Argument("reverse", (), "number", "int32", limits=(0, 1))
NORMALIZE = Argument("normalize", (), "number", "int32", limits=(0, 1))
# The state's age at the first row: 0 where that sees it as it is, 1 where it is what is behind the
# row before: the first then sees g times it.
STATE_AGE = Argument("state_age", (), "number", "int32", limits=(0, 1))
LINEAR_NUMBERS = (REVERSE, NORMALIZE, STATE_AGE)


def gradient_spec(spec: AttentionSpec) -> AttentionSpec:
    """The spec of dQ and dK, whose queries and keys are rows of v and whose values are of k; dV is
    of ``spec`` itself."""
    return replace(spec, head_dim=spec.head_dim_v, head_dim_v=spec.head_dim)


def linear_table(shapes: Shapes) -> tuple[Argument, ...]:
    """The arguments of direction "linear".

    decay: g of each head. state: of those before the first row, which sees g^state_age times it;
    state_out, what is behind the last of n rows, sum_j g^(n - 1 - j) w_j k^_j v^_j: what a row
    behind them sees is g times that. So age 1 goes on from a call to the next, and with 0 no
    gradient divides by g. Both have Ds rows: D + 1, or D where nothing is beside q and k: q_extra
    and k_extra are zeros then. parts: sums of runs of the keys, that many at once.
    """

    def of_queries(name: str, role: str = "input") -> Argument:
        return Argument(name, ("B", "H", "Sq"), role, "float32")

    def of_keys(name: str) -> Argument:
        return Argument(name, ("B", "Hk", "Sk"), "input", "float32")

    def sums(name: str, role: str, *shape: str) -> Argument:
        return Argument(name, (*shape, "Dv+1"), role, "float32", dense=True)

    return (
        Argument("q", (*shapes.queries, "H", "D"), "input"),
        Argument("k", (*shapes.keys, "Hk", "D"), "input"),
        Argument("v", (*shapes.keys, "Hk", "Dv"), "input"),
        of_queries("q_extra"),
        of_keys("k_extra"),
        of_keys("v_extra"),
        of_keys("key_weight"),
        of_queries("out_weight"),
        Argument("decay", ("H",), "input", "float32", dense=True),
        sums("state", "input", "B", "H", "Ds"),
        Argument("out", (*shapes.queries, "H", "Dv"), "output"),
        of_queries("out_extra", "output"),
        sums("state_out", "output", "B", "H", "Ds"),
        sums("parts", "workspace", "splits", "B", "H", "D+1"),
    )
