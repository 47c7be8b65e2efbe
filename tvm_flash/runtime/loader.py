"""Load an artifact: check it, open it with tvm_ffi alone, give CPU kernels torch's threads."""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tvm_ffi

from ..artifact.folder import open_to_all
from ..artifact.library import KernelRecord, Manifest, read, refuse
from ..machine import amx_refusal, architecture, cpu_features, system
from ..problem.arguments import Argument, arguments, missing_sizes, shape_of, size_values
from ..problem.lengths import buckets_of, stand_in
from ..problem.spec import AttentionSpec
from .machine_code import Code, CodeError, mapped
from .openmp import torch_openmp

logger = logging.getLogger("tvm_flash")


@dataclass(frozen=True, eq=False)
class Kernel:
    """A loaded kernel, called with what ``arguments`` names, in that order: torch tensors, numbers.

    device: "cpu" or "cuda", where all of them lie. buckets: the lengths it is meant for, though it
    is right for any; none named: all. module: the library's functions, as tvm_ffi sees them.
    """

    spec: AttentionSpec
    direction: str
    config: dict[str, Any]
    meta: dict[str, Any]
    function: Callable[..., Any] = field(repr=False)
    device: str = "cpu"
    buckets: tuple[str, ...] = ()
    module: tvm_ffi.Module | None = field(default=None, repr=False)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """Its arguments in order, each with name, shape, dtype and role."""
        return arguments(self.spec, self.direction)

    def sizes(self, sizes: Sequence[int], threads: int) -> dict[str, int]:
        """``size_values`` of a call with B, H, Hk, Sq, Sk = ``sizes``, on so many CPU threads."""
        return size_values(self.spec, sizes, self.meta, threads if self.device == "cpu" else 0)

    def shapes(self, sizes: Sequence[int], threads: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all its tensors but captured tables, by name."""
        values = self.sizes(sizes, threads)
        own = (a for a in self.arguments if a.is_tensor and not a.is_table)
        return {a.name: shape_of(a, values) for a in own}


@dataclass(frozen=True, eq=False)
class Library:
    """An opened artifact. Its code, a copy of ``path``'s, stays mapped until the process ends.

    symbols: the functions of that copy; opening ``path`` again would give another.
    """

    path: Path
    manifest: Manifest
    kernels: list[Kernel]
    symbols: ctypes.CDLL | None = None

    def __repr__(self) -> str:
        return f"Library({str(self.path)!r}, {len(self.kernels)} kernels)"


# What the operators may use, by the spec's name (quicker to look up than a spec), direction, device
# and length bucket. A later library's kernel takes the place of an earlier one's.
registered: dict[tuple[str, str, str, str], Kernel] = {}


def load(path: str | Path) -> Library:
    """Open the artifact at ``path`` (a directory, or its manifest.json) and register its kernels.

    A kernel serves the length buckets it was built for, and stands in for those that no loaded
    library has: what was built ahead of time never waits for a compiler. Raises ArtifactError,
    before any of its code runs, when it is corrupt, was made for another machine, or for another
    tvm_ffi. Warns when anybody may write to its folder or one above it.
    """
    library = opened(path)
    _warn_of_open_folders(library)
    register(library.kernels)
    _fill_gaps(library.kernels)
    return library


def load_beside(path: str | Path) -> Library:
    """``load``, whose kernels serve only what no kernel was loaded or compiled for before."""
    library = opened(path)
    _warn_of_open_folders(library)
    for kernel in library.kernels:
        for bucket in _own_buckets(kernel):
            registered.setdefault((*_problem(kernel), bucket), kernel)
    _fill_gaps(library.kernels)
    return library


def _warn_of_open_folders(library: Library) -> None:
    for part in open_to_all(library.path):
        logger.warning(
            "anybody may change %s, and so the code of %s; `chmod o-w %s`", part, library.path, part
        )


def _problem(kernel: Kernel) -> tuple[str, str, str]:
    return kernel.spec.name, kernel.direction, kernel.device


def register(kernels: Iterable[Kernel]) -> None:
    """Let the operators use ``kernels`` for the buckets that they were built for."""
    for kernel in kernels:
        for bucket in _own_buckets(kernel):
            registered[(*_problem(kernel), bucket)] = kernel


def _fill_gaps(kernels: Iterable[Kernel]) -> None:
    """Give every bucket of the specs of ``kernels`` that nothing was built for its stand-in."""
    for problem in set(map(_problem, kernels)):
        buckets = buckets_of(problem[1])
        keys = {bucket: (*problem, bucket) for bucket in buckets}
        found = {b: registered[key] for b, key in keys.items() if key in registered}
        built = {b: kernel for b, kernel in found.items() if b in _own_buckets(kernel)}
        for bucket in buckets:
            if nearest := stand_in(bucket, built):
                registered[(*problem, bucket)] = built[nearest]


def _own_buckets(kernel: Kernel) -> tuple[str, ...]:
    return kernel.buckets or buckets_of(kernel.direction)


def opened(path: str | Path) -> Library:
    """The artifact at ``path``, checked and opened, of which the operators know nothing yet.

    Raises as ``load`` does.
    """
    artifact = read(path)
    manifest = artifact.manifest
    if reasons := unfit_reasons(manifest):
        raise refuse(
            artifact.library, ", ".join(reasons), "build it on this machine or load one made for it"
        )
    try:
        code = mapped(artifact.code, manifest.sha256, artifact.library.parent.name)
    except CodeError as error:
        reason = f"the dynamic linker refuses it ({error})"
        raise refuse(artifact.library, reason, error=error) from error
    kernels = [_kernel(artifact.library, code, record, manifest) for record in manifest.kernels]
    if manifest.device == "cpu":
        _bind_threads(artifact.library, code)
    return Library(artifact.library, manifest, kernels, code.symbols)


def unfit_reasons(manifest: Manifest) -> list[str]:
    """Why this machine and environment cannot run the library (empty: they can)."""
    here = {"system": system(), "architecture": architecture()}
    reasons = [
        f"it needs {name}={manifest.target.get(name)!r}, this is {value!r}"
        for name, value in here.items()
        if manifest.target.get(name) != value
    ]
    missing = sorted(set(manifest.cpu_features) - cpu_features())
    if missing:
        reasons.append(f"this CPU lacks {' '.join(missing)}")
    if (
        not missing
        and any(name.startswith("amx") for name in manifest.cpu_features)
        and amx_refusal()
    ):
        reasons.append(f"the kernel refuses AMX to this process ({amx_refusal()})")
    built, installed = manifest.versions.get("tvm_ffi", "unknown"), tvm_ffi.__version__
    if _series(built) != _series(installed):
        reasons.append(f"it was built for tvm_ffi {built}, installed is {installed}")
    return reasons


def _series(version: str) -> list[str]:
    """major.minor: tvm_ffi keeps its C interface within these."""
    return version.split(".")[:2]


def _kernel(path: Path, code: Code, record: KernelRecord, manifest: Manifest) -> Kernel:
    if absent := missing_sizes(record.direction, record.meta):
        raise refuse(path, f"its manifest gives no {', '.join(absent)} for {record.symbol}")
    if not code.module.implements_function(record.symbol):
        raise refuse(path, f"it has no kernel {record.symbol!r}, which its manifest lists")
    function = code.module.get_function(record.symbol)
    fields = (record.spec, record.direction, record.config, record.meta)
    return Kernel(*fields, function, manifest.device, record.buckets, code.module)


def _bind_threads(path: Path, code: Code) -> None:
    """Tell the library where torch's OpenMP is, if there is a torch; else it finds one itself."""
    bind = getattr(code.symbols, "tvm_flash_bind_threads", None)
    if bind is None:
        raise refuse(path, "it has no tvm_flash_bind_threads, so tvm_flash did not link it")
    if "torch" not in sys.modules:
        return
    openmp = torch_openmp()
    addresses = (openmp.run_team, openmp.threads, openmp.in_parallel) if openmp else (None,) * 3
    bind.restype = None
    bind(*map(ctypes.c_void_p, addresses))
