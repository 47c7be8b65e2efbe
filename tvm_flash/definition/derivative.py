"""Symbolic derivative of a scalar TIR expression, and the tree walk it shares with ``legalise``."""

from __future__ import annotations

import math
from collections.abc import Callable

import tvm
from tvm import tirx

from ..errors import UnsupportedSpec

Expr = tvm.ir.Expr
_BINARY = (
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Max,
    tirx.Min, tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.And, tirx.Or,
)  # fmt: skip


def differentiate(expr: Expr, var: Expr) -> Expr:
    """d ``expr`` / d ``var``, a variable or another node of it, float32; steps (floor,
    comparisons, integers) have derivative 0.

    At a tie of max or min the derivative is the mean of both sides, as in torch.
    Raises UnsupportedSpec for an operation without a known derivative.
    """
    return _Derivative(var)(expr)


def rewrite_calls(expr: Expr, replace: Callable[[str, tuple], Expr | None]) -> Expr:
    """``expr`` with each call replaced by ``replace(name, arguments)`` unless that is None."""

    # Shared parts are rewritten once a use: a replacement may bind names, which must stay unique.
    def walk(node):
        if isinstance(node, _BINARY):
            return type(node)(walk(node.a), walk(node.b))
        if isinstance(node, tirx.Not):
            return tirx.Not(walk(node.a))
        if isinstance(node, tirx.Select):
            return tirx.Select(*map(walk, (node.condition, node.true_value, node.false_value)))
        if isinstance(node, tirx.Cast):
            return tirx.Cast(node.ty.dtype, walk(node.value))
        if isinstance(node, tirx.Let):
            return tirx.Let(node.var, walk(node.value), walk(node.body))
        if is_call(node):
            args = tuple(walk(a) for a in node.args)
            new = replace(node.op.name, args)
            return tirx.call_intrin(node.ty.dtype, node.op.name, *args) if new is None else new
        return node

    return walk(expr)


def contains_let(expr: Expr) -> bool:
    """Whether a replacement in ``expr`` has bound a name."""
    if isinstance(expr, tirx.Let):
        return True
    if isinstance(expr, _BINARY):
        return contains_let(expr.a) or contains_let(expr.b)
    if isinstance(expr, tirx.Select):
        return any(map(contains_let, (expr.condition, expr.true_value, expr.false_value)))
    if isinstance(expr, (tirx.Cast, tirx.Not)):
        return contains_let(expr.value if isinstance(expr, tirx.Cast) else expr.a)
    return is_call(expr) and any(map(contains_let, expr.args))


def is_call(node: Expr) -> bool:
    """Whether ``node`` is a call of an intrinsic."""
    return isinstance(node, tvm.ir.Call) and isinstance(node.op, tvm.ir.Op)


