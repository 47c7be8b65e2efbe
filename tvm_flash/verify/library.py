"""Verify a built artifact: CUDA kernels interpreted under its own host code, CPU ones run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..artifact.library import KernelRecord
from ..runtime import loader
from ..runtime.loader import Kernel, Library
from .buffers import poison
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
    progress: Progress | None = None,
) -> Verification:
    """Hold every kernel of the artifact at ``path`` to FlashAttention's error rule.

    A CUDA library runs as it ships (argument checks, dispatch, grids) on a device that interprets
    the PTX of the artifact with all checks on, once for each variant; ``archs`` picks those that
    serve one of them. A CPU library runs natively. ``quick``: one problem for each kernel. Raises
    ArtifactError for a library, manifest or PTX that is not what was built; what is wrong with a
    kernel is in the verdict.
    """
    with _loaded(path) as library:
        found = [
            candidate
            for candidate in _candidates(library, seed)
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


def _candidates(library: Library, seed: int) -> list[Candidate]:
    """Every kernel and variant; backwards know their forwards."""
    found = []
    for record, kernel in zip(library.manifest.kernels, library.kernels, strict=True):
        if library.manifest.device == "cpu":
            found.append(_native(kernel, record.symbol))
        else:
            for variant in record.config["variants"]:
                found.append(_interpreted(library, record, kernel, variant, seed))
    return [with_forward(c, found) for c in found]


def _native(kernel: Kernel, symbol: str) -> Candidate:
    def run(call: CallArguments, written: tuple[str, ...]) -> list[Report]:
        poison(call, written)
        kernel(*call.values())
        return []

    known = (symbol, kernel.spec, kernel.direction, ())
    return Candidate(*known, tile_of(kernel.meta), kernel.meta, run, torch.get_num_threads())


def _interpreted(
    library: Library, record: KernelRecord, kernel: Kernel, variant: dict[str, Any], seed: int
) -> Candidate:
    archs = tuple(variant["archs"])
    capability = divmod(int(archs[0].removeprefix("sm_")), 10)
    device = InterpretedDevice(library, capability, seed=seed)
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
