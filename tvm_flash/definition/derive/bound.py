"""Derived formulas in one kernel's arithmetic, and a check that it used all of the definition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvm import tirx

from ..derivative import is_call
from ..scores import LN2
from .algebra import Algebra
from .blocks import Rejected
from .formula import (
    LOWEST,
    Expr,
    call_name,
    fill,
    is_named,
    named,
    number,
    rewrite,
    with_keys,
    write,
)
from .gradient import Gradient
from .recurrence import Recurrence

_COMBINE = {"sum": lambda a, b: a + b, "max": tirx.max, "min": tirx.min}
_NOTHING = number(0)
_NATURAL = {"m": named("m") * number(LN2)}
# Blocks of a backward definition that a kernel's formulas or products stand for.
BACKWARD_BLOCKS = ("delta", "scores", "score_mod", "mask", "p", "dp", "ds", "dq", "dk", "dv")


class _Bound:
    """Formulas filled in with a kernel's values; ``math`` gives its exp, None keeps the intrinsic.

    factor: what dropout multiplies the weights by that it keeps; None: there is no dropout. used:
    the blocks of the definition whose formulas were asked for.
    """

    def __init__(self, math: Any = None, factor: Expr | None = None):
        self.used: set[str] = set()
        self._factor = factor
        # GPUs have a base-2 logarithm alone.
        self._functions = {"log": lambda x: tirx.log2(x) * number(LN2)}
        if math is not None:
            self._functions |= {"exp": math.weight, "sigmoid": math.sigmoid}

    def exp(self, y: Expr) -> Expr:
        """e**y, of an exponent that a kernel has masked itself."""
        return self._functions.get("exp", tirx.exp)(y)

    def keep(self, value: Expr, is_kept: Expr) -> Expr:
        """``value`` of a key that dropout keeps, without its factor; 0 of another."""
        self.used.add("drop")
        return tirx.Select(is_kept, value, _NOTHING)

    def magnified(self, value: Expr) -> Expr:
        """A sum over the keys that dropout keeps, times its factor."""
        return value if self._factor is None else value * self._factor

    def _filled(self, block: str, formula: Expr, values: dict[str, Expr]) -> Expr:
        self.used.add(block)

        def replace(node: Expr) -> Expr | None:
            if is_named(node):
                return values[node.name]
            if not is_call(node) or call_name(node) not in self._functions:
                return None
            return self._functions[call_name(node)](rewrite(node.args[0], replace))

        return rewrite(formula, replace)

    def _check(self, expected: Iterable[str], used: Iterable[str]) -> None:
        if missing := set(expected) - self.used - set(used):
            raise AssertionError(f"a kernel without {', '.join(sorted(missing))} of its definition")


class BoundRecurrence(_Bound):
    """A recurrence for one kernel; m is the maximum of a row, l its sum."""

    def __init__(self, recurrence: Recurrence, math: Any = None, factor: Expr | None = None):
        super().__init__(math, factor)
        self.recurrence = recurrence

    @property
    def has_sum(self) -> bool:
        """Whether a row has states besides its output: a maximum and a sum."""
        return bool(self.recurrence.rows)

    @property
    def starts_with_nothing(self) -> bool:
        """Whether no state has a share before the first key."""
        return all(state.starts_with_nothing for state in self.recurrence.states)

    def start(self, name: str, **values: Expr) -> Expr:
        """State ``name`` before the first key, of numbers of the row and states before it."""
        state = self.recurrence[name]
        return self._filled(state.block, state.start, values)

    def nothing(self, name: str) -> Expr:
        """State ``name`` of no keys: what a part that is merged later starts with."""
        return number(self.recurrence[name].nothing)

    def join(self, name: str, a: Expr, b: Expr) -> Expr:
        """Two values of state ``name`` made with the same maximum."""
        state = self.recurrence[name]
        self.used.add(state.block)
        return _COMBINE[state.op](a, b)

    def weight(self, x: Expr, m: Expr | None = None) -> Expr:
        """The weight of a masked score ``x``, for the row's maximum ``m``."""
        return self._filled("exp", self.recurrence.weight, {"x": x, "m": m})

    def exponent(self, x: Expr, m: Expr) -> Expr:
        """y of the weight e**y; it scales as ``x`` and ``m`` do."""
        return self._filled("exp", self.recurrence.exponent, {"x": x, "m": m})

    def factor(self, old: Expr, new: Expr) -> Expr:
        """What sums are multiplied by when the maximum moves, or joins that of other parts."""
        return self._filled("exp", self.recurrence.factor, {"m_old": old, "m_new": new})

    def finite(self, m: Expr) -> Expr:
        """``m``, of which any value serves; the largest number for +inf.

        The weight of +inf is then +inf, and not NaN as that of NaN.
        """
        if "m" in self.recurrence.exact:
            raise Rejected("row_max", f"must be exact: {self.recurrence.exact['m']}")
        return tirx.min(m, number(-LOWEST))

    def repaired(self, value: Expr, old: Expr, new: Expr) -> Expr:
        """A sum of the keys before the maximum moved from ``old`` to ``new``, or of a part."""
        return value if self.recurrence.factor is None else value * self.factor(old, new)

    def growth(self, old: Expr, new: Expr) -> Expr:
        """How far the maximum has moved: the factor is e**-growth."""
        return self._filled("exp", self.recurrence.growth, {"m_old": old, "m_new": new})

    def inverse(self, l: Expr) -> Expr:
        """What the output is multiplied by at the end; 0 for a row without a visible key."""
        return self._filled("out", self.recurrence.inverse, {"l": l})

    def out(self, acc: Expr, inverse: Expr | None = None) -> Expr:
        """An element of the output, from the product and ``inverse`` of its row, if it has one."""
        self.used.add("out")
        return self.magnified(acc if self.recurrence.inverse is None else acc * inverse)

    def lse(self, m: Expr, l: Expr) -> Expr:
        """log of the sum of e**score of a row, -inf for an empty one."""
        return self._filled("lse", self.recurrence.statistics["lse"], {"m": m, "l": l})

    def lse_of_binary(self, m: Expr, l: Expr) -> Expr:
        """``lse`` of a row that sees a key, from a maximum in units of log 2."""
        written = (named("m") + tirx.log2(named("l"))) * number(LN2)
        in_natural = with_keys(fill(self.recurrence.statistics["lse"], _NATURAL))
        if not Algebra().equal(written, in_natural):
            raise Rejected("lse", f"{write(in_natural)} is not {write(written)}")
        return self._filled("lse", written, {"m": m, "l": l})

    def lse_low(self, lse: Expr, m: Expr, l: Expr) -> Expr:
        """What ``lse`` lost; it is read from memory or a register, or it would be folded away."""
        values = {"lse": lse, "m": m, "l": l}
        return self._filled("lse_low", self.recurrence.statistics["lse_low"], values)

    def check(self, statistics: Iterable[str], *used: str) -> None:
        """Raise AssertionError unless each block of the definition was used.

        statistics: those that the kernel writes. used: its products, and what its scores used.
        """
        unwritten = set(self.recurrence.statistics) - set(statistics)
        self._check(set(self.recurrence.blocks) - unwritten, used)


