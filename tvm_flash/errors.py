"""Every error of its own that the package raises."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

# Both keep any file from being opened, whatever its permissions and the room on its disk.
_NO_DESCRIPTORS = {
    errno.ENFILE: "too many open files on this machine: raise sysctl fs.file-max",
    errno.EMFILE: "too many open files: raise ulimit -n",
}


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


class SpillError(BuildError):
    """A kernel was compiled, and too many of its registers are kept in memory to use it."""


class HardwareFailure(TvmFlashError):
    """Nothing can be evaluated any more; what was evaluated before stays recorded."""


class CacheFull(TvmFlashError, RuntimeError):
    """A cache has no room for what was asked for, and is as it was before."""


def remedy_for(error: BaseException | None, otherwise: str = "") -> str:
    """What to do about a failed system call: ``otherwise``, unless file descriptors ran out.

    error: an OSError, or one of a library that passes on the system's words without the number;
    None where no call failed.
    """
    number = getattr(error, "errno", None)
    for lacking, remedy in _NO_DESCRIPTORS.items():
        if number == lacking or (number is None and os.strerror(lacking) in str(error)):
            return remedy
    return otherwise
