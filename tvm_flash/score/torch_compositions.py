"""Torch's functions that are made of others, written for a score function's symbols."""

from __future__ import annotations

import math

import torch


def masked_fill(x, mask, value):
    """``value`` where ``mask``, in the dtype of ``x``."""
    return torch.where(mask, value, x).to(x.dtype)


def sign(x):
    """-1, 0 or 1."""
    return torch.where(x > 0, 1, torch.where(x < 0, -1, x * 0))


def frac(x):
    """What is left of x without its integer part."""
    return x - torch.trunc(x)


def nan_to_num(x, nan=0.0, posinf=None, neginf=None):
    """Numbers in place of NaN and infinities."""
    largest = torch.finfo(torch.float32).max
    x = torch.where(x == math.inf, largest if posinf is None else posinf, x)
    x = torch.where(x == -math.inf, -largest if neginf is None else neginf, x)
    return torch.where(torch.isnan(x), nan, x)


def isfinite(x):
    """Neither infinite nor NaN."""
    return torch.abs(x.float()) < math.inf


def isposinf(x):
    """+inf."""
    return x.float() == math.inf


def isneginf(x):
    """-inf."""
    return x.float() == -math.inf


def lerp(x, end, weight):
    """The number between x (weight 0) and ``end`` (weight 1)."""
    return x + weight * (end - x)


def addcmul(x, a, b, *, value=1):
    """x + value * a * b."""
    return x + value * (a * b)


def addcdiv(x, a, b, *, value=1):
    """x + value * a / b."""
    return x + value * (a / b)


def hypot(x, y):
    """sqrt(x**2 + y**2)."""
    return torch.sqrt(x * x + y * y)


def log10(x):
    """Decimal logarithm."""
    return torch.log(x) * (1 / math.log(10))


def logit(x):
    """log(x / (1 - x))."""
    return torch.log(x / (1 - x))


def logaddexp(x, y):
    """log(exp(x) + exp(y)), of numbers of any size."""
    return torch.maximum(x, y) + torch.log1p(torch.exp(-torch.abs(x - y)))


def expm1(x):
    """exp(x) - 1 without its cancellation."""
    return torch.tanh(x * 0.5) * (torch.exp(x) + 1)


def sinh(x):
    """Hyperbolic sine."""
    grown = expm1(x)
    return (grown + grown / (grown + 1)) * 0.5


def cosh(x):
    """Hyperbolic cosine."""
    return (torch.exp(x) + torch.exp(-x)) * 0.5


def erfc(x):
    """1 - erf(x)."""
    return 1 - torch.erf(x)


def relu(x, inplace=False):
    """x above 0; its slope at 0 is 0, as torch's."""
    return torch.where(x <= 0, 0, x)


def relu6(x, inplace=False):
    """x between 0 and 6."""
    return hardtanh(x, 0.0, 6.0)


def hardtanh(x, min_val=-1.0, max_val=1.0, inplace=False):
    """x between two bounds; its slope at them is 0."""
    return torch.where(x <= min_val, min_val, torch.where(x >= max_val, max_val, x))


def hardsigmoid(x, inplace=False):
    """A sigmoid of three lines."""
    return relu6(x + 3) / 6


def hardswish(x, inplace=False):
    """x * hardsigmoid(x)."""
    return x * hardsigmoid(x)


def leaky_relu(x, negative_slope=0.01, inplace=False):
    """x above 0, negative_slope * x below."""
    return torch.where(x > 0, x, x * negative_slope)


def elu(x, alpha=1.0, inplace=False):
    """x above 0, alpha * (exp(x) - 1) below."""
    # Not of x above 0: there the branch not taken would overflow.
    return torch.where(x > 0, x, alpha * expm1(torch.where(x > 0, 0.0, x)))


def celu(x, alpha=1.0, inplace=False):
    """elu with a slope of 1 at 0."""
    return torch.where(x > 0, x, alpha * expm1(torch.where(x > 0, 0.0, x / alpha)))


def selu(x, inplace=False):
    """elu that keeps mean and variance."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def silu(x, inplace=False):
    """x * sigmoid(x)."""
    return x * torch.sigmoid(x)


def mish(x, inplace=False):
    """x * tanh(softplus(x))."""
    return x * torch.tanh(softplus(x))


def softplus(x, beta=1.0, threshold=20.0):
    """log(1 + exp(beta * x)) / beta; x itself above the threshold."""
    scaled = x * beta
    return torch.where(scaled > threshold, x, torch.log1p(torch.exp(scaled)) / beta)


def softsign(x):
    """x / (1 + |x|)."""
    return x / (1 + torch.abs(x))


def tanhshrink(x):
    """x - tanh(x)."""
    return x - torch.tanh(x)


def logsigmoid(x):
    """log(sigmoid(x))."""
    # minimum, not clamp: the slope at 0 is the mean of both sides.
    return torch.minimum(x, torch.zeros_like(x)) - torch.log1p(torch.exp(-torch.abs(x)))


def gelu(x, approximate="none"):
    """x * Phi(x), exact or by tanh."""
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return 0.5 * x * (1 + torch.tanh(inner))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))
