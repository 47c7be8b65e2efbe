"""Verify a built artifact: CPU kernels run, CUDA ones run too or interpreted, host code and all."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..artifact.library import KernelRecord, Manifest
from ..errors import UnsupportedSpec
from ..runtime import loader
from ..runtime.loader import Kernel, Library
from ..schedules.cuda.arch import ARCHS, serving_arch
from .buffers import moved, poison, run_elsewhere
from .hook import InterpretedDevice
from .trial import CallArguments, Candidate, Progress, tile_of, verification, with_forward
from .verdict import Verification

if TYPE_CHECKING:
    from ..ptx_interpreter import Report


class WrongVariant(AssertionError):
    """A library launched kernels of a variant that its manifest gives to other devices."""


def verify_library(
    path: str | Path,
    *,
    directions: Collection[str] | None = None,
    archs: Collection[str] | None = None,
    quick: bool = False,
    seed: int = 0,
    gpu: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Hold every kernel of the artifact at ``path`` to FlashAttention's error rule.

    A CUDA library runs as it ships (argument checks, dispatch, grids) on a device that interprets
    the PTX of the artifact with all checks on, once for each variant; ``archs`` picks those that
    serve one of them. A CPU library runs natively. ``quick``: one problem for each kernel. ``gpu``:
    a CUDA library runs on torch's GPU instead, the variants that this takes. Raises ArtifactError
    for a library, manifest or PTX that is not what was built, UnsupportedSpec for a GPU that is not
    there or not served; what is wrong with a kernel is in the verdict.
    """
    with _loaded(path) as library:
        found = [
            candidate
            for candidate in candidates(library, seed, gpu)
            if directions is None or candidate.direction in directions
            if archs is None or set(archs) & set(candidate.archs)
        ]
        settings: dict[str, Any] = {"quick": quick, "seed": seed, "progress": progress}
        return verification(str(path), library.manifest.device, found, **settings)


@contextmanager
def _loaded(path: str | Path) -> Iterator[Library]:
    """The artifact, opened; the operators go on with the kernels that they had."""
    before = dict(loader.registered)
    try:
        yield loader.load(path)
    finally:
        loader.registered.clear()
        loader.registered.update(before)


def candidates(library: Library, seed: int = 0, gpu: bool = False) -> list[Candidate]:
    """Every kernel and variant, on a ``gpu`` those of its architecture; backwards know forwards.

    Raises UnsupportedSpec for a GPU that is not there or not served.
    """
    own = served_here(library.path.parent, library.manifest) if gpu else ""
    found = []
    for record, kernel in zip(library.manifest.kernels, library.kernels, strict=True):
        if library.manifest.device == "cpu":
            found.append(_native(kernel, record.symbol))
        else:
            for variant in record.config["variants"]:
                if not gpu:
                    found.append(_interpreted(library, record, kernel, variant, seed))
                elif own in variant["archs"]:
                    found.append(_on_gpu(record, kernel, variant, own))
    return [with_forward(c, found) for c in found]


def _native(kernel: Kernel, symbol: str) -> Candidate:
    def run(call: CallArguments, written: tuple[str, ...]) -> list[Report]:
        poison(call, kernel.arguments)
        kernel(*call.values())
        return []

    known = (symbol, kernel.spec, kernel.direction, ())
    return Candidate(*known, tile_of(kernel.meta), kernel.meta, run, torch.get_num_threads())


def served_here(path: Path, manifest: Manifest) -> str:
    """The architecture of the library at ``path`` whose machine code torch's GPU runs.

    Raises UnsupportedSpec where there is none, with what to build.
    """
    if manifest.device == "cpu":
        raise UnsupportedSpec(f"{path} is a library for CPUs: its kernels do not run on a GPU")
    if not torch.cuda.is_available():
        raise UnsupportedSpec(
            "no CUDA GPU here: torch.cuda.is_available() is False; without --gpu, tvm-flash verify "
            "takes an interpreter"
        )
    archs = manifest.target["archs"]
    capability = torch.cuda.get_device_capability()
    found = serving_arch(capability, [ARCHS[name] for name in archs])
    if found is None:
        number = "".join(map(str, capability))
        raise UnsupportedSpec(
            f"{path} is built for {', '.join(archs)}, this GPU is sm_{number}: "
            f"build it for --target cuda:sm_{number}"
        )
    return found.name


def _on_gpu(record: KernelRecord, kernel: Kernel, variant: dict[str, Any], arch: str) -> Candidate:
    def run(call: CallArguments, written: tuple[str, ...]) -> list[Report]:
        run_elsewhere(call, kernel.arguments, _to_gpu, partial(_run_on_gpu, kernel))
        return []

    known = (record.symbol, record.spec, record.direction, (arch,))
    return Candidate(*known, tile_of(variant["meta"]), kernel.meta, run)


def _to_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return moved(tensor, "cuda")


def _run_on_gpu(kernel: Kernel, placed: CallArguments) -> None:
    kernel(*placed.values())
    torch.cuda.synchronize()


def _interpreted(
    library: Library, record: KernelRecord, kernel: Kernel, variant: dict[str, Any], seed: int
) -> Candidate:
    archs = tuple(variant["archs"])
    arch = ARCHS[archs[0]]
    device = InterpretedDevice(library, arch.capability, plain=not arch.warp_groups, seed=seed)
    own = {f"{x['name']}_kernel" for x in record.launches if set(x["archs"]) & set(archs)}

    def run(call: CallArguments, outputs: tuple[str, ...]) -> list[Report]:
        device.launched.clear()
        with device:
            reports = device.call(kernel, call, outputs=outputs)
        if foreign := set(device.launched) - own:
            raise WrongVariant(f"a device of {archs[0]} was given {', '.join(sorted(foreign))}")
        return reports

    known = (record.symbol, record.spec, record.direction, archs)
    return Candidate(*known, tile_of(variant["meta"]), kernel.meta, run)
