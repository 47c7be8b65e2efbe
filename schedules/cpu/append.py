"""Appending on CPUs: a task takes some rows; LLVM vectorizes what each thread does to a head."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir, tirx

from ...problem.spec import AttentionSpec
from ..config_fields import Config
from ..target import CpuTarget
from .forms.append import append


@dataclass(frozen=True)
class AppendConfig(Config):
    """No numbers: rows are moved one by one."""

    schedule = "cpu.append"
    registers = 0
    # Rows of new and of old keys that are computed together.
    block_q = block_k = 1

    def reasons(self, spec: AttentionSpec) -> list[str]:
        """Why this config cannot serve ``spec`` (empty: it can)."""
        return []

    def tile(self, spec: AttentionSpec) -> AppendConfig:
        return self


def append_defaults(spec: AttentionSpec, target: CpuTarget, bucket: str) -> tuple[AppendConfig]:
    """The only config."""
    return (AppendConfig(),)


def schedule_append(spec: AttentionSpec, config: AppendConfig) -> tirx.PrimFunc:
    """``append`` of ``spec``, ready to compile."""
    sch = s_tir.Schedule(append(spec))
    sch.parallel(sch.get_loops(sch.get_sblock("row"))[0])
    return sch.mod["main"]
