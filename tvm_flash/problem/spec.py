"""AttentionSpec: everything about an attention problem that is fixed when a kernel is compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from ..score.program import MAX_FLOAT32, ScoreProgram, TableType
from ..score.trace import trace_mask_mod, trace_score_mod
from .dtype import DTYPES, DType

ALIGNMENTS = ("bottom_right", "top_left")
RETURNS = ("out_lse", "out")
HEAD_DIM_RANGE = (8, 512)
# Positions and window ends are added in int32.
MAX_WINDOW = 2**30
ALIBI_SLOPES = TableType("float32", 2)
JSON_VERSION = 1
# Run-time strides in every dimension but the last, which is contiguous.
_LAYOUT = "strided"


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """A compile-time attention problem; batch, heads, lengths, strides and scale are run-time.

    dtype: "float32", "bfloat16" or "float16" of q, k, v and out; accumulation is float32.
    head_dim, head_dim_v: 8 to 512, of q and k and of v and out; head_dim_v None means head_dim.
    causal, window_size: as in FlashAttention: row i sees keys in [i - left, i + right], -1 is
        unbounded, causal sets right to 0. Equal masks make equal specs.
    alignment: "bottom_right" counts i from the end, i = q_idx + seqlen_k - seqlen_q
        (FlashAttention); "top_left" from the start, i = q_idx (torch SDPA).
    softcap: cap * tanh(score / cap) after the scale; 0 is off.
    alibi: subtract slopes[b, h] * |i - k_idx|, slopes (B, H) float32 a run-time argument.
    score_mod, mask_mod: traced functions; ``capture`` traces and makes the spec in one go.
    returns: "out_lse" or "out", whether the kernel writes lse too.

    Raises ValueError or TypeError that name the field, its value and the limit.
    """

    dtype: str
    head_dim: int
    head_dim_v: int | None = None
    causal: bool = False
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    score_mod: ScoreProgram | None = None
    mask_mod: ScoreProgram | None = None
    alignment: str = "bottom_right"
    returns: str = "out_lse"

    def __post_init__(self):
        self._set("dtype", str(self.dtype).removeprefix("torch."))
        if self.head_dim_v is None:
            self._set("head_dim_v", self.head_dim)
        _check_choice("dtype", self.dtype, tuple(DTYPES))
        _check_choice("alignment", self.alignment, ALIGNMENTS)
        _check_choice("returns", self.returns, RETURNS)
        check_head_dim("head_dim", self.head_dim)
        check_head_dim("head_dim_v", self.head_dim_v)
        for field in ("causal", "alibi"):
            if not isinstance(getattr(self, field), bool):
                raise TypeError(f"{field}={getattr(self, field)!r} must be True or False")
        self._normalise_mask()
        self._set("softcap", _checked_softcap(self.softcap))
        _check_program("score_mod", self.score_mod, is_score=True)
        _check_program("mask_mod", self.mask_mod, is_score=False)

    def _set(self, name: str, value) -> None:
        object.__setattr__(self, name, value)

    def _normalise_mask(self) -> None:
        left, right = _checked_window(self.window_size)
        right = 0 if self.causal else right
        self._set("window_size", (left, right))
        self._set("causal", right == 0)

    @classmethod
    def capture(
        cls, *, score_mod: Callable | None = None, mask_mod: Callable | None = None, **fields
    ) -> tuple[AttentionSpec, list[torch.Tensor]]:
        """A spec with traced ``score_mod(score, b, h, q_idx, k_idx)`` and ``mask_mod(b, h, q_idx,
        k_idx)``, and the tensors they captured: what follows the ALiBi slopes in a kernel call.

        fields: the spec's others, by their names. Raises as ``trace_score_mod`` does.
        """
        score_program, score_tables = trace_score_mod(score_mod) if score_mod else (None, [])
        mask_program, mask_tables = trace_mask_mod(mask_mod) if mask_mod else (None, [])
        spec = cls(score_mod=score_program, mask_mod=mask_program, **fields)
        return spec, [*score_tables, *mask_tables]

    @property
    def element(self) -> DType:
        """The ``DType`` of q, k, v and out: bytes of an element, names, precision."""
        return DTYPES[self.dtype]

    @property
    def table_types(self) -> tuple[TableType, ...]:
        """Types of the run-time tables: ALiBi slopes, then score_mod's, then mask_mod's."""
        programs = [p for p in (self.score_mod, self.mask_mod) if p is not None]
        captured = tuple(t for p in programs for t in p.tables)
        return (ALIBI_SLOPES, *captured) if self.alibi else captured

    @cached_property
    def saved_statistics(self) -> tuple[str, ...]:
        """Names of the arrays (B, H, Sq) float32 that the backward takes of the forward.

        "lse", and "lse_low" beside a score_mod: it may give scores (a bias of torch.finfo.min, the
        mask of many models) so large that a float32 lse keeps nothing of the sum's logarithm. The
        two together are the log-sum-exp to twice the precision.
        """
        return ("lse", "lse_low") if self.score_mod is not None else ("lse",)

    @property
    def forward_statistics(self) -> tuple[str, ...]:
        """Names of the statistics that the forward writes: none where the spec returns "out"."""
        return self.saved_statistics if self.returns == "out_lse" else ()

    @cached_property
    def name(self) -> str:
        """A deterministic C identifier: names symbols, files and cache entries."""
        left, right = self.window_size
        shape = f"d{self.head_dim}" + f"v{self.head_dim_v}" * (self.head_dim_v != self.head_dim)
        windowed = left != -1 or right > 0
        parts = [
            f"attn_{self.element.short}_{shape}",
            "causal" * self.causal,
            f"w{_bound(left)}_{_bound(right)}" * windowed,
            f"cap{_identifier(self.softcap)}" * bool(self.softcap),
            "alibi" * self.alibi,
            f"s{self.score_mod.digest}" if self.score_mod else "",
            f"m{self.mask_mod.digest}" if self.mask_mod else "",
            "topleft" * (self.alignment == "top_left"),
            "nolse" * (self.returns == "out"),
        ]
        return "_".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with a version, that ``from_json`` reads back to an equal spec."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["window_size"] = list(self.window_size)
        for name in ("score_mod", "mask_mod"):
            data[name] = data[name].to_json() if data[name] is not None else None
        return {"version": JSON_VERSION, **data, "layout": _LAYOUT}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttentionSpec:
        """The spec that ``to_json`` wrote; ValueError or TypeError when it is not one."""
        data = dict(data)
        if (version := data.pop("version", None)) != JSON_VERSION:
            raise ValueError(f"spec of {version=}, this release reads version {JSON_VERSION}")
        if (layout := data.pop("layout", _LAYOUT)) != _LAYOUT:
            raise ValueError(f"spec with {layout=}, this release reads {_LAYOUT!r}")
        if unknown := data.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"spec with unknown fields {sorted(unknown)}")
        data["window_size"] = tuple(data.get("window_size", (-1, -1)))
        for name in ("score_mod", "mask_mod"):
            if data.get(name) is not None:
                data[name] = ScoreProgram.from_json(data[name])
        return cls(**data)


def _check_choice(field: str, value, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field}={value!r} must be one of {', '.join(choices)}")


def check_head_dim(field: str, value) -> None:
    """ValueError or TypeError unless ``value`` is a head dimension that kernels are made for."""
    low, high = HEAD_DIM_RANGE
    if type(value) is not int:
        raise TypeError(f"{field}={value!r} must be an int")
    if not low <= value <= high:
        raise ValueError(f"{field}={value} must lie in {low}..{high}; pad or split the heads")


def _checked_window(window) -> tuple[int, int]:
    is_pair = isinstance(window, (tuple, list)) and len(window) == 2
    if not is_pair or any(type(side) is not int for side in window):
        raise TypeError(f"window_size={window!r} must be two ints (left, right)")
    for side in window:
        if not -1 <= side <= MAX_WINDOW:
            raise ValueError(f"window_size={window} must lie in -1..2^30; -1 is unbounded")
    return tuple(window)


def _checked_softcap(softcap) -> float:
    if not isinstance(softcap, (int, float)) or not math.isfinite(softcap) or softcap < 0:
        raise ValueError(f"{softcap=} must be a finite number >= 0; 0 is off")
    # Kernels multiply by it and by its inverse.
    if softcap and not 1 / MAX_FLOAT32 <= softcap <= MAX_FLOAT32:
        raise ValueError(f"{softcap=} and its inverse must fit float32 (3e-39 to 3e38)")
    return float(softcap)


def _check_program(field: str, program, *, is_score: bool) -> None:
    if program is None:
        return
    if not isinstance(program, ScoreProgram):
        raise TypeError(
            f"{field} must be a ScoreProgram, not {type(program).__name__}: pass the function to "
            "AttentionSpec.capture"
        )
    if program.is_score != is_score:
        raise ValueError(f"{field} is a {'score' if program.is_score else 'mask'} program")


def _bound(side: int) -> str:
    return "x" if side == -1 else str(side)


def _identifier(number: float) -> str:
    text = repr(int(number)) if number == int(number) else repr(number)
    return text.replace(".", "p").replace("-", "m").replace("+", "")
