"""AttentionSpec: everything about an attention problem that is fixed when a kernel is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..score.loads import Load, differentiable_tables, loads
from ..score.program import ScoreProgram, TableType
from .dtype import DTYPES, DType
from .field_checks import (
    HEAD_DIM_RANGE,
    check_block,
    check_choice,
    check_flag,
    check_head_dim,
    check_program,
    check_tables,
)
from .sequences import KINDS

if TYPE_CHECKING:
    import torch

ALIGNMENTS = ("bottom_right", "top_left")
SOFTMAXES = ("softmax", "sink", "softmax1", "sigmoid")
# Kinds of softmax whose rows have an lse where no key is seen; that of a sink is an input.
LSE_WITHOUT_KEYS = {"sink": None, "softmax1": 0.0}
RETURNS = ("out_lse", "out")
_DIMS = ("dtype", "head_dim", "head_dim_v")
# What a spec computes: the fields that it may say besides its defaults. None: all of them.
COMPUTES = {"attention": None, "linear": (*_DIMS, "causal"), "softmax": _DIMS}
ALIBI_SLOPES = TableType("float32", 2)
# Tables of a block mask: where the list of each block of queries begins, the lists; those of keys.
BLOCK_LISTS = (TableType("int32", 3), TableType("int32", 1)) * 2
# 2: window ends and softcap are numbers of a call.
JSON_VERSION = 2
# Fields that are left out where they have their first values: as it was before there were others.
_LATER = ("sequences", "softmax", "dropout", "learned", "block_mask", "computes")
# Run-time strides in every dimension but the last, which is contiguous.
_LAYOUT = "strided"


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """A compile-time attention problem; sizes, strides and numbers are run-time.

    window_left, window_right, softcap and dropout say whether a call gives a number of that name
    (``problem.arguments.NUMBERS``): one kernel serves every window and every cap.

    dtype: "float32", "bfloat16" or "float16" of q, k, v and out; accumulation is float32.
    head_dim, head_dim_v: 8 to 512, of q and k and of v and out; head_dim_v None means head_dim.
    causal, window_left, window_right: row i sees no key after i; none before i - left; none after
        i + right, which causal replaces. Equal masks make equal specs.
    alignment: "bottom_right" counts i from the end, i = q_idx + seqlen_k - seqlen_q
        (FlashAttention); "top_left" from the start, i = q_idx (torch SDPA).
    softcap: cap * tanh(score / cap) after the scale.
    alibi: subtract slopes[b, h] * |i - k_idx|, slopes (B, H) float32 a run-time argument.
    score_mod, mask_mod: traced functions; ``capture`` traces and makes the spec in one go.
    softmax: what makes weights of a row's scores. "softmax"; "sink": with a learned logit per head
        in the denominator, an argument of a call; "softmax1": with a one there; "sigmoid": each key
        by itself, without lse.
    dropout: drop weights by chance (``problem.dropout``); how many is a number of a call.
    returns: "out_lse" or "out", whether the kernel writes lse too.
    sequences: "dense", all of one length in (B, S, H, D); "packed", of any lengths one behind the
        other in (total, H, D); "paged", packed queries over keys in pages, forward only.
    learned: tables, by their numbers in ``table_types``, whose gradients the kernel computes: of
        the direction "tables" alone, whose specs have some.
    block_mask: (queries, keys) of the blocks of which a call lists those that are visited
        (``problem.block_mask``), and those of them where mask_mod may hide a pair; None: no lists.
    computes: "attention"; "linear": linear attention (``problem.linear``), whose weights are the
        products themselves; "softmax": of rows of any length, without values.

    Raises ValueError or TypeError that name the field, its value and the limit.
    """

    dtype: str
    head_dim: int
    head_dim_v: int | None = None
    causal: bool = False
    window_left: bool = False
    window_right: bool = False
    softcap: bool = False
    alibi: bool = False
    score_mod: ScoreProgram | None = None
    mask_mod: ScoreProgram | None = None
    softmax: str = "softmax"
    dropout: bool = False
    alignment: str = "bottom_right"
    returns: str = "out_lse"
    sequences: str = "dense"
    learned: tuple[int, ...] = ()
    block_mask: tuple[int, int] | None = None
    computes: str = "attention"

    def __post_init__(self):
        self._set("dtype", str(self.dtype).removeprefix("torch."))
        if self.head_dim_v is None:
            self._set("head_dim_v", self.head_dim)
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_choice("softmax", self.softmax, SOFTMAXES)
        check_choice("alignment", self.alignment, ALIGNMENTS)
        check_choice("returns", self.returns, RETURNS)
        check_choice("sequences", self.sequences, tuple(KINDS))
        check_choice("computes", self.computes, tuple(COMPUTES))
        check_head_dim("head_dim", self.head_dim)
        check_head_dim("head_dim_v", self.head_dim_v)
        if self.computes == "softmax":  # rows have any length: one spec is for all
            for field in ("head_dim", "head_dim_v"):
                self._set(field, HEAD_DIM_RANGE[0])
        for field in ("causal", "window_left", "window_right", "softcap", "alibi", "dropout"):
            check_flag(field, getattr(self, field))
        self._set("window_right", self.window_right and not self.causal)
        check_program("score_mod", self.score_mod, is_score=True)
        check_program("mask_mod", self.mask_mod, is_score=False)
        self._set("learned", check_tables("learned", self.learned))
        if unknown := [n for n in self.learned if n not in self.differentiable_tables]:
            raise ValueError(f"learned={unknown}: no score has a derivative by such a table")
        if self.block_mask is not None:
            self._set("block_mask", check_block("block_mask", self.block_mask))
            if self.sequences == "paged":
                raise ValueError("block_mask is of dense or packed sequences, not 'paged'")
        _check_said(self)

    def _set(self, name: str, value) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def capture(
        cls, *, score_mod: Callable | None = None, mask_mod: Callable | None = None, **fields
    ) -> tuple[AttentionSpec, list[torch.Tensor]]:
        """A spec with traced ``score_mod(score, b, h, q_idx, k_idx)`` and ``mask_mod(b, h, q_idx,
        k_idx)``, and the tensors they captured: what follows the ALiBi slopes in a kernel call.

        fields: the spec's others, by their names. Raises as ``trace_score_mod`` does.
        """
        # Here, so that a spec alone (help, completion) does not wait for torch.
        from ..score.trace import trace_mask_mod, trace_score_mod

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
        """Types of the run-time tables: ALiBi slopes, score_mod's, mask_mod's, lists of blocks."""
        programs = [p for p in (self.score_mod, self.mask_mod) if p is not None]
        captured = tuple(t for p in programs for t in p.tables)
        lists = BLOCK_LISTS if self.block_mask else ()
        return (*(ALIBI_SLOPES,) * self.alibi, *captured, *lists)

    @cached_property
    def table_loads(self) -> tuple[Load, ...]:
        """Where scores read tables, by their numbers in ``table_types``."""
        own = [Load(0, ("b", "h"), frozenset("bh"))] if self.alibi else []
        found = loads(self.score_mod) if self.score_mod else []
        return (*own, *(load._replace(table=load.table + self.alibi) for load in found))

    @cached_property
    def differentiable_tables(self) -> frozenset[int]:
        """Numbers of the tables, in ``table_types``, that scores have derivatives by."""
        found = differentiable_tables(self.score_mod) if self.score_mod else set()
        return frozenset([*range(self.alibi), *(n + self.alibi for n in found)])

    @cached_property
    def owned_symbols(self) -> frozenset[str]:
        """Those of b, h and q_idx that are an index of each learned table, at the same place in all
        its reads: what lies at different ones of them adds to different elements."""
        found = {"b", "h", "q_idx"}
        for table in self.learned:
            own = [load for load in self.table_loads if load.table == table]
            places = set.intersection(*(set(enumerate(load.axes)) for load in own))
            found &= {symbol for _, symbol in places}
        return frozenset(found)

    @cached_property
    def saved_statistics(self) -> tuple[str, ...]:
        """Names of the arrays (B, H, Sq) float32 that the backward takes of the forward.

        "lse", where a row has a sum, and "lse_low" beside a score_mod: it may give scores (a bias
        of torch.finfo.min, the mask of many models) so large that a float32 lse keeps nothing of
        the sum's logarithm. The two together are the log-sum-exp to twice the precision.
        """
        if not has_sum(self.softmax):
            return ()
        return ("lse", "lse_low") if self.score_mod is not None else ("lse",)

    @property
    def row_statistics(self) -> tuple[str, ...]:
        """Names of what the backward's products take of each row: none without a sum."""
        return (*self.saved_statistics, "delta") if self.saved_statistics else ()

    @property
    def forward_statistics(self) -> tuple[str, ...]:
        """Names of the statistics that the forward writes: none where the spec returns "out"."""
        return self.saved_statistics if self.returns == "out_lse" else ()

    def learning(self) -> AttentionSpec:
        """The spec of the gradients of all tables that have one; ValueError where none has."""
        if not self.differentiable_tables:
            raise ValueError("scores follow from no table that could learn: give slopes or a bias")
        return replace(self, learned=tuple(sorted(self.differentiable_tables)))

    @property
    def forward_spec(self) -> AttentionSpec:
        """The spec of its forward, to which tables that learn are tables as others."""
        return replace(self, learned=())

    @property
    def append_spec(self) -> AttentionSpec:
        """The spec whose kernel appends to its pages: rows are all that it knows of them."""
        return AttentionSpec(
            dtype=self.dtype,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim_v,
            sequences="paged",
        )

    @property
    def is_bounded(self) -> bool:
        """Whether a row sees a range of keys, and not all."""
        return self.causal or self.window_left or self.window_right

    def window(self, numbers: Mapping[str, Any]) -> tuple:
        """(left, right): the ends of what a row sees, of a call's ``numbers``; None is no end."""
        left = numbers["window_left"] if self.window_left else None
        right = numbers["window_right"] if self.window_right else 0 if self.causal else None
        return left, right

    @cached_property
    def name(self) -> str:
        """A deterministic C identifier: names symbols, files and cache entries."""
        shape = f"d{self.head_dim}" + f"v{self.head_dim_v}" * (self.head_dim_v != self.head_dim)
        ends = (self.window_left, self.window_right or self.causal)
        window = {(True, True): "window", (True, False): "windowleft", (False, True): "windowright"}
        parts = [
            "attn" if self.computes == "attention" else self.computes,
            f"{self.element.short}_{shape}",
            self.sequences * (self.sequences != "dense"),
            "causal" * self.causal,
            window[ends] if self.window_left or self.window_right else "",
            "softcap" * self.softcap,
            "alibi" * self.alibi,
            self.softmax * (self.softmax != "softmax"),
            "dropout" * self.dropout,
            f"s{self.score_mod.digest}" if self.score_mod else "",
            f"m{self.mask_mod.digest}" if self.mask_mod else "",
            "topleft" * (self.alignment == "top_left"),
            "nolse" * (self.returns == "out"),
            "".join(["grad", *(f"_{n}" for n in self.learned)]) * bool(self.learned),
            "blocks{}x{}".format(*self.block_mask) if self.block_mask else "",
        ]
        return "_".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with a version, that ``from_json`` reads back to an equal spec."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("score_mod", "mask_mod"):
            data[name] = data[name].to_json() if data[name] is not None else None
        for f in fields(self):
            if f.name in _LATER and data[f.name] == f.default:
                del data[f.name]
            elif isinstance(data[f.name], tuple):
                data[f.name] = list(data[f.name])
        return {"version": JSON_VERSION, **data, "layout": _LAYOUT}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttentionSpec:
        """The spec that ``to_json`` wrote; ValueError or TypeError when it is not one."""
        data = _renewed(data)
        if not _is_version(version := data.pop("version", None), JSON_VERSION):
            raise ValueError(f"spec of {version=}, this release reads version {JSON_VERSION}")
        if (layout := data.pop("layout", _LAYOUT)) != _LAYOUT:
            raise ValueError(f"spec with {layout=}, this release reads {_LAYOUT!r}")
        if unknown := data.keys() - {f.name for f in fields(cls)}:
            raise ValueError(f"spec with unknown fields {sorted(unknown)}")
        for name in ("score_mod", "mask_mod"):
            if data.get(name) is not None:
                data[name] = ScoreProgram.from_json(data[name])
        return cls(**data)


