"""What torch's functions and Python's operators mean in terms of program instructions."""

from __future__ import annotations

import math
import sys
from functools import partial
from types import FunctionType

import torch

from ..errors import UnsupportedSpec
from . import torch_compositions
from .program import INTEGERS

# Everything is computed in float32: asking for float64 is harmless, asking for half precision
# would ask for a rounding that does not happen.
_CAST_TARGETS = {
    torch.bool: "bool",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.float32: "float32",
    torch.float64: "float32",
}
_OF_BOOLS = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}
_SAME_NAME = "neg abs add sub mul maximum minimum eq ne lt le gt ge and or xor not".split()
_FLOAT = "exp exp2 log log2 log1p sqrt rsqrt tanh sigmoid sin cos tan atan erf".split()
_ALIASES = {
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "not": "bitwise_not invert",
    "mul": "multiply", "sub": "subtract", "neg": "negative", "abs": "absolute",
    "div": "divide true_divide truediv", "floordiv": "floor_divide", "mod": "remainder",
    "maximum": "max", "minimum": "min", "sigmoid": "expit", "sign": "sgn", "trunc": "fix",
    "eq": "equal_to", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal", "clamp": "clip", "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift", "atan": "arctan", "logsigmoid": "log_sigmoid",
}  # fmt: skip


def call(rec, name: str, args: tuple, kwargs: dict):
    """Record torch function (or operator) ``name`` in ``rec``; UnsupportedSpec if it is unknown."""
    name = name[2:-2] if name.startswith("__") else name.removeprefix("special_")
    if "input" in kwargs and name != "where":
        args = (kwargs.pop("input"), *args)
    if "other" in kwargs:
        args = (*args, kwargs.pop("other"))
    if name in COMPOSED:
        function = COMPOSED[name]
    elif name in HANDLERS:
        function = partial(HANDLERS[name], rec)
    else:
        raise UnsupportedSpec(
            f"torch function {name!r} in a score function ({user_line()}): available are "
            + ", ".join(sorted(HANDLERS | COMPOSED))
        )
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        if error.__traceback__.tb_next is not None:
            raise
        raise UnsupportedSpec(f"arguments of {name!r} ({user_line()}): {error}") from None


def user_line() -> str:
    """file:line of the user's code that is being traced, or that asked for the trace."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _MACHINERY:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


_MACHINERY = (__name__.partition(".")[0], "torch", "functools", "contextlib")


def _same(op: str):
    def handler(rec, *values):
        values = rec.promote(*values)
        is_bool = values[0].dtype_name == "bool"
        return rec.apply(_OF_BOOLS.get(op, op) if is_bool else op, *values)

    return handler


def _scaled(op: str):
    def handler(rec, x, y, *, alpha=1):
        return _same(op)(rec, x, y if alpha == 1 else _same("mul")(rec, y, alpha))

    return handler


def _floating(op: str):
    return lambda rec, x: rec.apply(op, *rec.promote(x, at_least="float32"))


def _rounding(op: str):
    def handler(rec, x):
        (x,) = rec.promote(x)
        return x if x.dtype_name in INTEGERS else rec.apply(op, x)

    return handler


def _logical(op: str):
    def handler(rec, *values):
        return rec.apply(op, *(rec.cast(rec.promote(x)[0], "bool") for x in values))

    return handler


def _cast(dtype: str):
    return lambda rec, x: rec.cast(rec.promote(x)[0], dtype)


def _program_dtype(dtype: torch.dtype) -> str:
    if dtype not in _CAST_TARGETS:
        raise UnsupportedSpec(
            f"conversion to {dtype} ({user_line()}): score functions compute in float32, "
            "int32, int64 and bool"
        )
    return _CAST_TARGETS[dtype]


def _to(rec, x, *args, **kwargs):
    """``x.to``; of devices, memory formats and ways to copy a scalar knows nothing."""
    for target in (*args, *kwargs.values()):
        if isinstance(target, torch.dtype):
            return rec.cast(rec.promote(x)[0], _program_dtype(target))
        if hasattr(target, "dtype"):  # another tensor or symbol
            return _to(rec, x, target.dtype)
    return x


def _same_value(rec, x, *args, **kwargs):
    return x


def _detached(rec, x):
    (x,) = rec.promote(x)
    if x.dtype_name == "float32":
        raise UnsupportedSpec(
            f"detach of a floating point number ({user_line()}): kernels differentiate all that "
            "depends on the score"
        )
    return x


def _new(rec, x, size, fill_value, dtype=None, **kwargs):
    """A scalar like ``x``; ``size`` is that of a tensor without dimensions."""
    if tuple(size):
        raise UnsupportedSpec(f"tensor of {size=} ({user_line()}): every value is a scalar, ()")
    name = rec.promote(x)[0].dtype_name if dtype is None else _program_dtype(dtype)
    return rec.cast(rec.scalar(fill_value), name)


def _new_tensor(rec, x, data, dtype=None, **kwargs):
    (value,) = rec.promote(data)
    return value if dtype is None else rec.cast(value, _program_dtype(dtype))


def _new_of(fill_value):
    # The size of new_ones may be one argument or several: that of a scalar is () or none.
    return lambda rec, x, *size, dtype=None, **kwargs: _new(
        rec, x, size[0] if size and isinstance(size[0], (tuple, list)) else size, fill_value, dtype
    )


def _like(fill_value):
    return lambda rec, x, dtype=None, **kwargs: _new(rec, x, (), fill_value, dtype)


def _full_like(rec, x, fill_value, dtype=None, **kwargs):
    return _new(rec, x, (), fill_value, dtype)


def _div(rec, x, y, *, rounding_mode=None):
    if rounding_mode == "floor":
        return _floordiv(rec, x, y)
    if rounding_mode is not None:
        raise UnsupportedSpec(f"div with {rounding_mode=} ({user_line()}): use None or 'floor'")
    return rec.apply("div", *rec.promote(x, y, at_least="float32"))


def _floordiv(rec, x, y):
    divisor = y
    x, y = rec.promote(x, y)
    if x.dtype_name in INTEGERS:
        _check_divisor(divisor)
        return rec.apply("floordiv", x, y)
    # As Python does: from the exact remainder, or 1.0 // 0.1 rounds to 10.
    return rec.apply("round", (x - rec.apply("mod", x, y)) / y)


def _mod(rec, x, y):
    left, right = rec.promote(x, y)
    if left.dtype_name in INTEGERS:
        _check_divisor(y)
    return rec.apply("mod", left, right)


def _check_divisor(y) -> None:
    if isinstance(y, int) and y == 0:
        raise ValueError(f"division of an integer by zero ({user_line()})")


def _pow(rec, x, y):
    x, y = rec.scalar(x), rec.scalar(y)
    if isinstance(y, int) and 0 <= y <= 8:
        return _product(rec, x, y)
    if isinstance(y, (int, float)) and y in _POWERS:
        return _POWERS[y](rec, x)
    return rec.apply("pow", *rec.promote(x, y, at_least="float32"))


# What a general power computes slower.
_POWERS = {
    0.5: lambda rec, x: _floating("sqrt")(rec, x),
    -0.5: lambda rec, x: _floating("rsqrt")(rec, x),
    -1: lambda rec, x: _reciprocal(rec, x),
    2.0: lambda rec, x: _square(rec, x),
}


def _product(rec, x, count: int):
    (x,) = rec.promote(x)
    if count == 0:
        return rec.cast(1, x.dtype_name)
    half = _product(rec, x, count // 2)
    return half * half * x if count % 2 and count > 1 else x if count == 1 else half * half


def _where(rec, condition, x, y):
    (condition,) = rec.promote(condition)
    if condition.dtype_name != "bool":
        raise TypeError(f"condition of where is {condition.dtype_name}, not bool ({user_line()})")
    x, y = rec.promote(x, y)
    return rec.record("where", condition._number, x._number, y._number)


def _clamp(rec, x, min=None, max=None):
    if min is not None:
        x = _bounded(rec, "maximum", *rec.promote(x, min))
    if max is not None:
        x = _bounded(rec, "minimum", *rec.promote(x, max))
    return x


def _bounded(rec, op: str, x, bound):
    """``op`` of ``x`` and ``bound``, where torch's gradient is 1 if they are equal, and not 1/2."""
    if x.dtype_name in INTEGERS:
        return rec.apply(op, x, bound)
    return _where(rec, x < bound if op == "maximum" else x > bound, bound, x)


