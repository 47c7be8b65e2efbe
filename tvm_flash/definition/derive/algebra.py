"""A normal form of formulas, in which the ratio of two values of one term cancels.

A polynomial is {monomial: coefficient}. A monomial is (powers of atoms, exponent of e), where the
exponent is a polynomial again: exp(a) * exp(b) is one monomial with exponent a + b, and that is the
whole of the online softmax. Whatever is not +, -, *, /, exp, log, a cast or a choice is an atom,
known by its structure.
"""

from __future__ import annotations

import math

from tvm import tirx

from .formula import (
    Expr,
    call_name,
    children,
    constant,
    is_call,
    is_choice,
    is_named,
    names,
    number,
)

Powers = tuple  # of (atom, power), sorted
Monomial = tuple  # (Powers, frozen exponent)
Polynomial = dict  # Monomial -> float

ONE: Monomial = ((), ())
_LOG2 = math.log(2.0)


class Algebra:
    """Normal forms of formulas; it remembers the expression of each atom it has met."""

    def __init__(self):
        self.written: dict = {}  # atom -> expression

    def of(self, e: Expr) -> Polynomial:
        """The normal form of ``e``."""
        if (value := constant(e)) is not None:
            return self._number(value, e)
        if is_named(e):
            return self._atom(("named", e.name), e)
        if isinstance(e, (tirx.Add, tirx.Sub)):
            return add(self.of(e.a), self.of(e.b), 1.0 if isinstance(e, tirx.Add) else -1.0)
        if isinstance(e, tirx.Mul):
            return multiply(self.of(e.a), self.of(e.b))
        if isinstance(e, tirx.Div):
            return multiply(self.of(e.a), self._inverse(self.of(e.b)))
        if isinstance(e, tirx.Cast):
            return self.of(e.value)
        if is_choice(e):
            return self._choice(e)
        if is_call(e) and call_name(e) in ("exp", "exp2"):
            unit = 1.0 if call_name(e) == "exp" else _LOG2
            return self._exponential(multiply(self.of(e.args[0]), {ONE: unit}))
        if is_call(e) and call_name(e) in ("log", "log2"):
            unit = 1.0 if call_name(e) == "log" else 1.0 / _LOG2
            return multiply(self._logarithm(self.of(e.args[0])), {ONE: unit})
        return self._atom(self._key(e), e)

    def equal(self, a: Expr, b: Expr) -> bool:
        """Whether ``a`` and ``b`` are the same by the rules of the normal form."""
        return freeze(self.of(a)) == freeze(self.of(b))

    def ratio(self, a: Expr, b: Expr) -> tuple[Polynomial, Polynomial]:
        """(h, a - h b): h the monomial that leaves least of ``a``; a factor of it is nothing."""
        top, bottom = self.of(a), self.of(b)
        best = ({ONE: 1.0}, add(top, bottom, -1.0))
        for m, c in top.items():
            for n, d in bottom.items():
                h = {_product(m, _power(n, -1.0)): c / d}
                rest = add(top, multiply(h, bottom), -1.0)
                if len(rest) < len(best[1]):
                    best = (h, rest)
        return best

    def growth(self, e: Expr) -> Expr | None:
        """y of ``e`` = exp(-y), or None where it is not of that form."""
        ((powers, exponent), c), *others = self.of(e).items()
        if others or powers or c != 1.0:
            return None
        return self.expression({m: -d for m, d in exponent})

    def names(self, p: Polynomial) -> frozenset[str]:
        """The named values that ``p`` depends on."""
        found: frozenset[str] = frozenset()
        for powers, exponent in p:
            for atom, _ in powers:
                found |= names(self.written[atom])
            found |= self.names(dict(exponent))
        return found

    def divides(self, p: Polynomial) -> list[Expr]:
        """What ``p`` divides by or takes a root of: it must not be zero."""
        return [self.written[a] for powers, _ in p for a, n in powers if n < 0 or n != int(n)]

    def expression(self, p: Polynomial) -> Expr:
        """``p`` as an expression, terms with a plus first."""
        total = None
        for (powers, exponent), c in sorted(p.items(), key=lambda item: (item[1] < 0, repr(item))):
            term = self._term(powers, exponent, abs(c))
            if total is None:
                total = term if c > 0 else number(0) - term
            else:
                total = total + term if c > 0 else total - term
        return number(0) if total is None else total

    def _term(self, powers, exponent, coefficient: float) -> Expr:
        above = [_raised(self.written[a], n) for a, n in powers if n > 0]
        below = [_raised(self.written[a], -n) for a, n in powers if n < 0]
        if exponent:
            above.append(tirx.exp(self.expression(dict(exponent))))
        if coefficient != 1.0 or not above:
            above.insert(0, number(coefficient))
        value = above[0]
        for factor in above[1:]:
            value = value * factor
        for factor in below:
            value = value / factor
        return value

    def _atom(self, key, e: Expr) -> Polynomial:
        self.written.setdefault(key, e)
        return {(((key, 1.0),), ()): 1.0}

    def _number(self, value: float, e: Expr) -> Polynomial:
        if not math.isfinite(value):
            return self._atom(("number", str(value)), e)
        return {ONE: value} if value else {}

    def _inverse(self, p: Polynomial) -> Polynomial:
        """1 / p; of a sum, its first monomial comes out, so that h l + h c is h (l + c)."""
        if len(p) == 1:
            ((m, c),) = p.items()
            return {_power(m, -1.0): 1.0 / c}
        lead = min(p, key=repr, default=ONE)
        outside = {_power(lead, -1.0): 1.0 / p.get(lead, 1.0)}
        rest = multiply(p, outside)
        atom = self._atom(("sum", freeze(rest)), self.expression(rest))
        return multiply(outside, {_power(m, -1.0): 1.0 / c for m, c in atom.items()})

    def _exponential(self, p: Polynomial) -> Polynomial:
        """exp(p); exp(c log x) is x**c."""
        powers = {}
        for (atoms, exponent), c in p.items():
            if len(atoms) == 1 and not exponent and atoms[0][0][0] == "log" and atoms[0][1] == 1.0:
                powers[(atoms, exponent)] = (atoms[0][0][1], c)
        constant_part = p.get(ONE, 0.0)
        rest = {m: c for m, c in p.items() if m != ONE and m not in powers}
        return {(_sorted(dict(powers.values())), freeze(rest)): math.exp(constant_part)}

    def _logarithm(self, p: Polynomial) -> Polynomial:
        """log(p): of one positive monomial the logarithms of its parts, else an atom."""
        if len(p) != 1 or next(iter(p.values())) <= 0:
            lead = min(p, key=repr, default=ONE)
            if p.get(lead, -1.0) <= 0 or lead[0]:
                base = self._atom(("sum", freeze(p)), self.expression(p))
                return self._logarithm(base)
            outside = {_power(lead, -1.0): 1.0 / p[lead]}
            rest = multiply(p, outside)
            base = self._atom(("sum", freeze(rest)), self.expression(rest))
            return add(self._logarithm({lead: p[lead]}), self._logarithm(base))
        (((powers, exponent), c),) = p.items()
        total = add(dict(exponent), {ONE: math.log(c)} if c != 1.0 else {})
        for atom, n in powers:
            of = self._atom(("log", atom), tirx.log(self.written[atom]))
            total = add(total, of, n)
        return total

    def _choice(self, e: Expr) -> Polynomial:
        """An indicator times a value where one of the two is 0, else an atom."""
        condition, yes, no = children(e)
        a, b = self.of(yes), self.of(no)
        if a and b:
            key = ("choice", self._key(condition), freeze(a), freeze(b))
            return self._atom(key, e)
        held = condition if a else tirx.Not(condition)
        of = self._atom(("if", self._key(held)), tirx.Select(held, number(1), number(0)))
        return multiply(of, a or b)

    def _key(self, e: Expr) -> tuple:
        """The structure of ``e``, with the arithmetic in it in normal form."""
        if isinstance(e, tirx.EQ) and constant(e.b) == 0:
            p = self.of(e.a)
            if len(p) == 1:  # a positive factor changes nothing: exp(y) x == 0 where x == 0
                ((powers, _),) = p
                return ("zero", powers)
        name = call_name(e) if is_call(e) else type(e).__name__
        parts = children(e)
        if not parts:
            return (name, str(e))
        return (name, *map(self._part_key, parts))

    def _part_key(self, e: Expr) -> tuple:
        is_float = str(e.ty.dtype).startswith("float")
        return freeze(self.of(e)) if is_float else self._key(e)


