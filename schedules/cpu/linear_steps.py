"""Linear attention of few rows on CPUs: a task takes a head, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from ...problem.lengths import LIMITS
from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..target import CpuTarget
from .forms.linear_steps import linear_steps


@dataclass(frozen=True)
class LinearStepsConfig(Config):
    """No numbers: loops over a row of the state are vectors as they are."""

    schedule = "cpu.linear_steps"
    registers = 0
    # Rows of a part: few rows have one.
    block_q = block_k = LIMITS["tiny"]

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        return [] if spec.causal else ["without causal a row sees keys behind it"]

    def tile(self, spec: AttentionSpec) -> LinearStepsConfig:
        return self


def linear_steps_defaults(
    spec: AttentionSpec, target: CpuTarget, bucket: str
) -> tuple[LinearStepsConfig, ...]:
    """The only config, of few rows in an order."""
    return (LinearStepsConfig(),) if bucket == "tiny" and spec.causal else ()


def schedule_linear_steps(spec: AttentionSpec, config: LinearStepsConfig) -> tirx.PrimFunc:
    """``linear_steps`` of ``spec``, ready to compile."""
    return linear_steps(spec)
