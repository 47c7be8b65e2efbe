"""The recurrence over keys that a plain definition of attention is equal to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from .algebra import Algebra
from .blocks import Block, Rejected, read
from .formula import (
    Expr,
    call_name,
    evaluate,
    fill,
    is_call,
    is_named,
    named,
    names,
    number,
    write,
)
from .states import ROW_NUMBERS, State, check_coverage, check_hidden, start_values, state_of


@dataclass(frozen=True)
class Recurrence:
    """One pass over the keys of a row, in any parts: proven equal to the definition it is read of.

    Formulas are over named float32 values: ``x`` the masked score, ``p`` the weight of a key, ``v``
    its value (times ``z`` of dropout, where there is that), each state by its name, numbers of a
    row by the name of their input.

    rows: states that are a number a row, in order. product: the state that is a row of the output,
    a sum of p v. weight: p of x and rows. inverse: what the product is multiplied by at the end;
    None for nothing. statistics: the other results by the name of their block, over states, and
    over results before them ("lse"). exact: states that must not lag behind, with the reason; of
    every other maximum any value serves, since repairs take it out of all results. factor: that of
    all states that read a maximum; growth: how far that has moved, with factor = e**-growth; both
    None where no state reads one. hidden: the score of a key that is not seen. blocks: the names of
    the definition's blocks.
    """

    rows: tuple[State, ...]
    product: State
    weight: Expr
    inverse: Expr | None
    statistics: dict[str, Expr]
    exact: dict[str, str]
    factor: Expr | None
    growth: Expr | None
    hidden: float
    blocks: tuple[str, ...]

    @property
    def states(self) -> tuple[State, ...]:
        """All states, the product last."""
        return (*self.rows, self.product)

    def __getitem__(self, name: str) -> State:
        return next(state for state in self.states if name in (state.name, state.block))

    def __contains__(self, block: str) -> bool:
        return block in self.blocks

    @property
    def exponent(self) -> Expr | None:
        """y where the weight is e**y, else None."""
        is_exponential = is_call(self.weight) and call_name(self.weight) == "exp"
        return self.weight.args[0] if is_exponential else None


def derive(plain: tirx.PrimFunc) -> Recurrence:
    """The recurrence of ``plain``, a forward definition; Rejected names the block that has none."""
    blocks, algebra = read(plain), Algebra()
    weight = blocks["exp"].value
    if not names(weight) - {s.result for s in blocks.after_mask} <= {"x"}:
        raise Rejected("exp", f"{write(weight)} depends on more than a score and its row's states")
    states: list[State] = []
    for block in blocks.after_mask:
        if block.op is not None:
            if block.name != "pv" and "v" in names(block.value):
                raise Rejected(block.name, "reads more of a key than its score")
            states.append(state_of(block, weight, states, algebra))
            check_hidden(block, weight, blocks.hidden)
    check_coverage(states)
    product = next(state for state in states if state.block == "pv")
    value = named("z") * named("v") if "drop" in blocks.names else named("v")
    if not algebra.equal(product.term, named("p") * value):
        raise Rejected("pv", f"{write(product.term)} is not a weight times a value")
    finals = {b.name: b for b in blocks.after_mask if b.op is None and b.name != "exp"}
    _check_empty(finals, states)
    statistics = {name: b.value for name, b in finals.items() if name != "out"}
    return Recurrence(
        tuple(state for state in states if state is not product),
        product,
        weight,
        _inverse(finals["out"], product.name),
        statistics,
        _exact(states, finals, algebra),
        *_factor(states, algebra),
        blocks.hidden,
        blocks.names,
    )


def _factor(states: list[State], algebra: Algebra) -> tuple[Expr | None, Expr | None]:
    """(factor, growth) that the states share; Rejected where one has a factor of its own."""
    repaired = [state for state in states if state.factor is not None]
    if not repaired:
        return None, None
    first = repaired[0]
    for state in repaired[1:]:
        if not algebra.equal(state.factor, first.factor):
            raise Rejected(
                state.block, f"is repaired by {write(state.factor)}, {first.block} by"
                f" {write(first.factor)}",
            )  # fmt: skip
    return first.factor, algebra.growth(first.factor)


def _inverse(out: Block, product: str) -> Expr | None:
    """f of out = ``product`` f, as it is written."""
    value = out.value
    if is_named(value) and value.name == product:
        return None
    if isinstance(value, (tirx.Mul, tirx.Div)):
        a, b = value.a, value.b
        if isinstance(value, tirx.Mul) and is_named(b) and b.name == product:
            a, b = b, a
        if is_named(a) and a.name == product and product not in names(b):
            return b if isinstance(value, tirx.Mul) else number(1.0) / b
    raise Rejected("out", f"{write(value)} is not {product} times a number of its row")


def _exact(states: list[State], finals: dict[str, Block], algebra: Algebra) -> dict[str, str]:
    """Maxima whose value a result tells, once all is repaired: name -> why."""
    found = {}
    for moving in states:
        if not any(moving.name in s.reads for s in states):
            continue
        other = {moving.name: named(f"{moving.name}_new")}
        unmoved = {f"{s.name}_{when}": named(s.name) for s in states for when in ("old", "new")}
        del unmoved[f"{moving.name}_new"]
        for s in states:
            if moving.name in s.reads:
                other[s.name] = fill(s.repaired, unmoved)
        for name, block in finals.items():
            if not algebra.equal(block.value, fill(block.value, other)):
                found[moving.name] = f"{name} = {write(block.value)} tells its values apart"
    return found


def _check_empty(finals: dict[str, Block], states: list[State]) -> None:
    """A row without a visible key has results: no NaN, and no output that is not finite."""
    for row in ROW_NUMBERS:
        values = start_values(states, row)
        for name, block in finals.items():
            free = {other: row for other in names(block.value) if other not in values}
            with np.errstate(all="ignore"):
                result = float(evaluate(block.value, {**free, **values}))
            fine = math.isfinite(result) or (name != "out" and result == -math.inf)
            if not fine:
                raise Rejected(
                    name, f"{write(block.value)} is {result:g} for a row without a visible key"
                )
            values[block.name] = result