def add(p: Polynomial, q: Polynomial, scale: float = 1.0) -> Polynomial:
    """p + scale q."""
    total = dict(p)
    for m, c in q.items():
        value = total.pop(m, 0.0) + scale * c
        if abs(value) > 1e-12 * max(1.0, abs(c)):
            total[m] = value
    return total


def multiply(p: Polynomial, q: Polynomial) -> Polynomial:
    """p q."""
    total: Polynomial = {}
    for m, c in p.items():
        for n, d in q.items():
            total = add(total, {_product(m, n): c * d})
    return total


def freeze(p: Polynomial) -> tuple:
    """``p`` as a key."""
    return tuple(sorted(((m, float(f"{c:.12g}")) for m, c in p.items()), key=repr))


def _sorted(powers: dict) -> Powers:
    return tuple(sorted(((atom, n) for atom, n in powers.items() if n), key=repr))


def _product(m: Monomial, n: Monomial) -> Monomial:
    powers = dict(m[0])
    for atom, count in n[0]:
        powers[atom] = powers.get(atom, 0.0) + count
    return _sorted(powers), freeze(add(dict(m[1]), dict(n[1])))


def _power(m: Monomial, n: float) -> Monomial:
    return _sorted({atom: p * n for atom, p in m[0]}), freeze({x: c * n for x, c in m[1]})


def _raised(e: Expr, n: float) -> Expr:
    return e if n == 1.0 else tirx.pow(e, number(n))
