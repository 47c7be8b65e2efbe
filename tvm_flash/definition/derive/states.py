"""Row states of a streaming pass: how each is repaired when another moves, with the proofs.

A sum whose term reads a maximum that is complete only after the last key is summed with the maximum
so far. When that moves from m_old to m_new, the sum is multiplied by a factor: that of the terms,
which must be the same for every key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .algebra import Algebra
from .blocks import Block, Rejected
from .formula import (
    LOWEST,
    Expr,
    call_name,
    children,
    constant,
    evaluate,
    fill,
    is_call,
    is_choice,
    is_named,
    named,
    names,
    number,
    rebuild,
    write,
)

KEY = frozenset(("x", "p", "v", "z"))  # what differs from key to key
ROW_NUMBERS = (0.25, -1.5, 3.0)  # what a proof in float32 takes for an input of the row
_IDENTITY = {"sum": 0.0, "max": LOWEST, "min": -LOWEST}


@dataclass(frozen=True)
class State:
    """A reduction over keys, kept for each row (``pv``: for each element of an output row).

    start: before the first key, over numbers of the row and states before it. term: what a key
    adds, as written; reads: the states in it. factor: what the state is multiplied by when those
    move from ``<name>_old`` to ``<name>_new``, None where it reads none. nothing: what a part of
    the keys that is merged later starts with; ``start`` counts once, in the merge.
    """

    name: str
    block: str
    op: str
    start: Expr
    term: Expr
    reads: tuple[str, ...]
    factor: Expr | None

    @property
    def repaired(self) -> Expr:
        """The state after what it reads has moved; also a part's share in the merged state."""
        old = named(f"{self.name}_old")
        return old if self.factor is None else old * self.factor

    @property
    def nothing(self) -> float:
        """The identity of ``op``."""
        return _IDENTITY[self.op]

    @property
    def starts_with_nothing(self) -> bool:
        """Whether the definition's start is no share of the result."""
        return constant(self.start) == self.nothing


def state_of(block: Block, weight: Expr, before: list[State], algebra: Algebra) -> State:
    """The state of a reduction, after those ``before`` it; Rejected where a proof fails."""
    term = fill(block.value, {"p": weight})
    reads = tuple(state.name for state in before if state.name in names(term))
    factor = None
    if reads:
        if block.op != "sum":
            raise Rejected(block.name, f"a {block.op} that reads {', '.join(reads)} has no repair")
        factor = _factor(block, term, reads, algebra)
    state = State(block.result, block.name, block.op, block.start, block.value, reads, factor)
    _check_start(state, before, algebra)
    return state


def check_hidden(block: Block, weight: Expr, hidden: float) -> None:
    """A hidden key adds nothing, so that tiles of them need not be visited; else Rejected."""
    term = fill(block.value, {"p": weight})
    value = _at_hidden(term, hidden)
    if value not in {"sum": (0.0,), "max": (-math.inf,), "min": (math.inf,)}[block.op]:
        raise Rejected(
            "mask", f"a hidden key has the score {hidden:g}, of which block {block.name} keeps"
            f" {write(fill(term, {'x': number(hidden)}))}",
        )  # fmt: skip


def check_coverage(states: list[State]) -> None:
    """A maximum that does not start at the lowest number has its start in a sum; else Rejected.

    Scores far below that start underflow: they may be dropped beside it, and not beside nothing.
    """
    for state in states:
        if state.op == "sum" or state.starts_with_nothing:
            continue
        values = start_values(states, ROW_NUMBERS[0])
        shares = [float(values[s.name]) for s in states if state.name in s.reads]
        if max(shares, default=0.0) < 0.5:
            raise Rejected(
                state.block, f"starts at {write(state.start)}, of which no sum has a share: scores"
                " far below would count as none",
            )  # fmt: skip


def at(e: Expr, suffix: str, reads: tuple[str, ...]) -> Expr:
    """``e`` with the states ``reads`` as they were ("old") or are ("new")."""
    return fill(e, {name: named(f"{name}_{suffix}") for name in reads})