def number(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(value, "float32")


class _Derivative:
    def __init__(self, var: Expr):
        self.var = var
        self.known: dict[int, tuple[Expr, Expr | None]] = {}

    def __call__(self, expr: Expr) -> Expr:
        result = self.of(expr)
        return number(0.0) if result is None else result

    def of(self, node: Expr) -> Expr | None:
        """Derivative of ``node``; None is zero, which keeps the result small."""
        if (entry := self.known.get(hash(node))) is None or not entry[0].same_as(node):
            entry = self.known[hash(node)] = (node, self._rule(node))
        return entry[1]

    def _rule(self, node: Expr) -> Expr | None:
        if node.same_as(self.var):
            return number(1.0)
        if node.ty.dtype != "float32":
            return None
        if isinstance(node, tirx.Cast):
            return self.of(node.value)
        if isinstance(node, tirx.Select):
            return self._branches(
                node.condition, self.of(node.true_value), self.of(node.false_value)
            )
        if isinstance(node, (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)):
            return self._binary(node)
        if is_call(node):
            return self._call(node)
        return None

    def _branches(self, condition, a, b):
        if a is None and b is None:
            return None
        zero = number(0.0)
        return tirx.Select(condition, zero if a is None else a, zero if b is None else b)

    def _binary(self, node):
        a, b = node.a, node.b
        da, db = self.of(a), self.of(b)
        if da is None and db is None:
            return None
        if isinstance(node, tirx.Add):
            return _sum(da, db)
        if isinstance(node, tirx.Sub):
            return _sum(da, _scale(db, number(-1.0)))
        if isinstance(node, tirx.Mul):
            return _sum(_scale(da, b), _scale(db, a))
        if isinstance(node, tirx.Div):
            return _sum(None if da is None else da / b, _scale(db, number(-1.0) * a / (b * b)))
        larger = a > b if isinstance(node, tirx.Max) else a < b
        tie = self._branches(tirx.EQ(a, b), _scale(_sum(da, db), number(0.5)), db)
        return self._branches(larger, da, tie)

    def _call(self, node):
        name = node.op.name.split(".")[-1]
        if name == "if_then_else":
            condition, a, b = node.args
            return self._branches(condition, self.of(a), self.of(b))
        slopes = [self.of(a) for a in node.args]
        if all(d is None for d in slopes) or name in _STEPS:
            return None
        if name in _UNARY:
            return _scale(slopes[0], _UNARY[name](node.args[0], node))
        if name == "pow":
            base, exponent = node.args
            by_base = _scale(slopes[0], exponent * tirx.power(base, exponent - number(1.0)))
            # 0 ** x is flat for x > 0, and log(0) would make it NaN.
            steepness = tirx.Select(tirx.EQ(base, number(0.0)), base, node * tirx.log(base))
            return _sum(by_base, _scale(slopes[1], steepness))
        raise UnsupportedSpec(
            f"{name} has no known derivative here: write the score function with other operations"
        )


def _sum(a, b):
    if a is None or b is None:
        return b if a is None else a
    if _is_cut(a) and isinstance(b, tirx.Select) and a.condition.same_as(b.condition):
        return tirx.Select(
            a.condition, _sum_of(a.true_value, b.true_value), _sum_of(a.false_value, b.false_value)
        )
    return a + b


def _sum_of(a, b):
    return b if _is_zero(a) else a if _is_zero(b) else a + b


def _scale(a, factor):
    if a is None or _is_zero(a):
        return a
    if _is_cut(a):
        # A branch that is flat stays so, as in torch, beside a factor that is not finite.
        branches = (_scale(x, factor) for x in (a.true_value, a.false_value))
        return tirx.Select(a.condition, *branches)
    return factor if isinstance(a, tirx.FloatImm) and a.value == 1.0 else a * factor


def _is_cut(x) -> bool:
    """Whether ``x`` is 0 in a branch."""
    return isinstance(x, tirx.Select) and (_is_zero(x.true_value) or _is_zero(x.false_value))


def _is_zero(x) -> bool:
    return isinstance(x, tirx.FloatImm) and x.value == 0.0


def _sign(x):
    return tirx.Select(x > 0.0, number(1.0), tirx.Select(x < 0.0, number(-1.0), number(0.0)))


_STEPS = {"floor", "ceil", "round", "nearbyint", "trunc"}

# name -> slope as an expression of (argument, the call itself).
_UNARY = {
    "exp": lambda x, y: y,
    "exp2": lambda x, y: y * number(math.log(2)),
    "log": lambda x, y: number(1.0) / x,
    "log2": lambda x, y: number(1 / math.log(2)) / x,
    "log1p": lambda x, y: number(1.0) / (x + number(1.0)),
    "sqrt": lambda x, y: number(0.5) / y,
    "rsqrt": lambda x, y: number(-0.5) * y / x,
    "tanh": lambda x, y: number(1.0) - y * y,
    "sigmoid": lambda x, y: y * (number(1.0) - y),
    "sin": lambda x, y: tirx.cos(x),
    "cos": lambda x, y: number(-1.0) * tirx.sin(x),
    "tan": lambda x, y: number(1.0) + y * y,
    "atan": lambda x, y: number(1.0) / (number(1.0) + x * x),
    "erf": lambda x, y: number(2 / math.sqrt(math.pi)) * tirx.exp(number(-1.0) * x * x),
    "fabs": lambda x, y: _sign(x),
}
