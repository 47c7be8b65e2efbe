"""Load an artifact: check it, open it with tvm_ffi alone, give CPU kernels torch's threads."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm_ffi

from ..artifact.folder import open_to_all
from ..artifact.library import KernelRecord, Manifest, read, refuse
from ..machine import amx_refusal, architecture, cpu_features, system
from ..problem.lengths import buckets_of, stand_in
from ..problem.spec import AttentionSpec
from .machine_code import Code, CodeError, mapped
from .openmp import torch_openmp

logger = logging.getLogger("tvm_flash")


@dataclass(frozen=True, eq=False)
class Kernel:
    """A loaded kernel, called with torch tensors, (B, S, H, D) or (.., B, H, Sq), in this order.

    forward: q, k, v, out, *spec.forward_statistics, *tables, softmax_scale.
    backward: q, k, v, out, dout, *spec.saved_statistics, dlse, dq, dk, dv, delta, dq_acc, *tables,
    softmax_scale.
    device: "cpu" or "cuda", where all of them lie. buckets: the lengths it is meant for, though it
    is right for any; none named: all.
    """

    spec: AttentionSpec
    direction: str
    config: dict[str, Any]
    meta: dict[str, Any]
    function: Callable[..., Any] = field(repr=False)
    device: str = "cpu"
    buckets: tuple[str, ...] = ()

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def workspace(
        self,
        batch: int,
        num_heads: int,
        num_kv_heads: int,
        seqlen_q: int,
        seqlen_k: int,
        threads: int,
        capability: tuple[int, int] | None = None,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of delta (B, H, Sq) and dq_acc (C, B, H, Sq_pad, D_pad), zeros: float32, backward.

        With C private copies of dQ, C key tiles of a head can run at once: as many as the threads
        need where batch x heads cannot occupy them. On CUDA, for a device of ``capability``, there
        is one copy, or, for a kernel that sums dQ in registers, a single element.
        """
        if self.device == "cuda":
            return self._cuda_workspace(batch, num_heads, seqlen_q, capability)
        query_tiles = -(-seqlen_q // self.meta["block_q"])
        key_tiles = -(-seqlen_k // self.meta["block_k"])
        copies = min(key_tiles, max(1, -(-2 * threads // (batch * num_kv_heads))))
        rows = query_tiles * self.meta["block_q"]
        heads = (batch, num_heads)
        return (*heads, seqlen_q), (copies, *heads, rows, self.meta["head_dim_pad"])

    def _cuda_workspace(
        self, batch: int, num_heads: int, seqlen_q: int, capability: tuple[int, int] | None
    ):
        delta = (batch, num_heads, seqlen_q)
        widths = [v["meta"].get("head_dim_pad") for v in self.config["variants"]]
        width = widths[self._variant(capability) if len(set(widths)) > 1 else 0]
        if width is None:
            return delta, (1, 1, 1, 1, 1)
        rows = -(-seqlen_q // self.meta["block_q"]) * self.meta["block_q"]
        return delta, (1, batch, num_heads, rows, width)

    def _variant(self, capability: tuple[int, int] | None) -> int:
        """Index of the variant that the library runs on a device (cuda_runtime_hook.cpp)."""
        if capability is None:
            raise ValueError(
                f"{self.spec.name} {self.direction}: workspaces differ by device, give capability"
            )
        number = 10 * capability[0] + capability[1]
        archs = [
            (int(arch.removeprefix("sm_")), -place)
            for place, variant in enumerate(self.config["variants"])
            for arch in variant["archs"]
        ]
        same = [a for a in archs if a[0] // 10 == capability[0] and a[0] <= number]
        below = [a for a in archs if a[0] <= number]
        return -max(same or below or [(0, 0)])[1]


@dataclass(frozen=True, eq=False)
class Library:
    """An opened artifact. Its code, a copy of ``path``'s, stays mapped until the process ends.

    symbols: the functions of that copy; opening ``path`` again would give another.
    """

    path: Path
    manifest: Manifest
    kernels: list[Kernel]
    symbols: ctypes.CDLL | None = field(default=None, repr=False)


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
    for part in open_to_all(library.path):
        logger.warning(
            "anybody may change %s, and so the code of %s; `chmod o-w %s`", part, library.path, part
        )
    register(library.kernels)
    _fill_gaps(library.kernels)
    return library


def register(kernels: Iterable[Kernel]) -> None:
    """Let the operators use ``kernels`` for the buckets that they were built for."""
    for kernel in kernels:
        for bucket in _own_buckets(kernel):
            registered[kernel.spec.name, kernel.direction, kernel.device, bucket] = kernel


def _fill_gaps(kernels: Iterable[Kernel]) -> None:
    """Give every bucket of the specs of ``kernels`` that nothing was built for its stand-in."""
    for problem in {(kernel.spec.name, kernel.direction, kernel.device) for kernel in kernels}:
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
        raise refuse(artifact.library, f"the dynamic linker refuses it ({error})") from error
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
    if absent := [name for name in _needed(record, manifest.device) if name not in record.meta]:
        raise refuse(path, f"its manifest gives no {', '.join(absent)} for {record.symbol}")
    if not code.module.implements_function(record.symbol):
        raise refuse(path, f"it has no kernel {record.symbol!r}, which its manifest lists")
    function = code.module.get_function(record.symbol)
    fields = (record.spec, record.direction, record.config, record.meta)
    return Kernel(*fields, function, manifest.device, record.buckets)


def _needed(record: KernelRecord, device: str) -> tuple[str, ...]:
    """What the workspaces of a kernel are sized by."""
    if record.direction == "forward":
        return ()
    return ("block_q",) if device == "cuda" else ("block_q", "block_k", "head_dim_pad")


def _bind_threads(path: Path, code: Code) -> None:
    """Tell the library where torch's OpenMP is; without one it runs on the calling thread."""
    bind = getattr(code.symbols, "tvm_flash_bind_threads", None)
    if bind is None:
        raise refuse(path, "it has no tvm_flash_bind_threads, so tvm_flash did not link it")
    openmp = torch_openmp()
    if openmp is not None:
        addresses = (openmp.run_team, openmp.threads, openmp.in_parallel)
        bind.restype = None
        bind(*map(ctypes.c_void_p, addresses))
