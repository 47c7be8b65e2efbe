"""Every error of its own that the package raises."""

from __future__ import annotations

from collections.abc import Iterable


class TvmFlashError(Exception):
    """Base class of the package's own errors."""


class UnsupportedSpec(TvmFlashError, NotImplementedError):
    """A well-formed request that no kernel can serve; ``reasons`` says why and what to do."""

    def __init__(self, reasons: str | Iterable[str]):
        self.reasons = [reasons] if isinstance(reasons, str) else list(reasons)
        super().__init__("; ".join(self.reasons))


class ArtifactError(TvmFlashError):
    """A library or manifest that is missing, corrupt, truncated or made for another machine."""


class BuildError(TvmFlashError):
    """Compiling or linking a kernel failed."""