def _square(rec, x):
    return _product(rec, x, 2)


def _reciprocal(rec, x):
    return _div(rec, 1.0, x)


def _getitem(rec, tensor, index):
    return rec.load(tensor, index if isinstance(index, tuple) else (index,))


HANDLERS = {
    **{name: _same(name) for name in _SAME_NAME},
    **{name: _floating(name) for name in _FLOAT},
    **{name: _rounding(name) for name in ("floor", "ceil", "round", "trunc")},
    **{f"logical_{op}": _logical(op) for op in ("and", "or", "xor", "not")},
    "fmod": lambda rec, x, y: rec.apply("fmod", *rec.promote(x, y, at_least="float32")),
    "lshift": lambda rec, x, y: rec.apply("shift_left", x, y),
    "rshift": lambda rec, x, y: rec.apply("shift_right", x, y),
    "to": _to,
    "type_as": lambda rec, x, y: rec.cast(rec.promote(x)[0], rec.promote(y)[0].dtype_name),
    "float": _cast("float32"), "double": _cast("float32"), "int": _cast("int32"),
    "long": _cast("int64"), "bool": _cast("bool"),
    "pos": lambda rec, x: x, "positive": lambda rec, x: x,
    "isnan": lambda rec, x: rec.apply("ne", x, x),
    "isinf": lambda rec, x: rec.apply("eq", rec.apply("abs", x), math.inf),
    "zeros_like": _like(0), "ones_like": _like(1), "full_like": _full_like,
    "new_zeros": _new_of(0), "new_ones": _new_of(1), "new_full": _new,
    "new_tensor": _new_tensor, "add": _scaled("add"), "sub": _scaled("sub"),
    "rsub": lambda rec, x, y, *, alpha=1: _scaled("sub")(rec, y, x, alpha=alpha),
    "type": _to, "detach": _detached,
    **dict.fromkeys(
        ("clone", "contiguous", "cpu", "cuda", "squeeze", "expand_as", "view_as", "reshape_as"),
        _same_value,
    ),
    **dict.fromkeys(("any", "all"), lambda rec, x, dim=-1, keepdim=False: _cast("bool")(rec, x)),
    "div": _div, "floordiv": _floordiv, "mod": _mod, "pow": _pow, "where": _where, "clamp": _clamp,
    "clamp_min": lambda rec, x, min: _clamp(rec, x, min=min),
    "clamp_max": lambda rec, x, max: _clamp(rec, x, max=max),
    "square": _square, "reciprocal": _reciprocal, "getitem": _getitem,
}  # fmt: skip
COMPOSED = {
    name: function
    for name, function in vars(torch_compositions).items()
    if isinstance(function, FunctionType)
}
for _name, _names in _ALIASES.items():
    _known = COMPOSED if _name in COMPOSED else HANDLERS
    _known |= dict.fromkeys(_names.split(), _known[_name])
