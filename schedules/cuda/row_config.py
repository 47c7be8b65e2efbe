"""The config of kernels that move rows and multiply nothing: it has no numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UnsupportedSpec
from ...problem.spec import AttentionSpec
from ..config_fields import Config
from .arch import CudaArch


@dataclass(frozen=True)
class RowConfig(Config):
    """No numbers; a subclass names its schedule."""

    def reasons(self, spec: AttentionSpec, arch: CudaArch) -> list[str]:
        """Why ``arch`` cannot run it for ``spec`` (empty: it can)."""
        converts = spec.dtype != "bfloat16" or arch.bf16
        return [] if converts else ["no conversion to bfloat16: use float16, or sm_80 and later"]

    @classmethod
    def only(cls, spec: AttentionSpec, arch: CudaArch, bucket: str = "") -> list[RowConfig]:
        """The only config. Raises UnsupportedSpec where it does not serve."""
        if reasons := cls().reasons(spec, arch):
            raise UnsupportedSpec([f"{arch.name}: {text}" for text in reasons])
        return [cls()]
