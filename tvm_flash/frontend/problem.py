"""The problem that a call poses: its spec as text, its default scale, its captured tensors."""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch._C import _is_tracing

from ..problem.size_checks import check_packed_sizes, check_sizes
from ..problem.spec import AttentionSpec
from ..score.gradients import check_no_gradient
from ..score.program import ScoreProgram
from .captured import NOTHING, already_captured, capture, captured_on
from .checks import NAMES, check_all_dense, check_captured
from .observers import run_by_compiler, untraced_shapes
from .score_inputs import before
from .spec_names import spec_json, spec_name
from .values import as_flag

_UNCHANGED = capture(lambda score, b, h, q_idx, k_idx: score)


class Features(NamedTuple):
    """What a call asks for beside its tensors and its functions, as plain values.

    All but is_steep are AttentionSpec's. is_steep: softmax_scale is so large that a float32 lse
    would say little of a row's sum; then the spec is that of a score_mod that changes nothing,
    whose kernels save more (AttentionSpec.saved_statistics). inputs: what is done to scores before
    the score_mod, as ``score_inputs.before`` takes it.
    """

    causal: bool
    window_left: bool
    window_right: bool
    softcap: bool
    alibi: bool
    alignment: str
    is_steep: bool
    inputs: tuple = ()
    softmax: str = "softmax"
    dropout: bool = False
    sequences: str = "dense"
    block_mask: tuple[int, int] | None = None


class PosedProblem(NamedTuple):
    """What an operator needs to know of a problem.

    spec: AttentionSpec as text. default_scale: softmax_scale where the call gives none.
    """

    spec: str
    default_scale: float


def problem_of(q, k, v, features: tuple, score_mod, mask_mod) -> tuple[PosedProblem, tuple]:
    """The problem of a call, once its sizes are checked, and the captured tensors.

    features: the fields of ``Features``, which is made where the problem is a new one.
    """
    if score_mod is None and mask_mod is None:  # most calls, which are spared two calls here
        mods = NOTHING
    else:
        mods = already_captured(score_mod, mask_mod) or captured_on(q.device, score_mod, mask_mod)
        if mods.tables:
            check_captured(mods.tables)
    try:
        q_shape, k_shape, v_shape = untraced_shapes(q, k, v) if _is_tracing() else (
            q.shape, k.shape, v.shape,
        )  # fmt: skip
    except RuntimeError:  # nested tensors have none
        check_all_dense(q=q, k=k, v=v)
        raise
    score_mod, mask_mod = mods.score_mod, mods.mask_mod
    try:
        problem = _known_problem(q.dtype, q_shape, k_shape, v_shape, features, score_mod, mask_mod)
    except TypeError:  # symbolic sizes have no hash
        problem = _problem(q.dtype, q_shape, k_shape, v_shape, features, score_mod, mask_mod)
    return problem, mods.tables


def problem_while_compiling(
    q, k, v, features: tuple, score_mod, mask_mod
) -> tuple[PosedProblem, tuple]:
    """As ``problem_of``, in code that torch.compile can read."""
    features = _decided(features)
    _check_sizes(features, q.shape, k.shape, v.shape)
    head_dims = (operator.index(q.shape[-1]), operator.index(v.shape[-1]))
    known, scale = (features, q.dtype, *head_dims), head_dims[0] ** -0.5
    mods = already_captured(score_mod, mask_mod)
    if mods is None:
        text, tables = _captured_json(q.device, score_mod, mask_mod, *known)
        return PosedProblem(text, scale), tables
    check_captured(mods.tables)
    return PosedProblem(_json(*known, mods.score_mod, mods.mask_mod), scale), mods.tables


def _decided(features: tuple) -> tuple:
    """``features`` with the compiler's decision which of the numbers that it computes there are.

    It hands a plain tuple on as a constant, and would lose the fields of a NamedTuple.
    """
    known = (str, tuple, type(None))
    return tuple([x if isinstance(x, known) else as_flag("kind", x) for x in features])


def _problem(dtype, q, k, v, features: tuple, score_mod, mask_mod) -> PosedProblem:
    """The problem of the shapes q, k and v."""
    _check_sizes(features, q, k, v)
    head_dim, head_dim_v = operator.index(q[-1]), operator.index(v[-1])
    return PosedProblem(
        _name(features, dtype, head_dim, head_dim_v, score_mod, mask_mod), head_dim**-0.5
    )


# Shapes repeat: one look-up takes the place of a dozen comparisons.
_known_problem = lru_cache(maxsize=4096)(_problem)


def _check_sizes(features: tuple, q, k, v) -> None:
    check = check_sizes if Features(*features).sequences == "dense" else check_packed_sizes
    check(q, k, v)


@lru_cache(maxsize=1024)
def _name(features: tuple, dtype, head_dim, head_dim_v, score_mod, mask_mod) -> str:
    """The name of the spec of these; the totals of packed batches seldom repeat."""
    return spec_name(_spec(Features(*features), dtype, head_dim, head_dim_v, score_mod, mask_mod))


def _spec(
    features: Features,
    dtype: torch.dtype,
    head_dim: int,
    head_dim_v: int,
    score_mod: ScoreProgram | None,
    mask_mod: ScoreProgram | None,
) -> AttentionSpec:
    score_mod = before(features.inputs, score_mod)
    if features.is_steep and score_mod is None:
        score_mod = _UNCHANGED.score_mod
    fields = features._asdict()
    del fields["is_steep"], fields["inputs"]
    return AttentionSpec(
        dtype=NAMES[dtype],
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        score_mod=score_mod,
        mask_mod=mask_mod,
        **fields,
    )


@run_by_compiler
def _json(constants: tuple, dtype, head_dim, head_dim_v, score_mod, mask_mod) -> str:
    """The spec as JSON; constants: the fields of Features."""
    features = Features(*constants)
    return spec_json(_spec(features, dtype, head_dim, head_dim_v, score_mod, mask_mod))


@run_by_compiler
def _captured_json(device, score_mod, mask_mod, constants: tuple, dtype, head_dim, head_dim_v):
    """As ``_json``, of functions that are traced first, and the tensors they captured."""
    mods = captured_on(device, score_mod, mask_mod)
    for number, table in enumerate(mods.tables):  # the compiler would make a constant of it
        check_no_gradient(f"captured tensor {number}", table)
    text = _json(constants, dtype, head_dim, head_dim_v, mods.score_mod, mods.mask_mod)
    return text, mods.tables
