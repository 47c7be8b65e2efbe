"""A bias, and a scale and a softcap that want gradients, as captured tables of a score_mod."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, reduce

import torch

from ..score import variants
from ..score.bias import bias_axes, bias_program
from ..score.compose import after
from ..score.gradients import wants_gradient
from ..score.layouts import check_dense
from ..score.program import ScoreProgram
from ..score.trace import trace_score_mod
from .values import as_scale, as_softcap

# What a bias may be.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def learns(number) -> bool:
    """Whether a scale or a softcap is a tensor that wants a gradient."""
    return isinstance(number, torch.Tensor) and wants_gradient(number)


def check_no_alibi(scale, softcap) -> None:
    """NotImplementedError where a scale or a softcap wants a gradient.

    They come before ALiBi, which as a score_mod would have to know the lengths that align rows.
    """
    if learns(scale) or learns(softcap):
        raise NotImplementedError(
            "alibi_slopes beside a softmax_scale or softcap that requires grad: subtract slopes[h] "
            "* abs(q_idx + seqlen_k - seqlen_q - k_idx) in a score_mod"
        )


def longest_of(q, k, ragged) -> tuple:
    """B, H and the queries and keys of the longest entry of a call; None for what is unknown."""
    if ragged is None:
        return q.shape[0], q.shape[2], q.shape[1], k.shape[1]
    queries = None if ragged.extents is None else AtLeast(ragged.extents[0].longest)
    return ragged.entries, q.shape[1], queries, AtLeast(ragged.longest_k)


def as_inputs(q, shape: Sequence, bias, scale, softcap) -> tuple:
    """What is done to scores before the score_mod, as ``before`` takes it; its tables; a scale and
    a softcap for the call.

    Those that want gradients are tables, as a bias is, and 1 and 0 for the call. shape: as
    ``longest_of`` has it. Raises as ``attention`` does.
    """
    first: list[tuple[str, list[torch.Tensor]]] = []
    if of_scale := learns(scale):
        first.append((_SCALE, [_number("softmax_scale", scale, q, as_scale)]))
        scale = 1.0
    if learns(softcap):
        cap = _number("softcap", softcap, q, lambda _, x: as_softcap(x))
        first.append((_SOFTCAP, [1.0 / cap, cap]))
        softcap = 0.0
    elif of_scale and (number := as_softcap(softcap)):
        # It follows the scale.
        first.append((_SOFTCAP, [torch.full((), x, device=q.device) for x in (1 / number, number)]))
        softcap = 0.0
    if bias is not None:
        axes, table = bias_table(bias, q, shape)
        first.append((axes, [table]))
    inputs = tuple([(kind, str(tables[0].dtype)) for kind, tables in first])
    return inputs, tuple([x for _, tables in first for x in tables]), scale, softcap


def before(inputs: Sequence[tuple[str, str]], score_mod: ScoreProgram | None):
    """The program of a call: each of ``inputs``, a kind and the dtype of its tables, then
    ``score_mod``; None where there is neither."""
    programs = [*(_program(*own) for own in inputs), *[score_mod] * (score_mod is not None)]
    return reduce(after, programs) if programs else None


def bias_table(bias: torch.Tensor, q: torch.Tensor, shape: Sequence) -> tuple[str, torch.Tensor]:
    """The letters of the dimensions that ``bias`` has, and a view of it with these alone.

    TypeError, ValueError unless it broadcasts to ``shape``, as ``longest_of`` has it, beside q.
    """
    if not isinstance(bias, torch.Tensor):
        raise TypeError(f"bias must be a tensor, not {type(bias).__name__}")
    check_dense("bias", bias)
    if bias.dtype not in DTYPES:
        raise TypeError(f"{bias.dtype=} must be floating point; a mask of bools is a mask_mod")
    if bias.device != q.device:
        raise ValueError(f"bias is on {bias.device}, q on {q.device}: move one")
    sizes = (1,) * (4 - bias.ndim) + tuple(bias.shape)
    if len(sizes) > 4 or not all(map(_fits, sizes, shape)):
        said = ", ".join("?" if n is None else str(n) for n in shape)
        raise ValueError(
            f"bias of shape {tuple(bias.shape)} must broadcast to (B, H, Sq, Sk) = ({said})"
        )
    axes = bias_axes(sizes)
    return axes, bias.squeeze()


def _fits(size, wanted) -> bool:
    if size == 1 or wanted is None:
        return True
    return size >= wanted if isinstance(wanted, AtLeast) else size == wanted


class AtLeast(int):
    """A size that others may exceed: of the longest entry of a batch."""


def _number(name: str, value: torch.Tensor, q: torch.Tensor, check) -> torch.Tensor:
    """A scale or softcap that learns as a tensor without dimensions, once it is checked."""
    if value.dtype not in DTYPES or value.numel() != 1:
        shape = tuple(value.shape)
        raise TypeError(f"{name} of {shape=}, {value.dtype} must be one floating-point number")
    if value.device != q.device:
        raise ValueError(f"{name} is on {value.device}, q on {q.device}: move one")
    if not torch.compiler.is_compiling() and not torch._C._functorch.maybe_get_level(value) >= 0:
        check(name, value.detach())
    return value.reshape(())


_SCALE, _SOFTCAP = "scale", "softcap"


@cache
def _program(kind: str, dtype: str) -> ScoreProgram:
    """The score_mod of an input: "scale", "softcap", or a bias with the dimensions ``kind``."""
    dtype = dtype.removeprefix("torch.")
    if kind not in (_SCALE, _SOFTCAP):
        return bias_program(kind, dtype)
    number = torch.ones((), dtype=getattr(torch, dtype))
    if kind == _SCALE:
        return trace_score_mod(lambda score, b, h, q_idx, k_idx: score * number)[0]
    return trace_score_mod(variants.softcap(number))[0]
