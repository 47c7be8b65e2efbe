"""A backward pass's part of a recurrence: the weight from what was saved, and its derivative."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx

from ..derivative import differentiate
from .algebra import Algebra
from .blocks import Rejected
from .formula import (
    Expr,
    constant,
    evaluate,
    fill,
    is_named,
    named,
    names,
    nodes,
    number,
    rewrite,
    with_keys,
    write,
)
from .recurrence import Recurrence
from .states import ROW_NUMBERS, start_values


@dataclass(frozen=True)
class Gradient:
    """The normalised weight again from saved statistics, and the derivative through it.

    weight: of ``x`` and ``row``; without a sum over keys, of ``x`` alone. lowered: what becomes of
    the weight's exponent ``y`` by ``lse_low``, where that is saved. row: what is kept of the saved
    ``lse``, so that a row without a visible key has weights 0. derivative: by the score, of ``p``
    the normalised weight, ``dp`` = dO V^T and, where ``reads_delta``, ``delta``: a sum over columns
    of ``delta_term``, of ``out`` and ``dout``, that starts with ``delta_start``, of ``dlse``.
    """

    weight: Expr
    lowered: Expr | None
    row: Expr | None
    derivative: Expr
    delta_term: Expr = named("out") * named("dout")
    delta_start: Expr = -named("dlse")

    @property
    def exponent(self) -> Expr:
        """y of the weight e**y, where it is of that form."""
        return self.weight.args[0]

    @property
    def weight_low(self) -> Expr:
        """``weight`` with ``lse_low``."""
        return tirx.exp(fill(self.lowered, {"y": self.exponent}))

    @property
    def reads_delta(self) -> bool:
        """Whether the derivative takes delta."""
        return "delta" in names(self.derivative)


def derive_gradient(recurrence: Recurrence) -> Gradient:
    """The backward's formulas; Rejected where what was saved does not give the weight again."""
    algebra = Algebra()
    slope = _slope(recurrence)
    if not recurrence.rows:
        return Gradient(recurrence.weight, None, None, slope * named("dp"))
    lse = recurrence.statistics.get("lse")
    if lse is None or recurrence.inverse is None:
        raise Rejected("lse", "is missing: nothing that is saved gives the weights again")
    moving = _maximum_for(recurrence, algebra, lse)
    _check_derivative(recurrence, algebra, slope, lse)
    weight = fill(recurrence.weight, {moving: named("row")})
    low = _lowered(recurrence, algebra, weight, lse)
    row = _guarded(recurrence, weight, lse)
    derivative = named("p") * (named("dp") - named("delta"))
    return Gradient(weight, low, row, derivative)


def _slope(recurrence: Recurrence) -> Expr:
    """d weight / d x, as a formula of ``p``."""
    x = next((n for n in nodes(recurrence.weight) if is_named(n) and n.name == "x"), None)
    slope = differentiate(recurrence.weight, x)
    weight = recurrence.weight
    slope = rewrite(slope, lambda n: named("p") if n.same_as(weight) else None)
    if names(slope) - {"p"}:
        raise Rejected("exp", f"its derivative {write(slope)} is no function of the weight")
    return slope


def _maximum_for(recurrence: Recurrence, algebra: Algebra, lse: Expr) -> str:
    """The state that may be lse: with it the weight is normalised already, and no sum is left.

    A maximum of which any value serves may have the value for which nothing is left to divide by.
    """
    normalised = recurrence.weight * with_keys(recurrence.inverse)
    for state in recurrence.rows:
        if state.op == "sum" or state.name in recurrence.exact:
            continue
        at_lse = fill(recurrence.weight, {state.name: with_keys(lse)})
        if algebra.equal(at_lse, normalised):
            return state.name
    why = "".join(f"; {name} must be exact: {reason}" for name, reason in recurrence.exact.items())
    raise Rejected("lse", f"{write(lse)} does not give {write(normalised)} again{why}")


def _check_derivative(recurrence: Recurrence, algebra: Algebra, slope: Expr, lse: Expr) -> None:
    """dx = p (dp - sum of p dp - ...): of p = w f(l), lse = g(l) with dw/dx = w, f' = -f^2, g' = f.

    What is subtracted is delta: the sum of p dp over keys, which is that of dO o O over columns
    since out is the sum of p v, less dlse. The maximum is held fixed: no result depends on it.
    """
    sums = [state for state in recurrence.rows if state.op == "sum"]
    if len(sums) != 1 or not algebra.equal(sums[0].term, named("p")):
        raise Rejected(
            "row_sum", f"{len(sums)} sums, or not of the weights: no derivative is known"
        )
    if not algebra.equal(slope, named("p")):
        raise Rejected("exp", f"a normalised weight whose derivative is {write(slope)}, not p")
    total = named(sums[0].name)  # one variable for all its occurrences, as a derivative needs
    inverse, log = (fill(with_keys(e), {total.name: total}) for e in (recurrence.inverse, lse))
    if not algebra.equal(differentiate(inverse, total), number(-1.0) * inverse * inverse):
        raise Rejected("out", f"the derivative of f = {write(inverse)} by {total.name} is not -f f")
    if not algebra.equal(differentiate(log, total), inverse):
        raise Rejected(
            "lse", f"the derivative of {write(log)} by {total.name} is no weight's factor"
        )


def _lowered(recurrence, algebra: Algebra, weight: Expr, lse: Expr) -> Expr | None:
    """The exponent ``y`` of ``weight`` less what a float32 lse lost, where that is saved.

    Subtracted last: beside a large lse it would be rounded away.
    """
    low = recurrence.statistics.get("lse_low")
    if low is None:
        return None
    both = named("lse") + with_keys(low)
    if not algebra.equal(both, with_keys(lse)):
        raise Rejected("lse_low", f"lse + {write(with_keys(low))} is not {write(with_keys(lse))}")
    if recurrence.exponent is None or not algebra.equal(
        fill(weight, {"row": named("row") + named("lse_low")}),
        tirx.exp(weight.args[0] - named("lse_low")),
    ):
        raise Rejected("lse_low", f"does not join the exponent of {write(weight)}")
    return named("y") - named("lse_low")


def _guarded(recurrence: Recurrence, weight: Expr, lse: Expr) -> Expr:
    """The saved lse; where a row sees no key, the infinity that gives its keys weight 0."""
    saved = {value for n in nodes(lse) if (value := constant(n)) is not None and math.isinf(value)}
    for row in ROW_NUMBERS:
        values = start_values(list(recurrence.rows), row)
        values |= {name: row for name in names(lse) if name not in values}
        saved.add(float(evaluate(lse, values)))
    kept = named("lse")
    for value in sorted(saved):
        if _hidden_weight(recurrence, weight, value) == 0.0:
            continue
        ends = [e for e in (math.inf, -math.inf) if _hidden_weight(recurrence, weight, e) == 0.0]
        if not ends:
            raise Rejected("lse", f"a hidden key has no weight 0 where lse is {value:g}")
        kept = tirx.Select(tirx.EQ(kept, number(value)), number(ends[0]), kept)
    return kept


def _hidden_weight(recurrence: Recurrence, weight: Expr, row: float) -> float:
    return float(evaluate(weight, {"x": recurrence.hidden, "row": row}))
