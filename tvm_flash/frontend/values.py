"""Arguments in every form that torch and FlashAttention accept, as plain values; autocast."""

from __future__ import annotations

import operator

import torch

from ..problem.arguments import MAX_DROPOUT, MAX_SCALE, MAX_WINDOW, SOFTCAP_LIMITS
from ..problem.numbers import NO_WINDOW
from ..score.gradients import check_no_gradient

# Peers take the ends of a window as int32.
MAX_BOUND = 2**31 - 1
_INFINITY = float("inf")
# Torch's are numbers that a program which is exported computes from a length.
_PLAIN = (int, float, torch.SymInt, torch.SymFloat)


def as_number(name: str, value) -> float:
    """``value``, any real number or a tensor of one element, as a float.

    TypeError for what is no number, NotImplementedError for a tensor that wants a gradient.
    """
    if type(value) is float:  # the compiler keeps what it computes from a length
        return value
    number = value
    _check_constant(name, value)
    if isinstance(value, torch.Tensor):
        check_no_gradient(name, value)
        number = value.detach().item() if value.numel() == 1 else None
    try:
        return float(None if isinstance(number, (str, bytes)) else number)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be a number") from None


def as_scale(name: str, value) -> float:
    """``value`` as ``as_number``; ValueError unless it is finite in float32."""
    scale = as_number(name, value)
    if not -MAX_SCALE <= scale <= MAX_SCALE:  # isfinite does not compile
        raise ValueError(f"{name}={scale} must be finite in float32; None is 1 / sqrt(head_dim)")
    return scale


def as_softcap(value) -> float:
    """``value`` as ``as_number``, 0.0 for None; ValueError unless it is 0 or a cap."""
    cap = 0.0 if value is None else as_number("softcap", value)
    if cap == 0:
        return 0.0  # not -0.0
    if not 0 < cap < _INFINITY:
        raise ValueError(f"softcap={cap} must be a finite number >= 0; 0 is off")
    least, most = SOFTCAP_LIMITS
    if not least <= cap <= most:  # kernels multiply by it and by its inverse
        raise ValueError(f"softcap={cap} must lie in {least:.2g}..{most:.2g}; 0 is off")
    return cap


def as_splits(value) -> int:
    """num_splits as an int, 0 for None; TypeError, ValueError unless it is an integer >= 0."""
    if value is None:
        return 0
    number = as_integer("num_splits", value)
    if number < 0:
        raise ValueError(f"num_splits={number} must be 0 (the kernel chooses) or more")
    return number


def as_integer(name: str, value) -> int:
    """``value`` as an int; TypeError for what is none."""
    # The compiler keeps what it computes from a length.
    if type(value) is int or isinstance(value, torch.SymInt):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be an integer") from None


def as_flag(name: str, value) -> bool:
    """``value``, anything with a truth value of its own, as a bool; no text, no containers."""
    if isinstance(value, bool):
        # A branch, for the compiler to decide what it computes from a length.
        return True if value else False  # noqa: SIM210
    try:
        if hasattr(value, "__bool__"):
            return bool(value)
    except (TypeError, ValueError, RuntimeError):  # arrays and tensors of several elements
        pass
    raise TypeError(f"{name}={value!r} must be True or False")


def as_window(window_size) -> tuple[int, int]:
    """(left, right) as ints of any pair of integers: tuple, list, array or tensor.

    None, for the pair or a side, and, as in FlashAttention, any negative number is unbounded: -1.
    """
    if window_size is NO_WINDOW or window_size is None or _is_default(window_size):
        return NO_WINDOW
    sides = window_size
    if not isinstance(sides, (tuple, list)):
        _check_constant("window_size", sides)
    try:
        sides = sides.tolist() if hasattr(sides, "tolist") else sides
        if len(sides) == 2:
            return _bound(sides[0]), _bound(sides[1])
    except (TypeError, KeyError, RuntimeError):  # no length, no order, no integers
        pass
    raise TypeError(
        f"{window_size=} must be two integers (left, right); None or -1 is no bound on a side"
    )


def _is_default(window_size) -> bool:
    """Whether it is NO_WINDOW, asked of nothing but integers: tensors compare otherwise."""
    if type(window_size) is not tuple or len(window_size) != 2:
        return False
    left, right = window_size
    return type(left) is int and type(right) is int and left == -1 and right == -1


def _bound(side) -> int:
    if side is None:
        return -1
    if not isinstance(side, _PLAIN):
        _check_constant("window_size", side)
        side = side.item() if getattr(side, "shape", None) in ((), (1,)) else side
    # The compiler and torch.export keep what they compute from a length.
    if type(side) is not int and not isinstance(side, torch.SymInt):
        side = operator.index(side)
    if side > MAX_BOUND:
        raise ValueError(f"window_size has a side of {side}: limit {MAX_BOUND}; -1 is no bound")
    # No sequence is as long as MAX_WINDOW.
    return side if 0 <= side <= MAX_WINDOW else -1


def _check_constant(name: str, value) -> None:
    """ValueError for a tensor or array under torch.compile, which does not know its values."""
    if torch.compiler.is_compiling() and not isinstance(value, _PLAIN):
        raise ValueError(f"{name} under torch.compile must be of plain numbers: read them outside")


def as_dropout(dropout_p, rng: torch.Tensor | None, q: torch.Tensor) -> tuple:
    """The share of dropped weights, and seed and offset (2,) int64, which are drawn for None.

    By torch's generator of q's device; none are there where nothing is dropped. ValueError,
    TypeError for what is no probability below 1, or no seed and offset.
    """
    probability = as_number("dropout_p", dropout_p)
    if not 0 <= probability <= MAX_DROPOUT:
        raise ValueError(f"dropout_p={probability} must lie in [0, 1): some weights must remain")
    if rng is not None and not isinstance(rng, torch.Tensor):
        raise TypeError(f"rng must be a tensor, not {type(rng).__name__}")
    if rng is not None and (rng.shape != (2,) or rng.dtype != torch.int64):
        raise ValueError(
            f"rng of {rng.dtype}, {tuple(rng.shape)} must be int64, (2,): seed, offset"
        )
    if rng is not None and rng.device != q.device:
        raise ValueError(f"rng is on {rng.device}, q on {q.device}: move one")
    if probability == 0:
        return 0.0, None
    return probability, torch.randint(2**62, (2,), device=q.device) if rng is None else rng


def autocast(x: torch.Tensor) -> torch.Tensor:
    """``x`` in the dtype of the autocast region around the call, as torch casts for its attention.

    Floating point is cast, whatever its width, but float64; a device has its own autocast.
    """
    if not isinstance(x, torch.Tensor) or not (x.is_cpu or x.is_cuda):
        return x
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x
    if x.dtype == torch.float64 or not x.is_floating_point():
        return x
    return x.to(torch.get_autocast_dtype(device))