def has_sum(softmax: str) -> bool:
    """Whether weights of this kind are shares of a sum over the row, whose logarithm is lse."""
    return softmax != "sigmoid"


def _check_said(spec: AttentionSpec) -> None:
    """ValueError where a spec that computes no attention says what attention alone has."""
    own = COMPUTES[spec.computes]
    foreign = [] if own is None else [
        f"{f.name}={getattr(spec, f.name)!r:.60}" for f in fields(spec)
        if f.name not in (*own, "computes") and getattr(spec, f.name) != f.default
    ]  # fmt: skip
    if foreign:
        known = ", ".join(own)
        raise ValueError(f"computes={spec.computes!r} has {known} alone, not {', '.join(foreign)}")


def _is_version(found, version: int) -> bool:
    return type(found) is int and found == version


def _renewed(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``data``, turned into today's version where it is of version 1.

    Version 1 held a window and a cap as numbers; ValueError where it has one.
    A window that ends at the row itself was causal.
    """
    data = dict(data)
    if not _is_version(data.get("version"), 1):
        return data
    window, cap = data.pop("window_size", [-1, -1]), data.pop("softcap", 0)
    if window not in ([-1, -1], [-1, 0]) or cap != 0:
        raise ValueError(
            f"spec of version=1 with window_size={window!r:.60}, softcap={cap!r:.60}: these are "
            "numbers of a call now; write window_left, window_right and softcap true or false, "
            "version 2"
        )
    causal = window == [-1, 0] or data.get("causal", False)
    return {**data, "causal": causal, "version": JSON_VERSION}