def _factor(block: Block, term: Expr, reads: tuple[str, ...], algebra: Algebra) -> Expr:
    new, old = at(term, "new", reads), at(term, "old", reads)
    factor, rest = algebra.ratio(new, old)
    moved = f"when {', '.join(reads)} moves, the sum of {write(term)}"
    if rest:
        left = write(algebra.expression(rest))
        raise Rejected(block.name, f"{moved} is repaired by no factor: {left} is left over")
    if algebra.names(factor) & KEY:
        depends = write(algebra.expression(factor))
        raise Rejected(block.name, f"{moved} is repaired by {depends}, which depends on the key")
    if divided := algebra.divides(factor):
        zero = ", ".join(map(write, divided))
        raise Rejected(block.name, f"{moved} is repaired by a factor that divides by {zero}")
    return algebra.expression(factor)


def _check_start(state: State, before: list[State], algebra: Algebra) -> None:
    """The start follows the repair, and the step that leaves it is finite in float32."""
    reads = tuple(s.name for s in before if s.name in names(state.start) | set(state.reads))
    factor = number(1.0) if state.factor is None else state.factor
    if not state.starts_with_nothing and reads:
        moved = at(state.start, "old", reads) * factor
        if not algebra.equal(at(state.start, "new", reads), moved):
            raise Rejected(
                state.block, f"its start {write(state.start)} does not follow the factor"
                f" {write(factor)}",
            )  # fmt: skip
    for values, moved in _first_steps([*before, state], names(factor)):
        start = float(evaluate(state.start, values))
        if not math.isfinite(start):
            raise Rejected(state.block, f"starts at {start:g}, from {write(state.start)}")
        with np.errstate(invalid="ignore"):
            after = np.float32(start) * evaluate(factor, {**values, **moved})
        want = float(evaluate(state.start, {**values, **{s: moved[f"{s}_new"] for s in reads}}))
        if not abs(float(after) - want) <= 1e-5 * abs(want):
            raise Rejected(
                state.block, f"the factor {write(factor)} makes {float(after):g} of its start"
                f" {start:g} in float32",
            )  # fmt: skip


def _first_steps(states: list[State], others: frozenset[str]):
    """(values at the start, values around the first step) for several rows, in float32.

    The first step stays where it is (a block of keys that are all hidden), or goes to some score.
    """
    for score in (None, -20.0, 0.5, 20.0, 1e30):
        for row in ROW_NUMBERS:
            values, moved = {**dict.fromkeys(others, row), **start_values(states, row)}, {}
            for s in states:
                old = float(values[s.name])
                new = old if score is None else score
                new = {"max": max(old, new), "min": min(old, new)}.get(s.op, old)
                moved |= {f"{s.name}_old": old, f"{s.name}_new": new}
            yield values, moved


def start_values(states: list[State], row: float) -> dict:
    """Each state at its start, where every number of the row is ``row``."""
    values: dict = {}
    for s in states:
        known = {name: row for name in names(s.start) if name not in values}
        values |= known
        values[s.name] = evaluate(s.start, values)
    return values


def _at_hidden(e: Expr, hidden: float) -> float | str | None:
    """``e`` at a hidden key: a number, "finite", or None where that is not known."""
    if (value := constant(e)) is not None:
        return value
    if is_named(e):
        return hidden if e.name == "x" else "finite"
    if is_choice(e):
        return None
    parts = [_at_hidden(part, hidden) for part in children(e)]
    if None in parts or not parts:
        return None
    name = call_name(e) if is_call(e) else type(e).__name__
    if all(isinstance(part, float) for part in parts):
        operands = {f"a{n}": part for n, part in enumerate(parts)}
        return float(evaluate(rebuild(e, [named(name) for name in operands]), operands))
    infinite = [part for part in parts if isinstance(part, float) and math.isinf(part)]
    if name in ("Add", "Sub") and len(infinite) == 1:
        return infinite[0] if name == "Add" or parts[0] == infinite[0] else -infinite[0]
    if name == "Mul" and 0.0 in parts and not infinite:
        return 0.0
    return "finite" if name in ("Add", "Sub", "Mul") and not infinite else None
