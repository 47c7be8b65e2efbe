"""The softmax of whole rows on CPUs, and its gradient: a task takes a row, in vectors."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..target import CpuTarget
from .forms.row_gradient import row_gradient
from .forms.row_softmax import row_softmax
from .vector_math import VectorMath


@dataclass(frozen=True)
class RowSoftmaxConfig(Config):
    """vector: float32 lanes of a register. step: vectors between which sums are rescaled, or that
    a row is computed by."""

    schedule = "cpu.softmax"
    registers = 0
    # Rows and columns that are computed together, where a row's length is not known.
    block_q = block_k = 1
    vector: int = 16
    step: int = 16

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        return []

    def tile(self, spec: AttentionSpec) -> RowSoftmaxConfig:
        return self

    @classmethod
    def defaults(
        cls, spec: AttentionSpec, target: CpuTarget, bucket: str
    ) -> tuple[RowSoftmaxConfig, ...]:
        """The only config of a target."""
        return (cls(vector=target.vector),)


@dataclass(frozen=True)
class RowGradientConfig(RowSoftmaxConfig):
    """The same numbers for the gradient."""

    schedule = "cpu.softmax_backward"


def schedule_softmax(spec: AttentionSpec, config: RowSoftmaxConfig) -> tirx.PrimFunc:
    """``row_softmax`` in the dtype of ``spec``, ready to compile."""
    return _by_rows(row_softmax, spec, config)


def schedule_softmax_gradient(spec: AttentionSpec, config: RowGradientConfig) -> tirx.PrimFunc:
    """``row_gradient`` in the dtype of ``spec``, ready to compile."""
    return _by_rows(row_gradient, spec, config)


def _by_rows(form, spec: AttentionSpec, config: RowSoftmaxConfig) -> tirx.PrimFunc:
    functions = VectorMath(spec.element.exp2_degree)
    sch = s_tir.Schedule(form(spec, config.vector, config.step, functions))
    sch.parallel(sch.get_loops(sch.get_sblock("row"))[0])
    return sch.mod["main"]