class BoundGradient(_Bound):
    """A gradient for one kernel."""

    def __init__(self, gradient: Gradient, math: Any = None, factor: Expr | None = None):
        super().__init__(math, factor)
        self.gradient = gradient

    @property
    def has_sum(self) -> bool:
        """Whether the weight takes a statistic of the row."""
        return self.gradient.row is not None

    @property
    def reads_delta(self) -> bool:
        """Whether the derivative takes delta."""
        return self.gradient.reads_delta

    def row(self, lse: Expr) -> Expr:
        """What ``weight`` takes of a saved ``lse``."""
        return self._filled("p", self.gradient.row, {"lse": lse})

    def weight(self, x: Expr, row: Expr | None = None, low: Expr | None = None) -> Expr:
        """The normalised weight of a masked score; low: lse_low, where that is saved."""
        formula = self.gradient.weight if low is None else self.gradient.weight_low
        return self._filled("p", formula, {"x": x, "row": row, "lse_low": low})

    def exponent(self, x: Expr, row: Expr) -> Expr:
        """y of the weight e**y, without lse_low; it scales as ``x`` and ``row`` do."""
        return self._filled("p", self.gradient.exponent, {"x": x, "row": row})

    def lowered(self, exponent: Expr, low: Expr) -> Expr:
        """``exponent`` with lse_low, in its unit."""
        return self._filled("p", self.gradient.lowered, {"y": exponent, "lse_low": low})

    def delta_start(self, dlse: Expr) -> Expr:
        """What delta is before the first column."""
        return self._filled("delta", self.gradient.delta_start, {"dlse": dlse})

    def delta_term(self, out: Expr, dout: Expr) -> Expr:
        """What a column adds to delta."""
        return self._filled("delta", self.gradient.delta_term, {"out": out, "dout": dout})

    def derivative(
        self, p: Expr, dp: Expr, delta: Expr | None = None, kept: Expr | None = None
    ) -> Expr:
        """The gradient by the masked score, of the normalised weight ``p``.

        kept: what dropout leaves of ``p``, above 0 where it keeps it; None: nothing to drop.
        """
        if self._factor is not None and kept is not None:
            dp = self.keep(self.magnified(dp), kept > _NOTHING)
        return self._filled("ds", self.gradient.derivative, {"p": p, "dp": dp, "delta": delta})

    def by_sink(self, p: Expr, delta: Expr) -> Expr:
        """The gradient by the score of a key without a value, as a sink is, of its weight ``p``."""
        return tirx.Select(p == _NOTHING, _NOTHING, self.derivative(p, _NOTHING, delta))

    def check(self, *used: str) -> None:
        """Raise AssertionError unless each block of the backward's definition was used."""
        unneeded = () if self.reads_delta else ("delta",)
        blocks = {*BACKWARD_BLOCKS, *["drop"] * (self._factor is not None)}
        self._check(blocks.difference(unneeded), used)
