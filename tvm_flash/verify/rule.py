"""FlashAttention's error rule: errors up to twice PyTorch's own, three times for gradients.

Both errors are taken against float64, PyTorch's in the kernel's dtype; a round-off is added
(tests/test_flash_attn.py of Dao-AILab/flash-attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from ..cases import Inputs
from ..problem.arguments import SOFTMAX_INPUTS
from ..problem.dtype import DTYPES
from ..problem.spec import has_sum
from ..reference import attention_reference

FACTOR, GRADIENT_FACTOR = 2, 3
# Where plain torch is exact by luck (a softmax of one key is 1), twice its error is 0.
ROUND_OFF = 1e-5

Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Deviation:
    """How far one result is from float64, and how far it may be."""

    result: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the rule holds (an error that is not finite does not)."""
        return self.error <= self.allowed

    @property
    def share(self) -> float:
        """The part of ``allowed`` that was used; inf where even the baseline is not finite."""
        return self.error / self.allowed if math.isfinite(self.error) else math.inf

    def __str__(self) -> str:
        relation = "within" if self.ok else "exceeds"
        return f"{self.result}: error {self.error:.3g} {relation} {self.allowed:.3g}"


def judged(
    attention: Callable, inputs: Inputs, *, backward: bool = True, **options
) -> list[Deviation]:
    """``attention`` (which takes ``return_lse``) on ``inputs``, held to the rule."""
    has_lse = has_sum(inputs.variant.get("softmax", "softmax"))
    return deviations(
        str(inputs.q.dtype).removeprefix("torch."),
        results(attention, inputs, backward=backward, return_lse=has_lse, **options),
        results(attention_reference, inputs, torch.float64, backward=backward),
        results(attention_reference, inputs, backward=backward),
    )


def results(
    attention: Callable,
    inputs: Inputs,
    dtype: torch.dtype | None = None,
    *,
    backward: bool = True,
    learned: Collection[str] = (),
    **options,
) -> Results:
    """out, lse, if it has one, and with ``backward`` gradients of ``attention`` in ``dtype``.

    dtype: None is that of ``inputs``. options: keywords besides ``inputs.variant``, of which a
    sink, a bias and the ``learned`` ones have gradients too.
    """
    # Leaves of that dtype, for autograd rounds a gradient to the dtype of its leaf: exact ones need
    # float64 leaves. Not clones, which would be dense.
    given = dict(zip(("q", "k", "v"), inputs[:3], strict=True))
    given |= {
        name: x for name, x in inputs.variant.items() if name in (*SOFTMAX_INPUTS, "bias", *learned)
    }
    leaves = {
        name: x.detach().to(dtype or x.dtype).requires_grad_(backward) for name, x in given.items()
    }
    named = {name: leaves[name] for name in leaves if name in inputs.variant}
    answer = attention(*(leaves[x] for x in "qkv"), **{**inputs.variant, **named}, **options)
    answer = answer if isinstance(answer, tuple) else (answer, None)
    made = {name: x for name, x in zip(("out", "lse"), answer, strict=True) if x is not None}
    found = {name: x.detach() for name, x in made.items()}
    if backward:
        upstream = [getattr(inputs, f"d{name}").to(x.dtype) for name, x in made.items()]
        # A score_mod may ignore the score, and with it q and k.
        gradients = torch.autograd.grad(
            tuple(made.values()), tuple(leaves.values()), upstream, materialize_grads=True
        )
        found |= {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return found


def deviations(
    dtype: str,
    found: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    plain: Mapping[str, torch.Tensor],
    score_size: float = 0.0,
) -> list[Deviation]:
    """The rule for each result of ``found``; ``plain`` is what PyTorch gives in ``dtype``.

    score_size: of large scores, whose rounding in float32 decides how accurate PyTorch is, and
    chance whether it is more accurate than a kernel that rounds as often.
    """
    return [
        Deviation(
            name,
            largest_error(got, exact[name]),
            allowed_error(name, dtype, exact[name], plain[name], score_size),
        )
        for name, got in found.items()
    ]


def allowed_error(
    name: str, dtype: str, exact: torch.Tensor, plain: torch.Tensor, score_size: float = 0.0
) -> float:
    """The largest error that the result ``name`` may have, as for ``deviations``.

    A gradient is called by the letter d and what it is by.
    """
    baseline = largest_error(plain, exact)
    # What rounding a score does to its exponential, relative to it.
    baseline += score_size * 2.0**-24 * largest_error(exact, torch.zeros_like(exact))
    is_lse = name in ("lse", "line_lse")
    round_off = DTYPES[dtype].lse_round_off if is_lse else ROUND_OFF
    factor = GRADIENT_FACTOR if name.startswith("d") else FACTOR
    return factor * baseline + round_off


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest absolute difference; equal infinities are equal, NaN is infinitely wrong."""
    if got.shape != want.shape:
        raise ValueError(f"a result of shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    got, want = got.double(), want.double()
    # An infinite error becomes the largest number: no tolerance made of it is NaN.
    error = torch.where(got == want, 0.0, (got - want).abs()).nan_to_num(nan=math.inf)
    return error.max().item() if error.numel() else 0.0
