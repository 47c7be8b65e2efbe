"""What `tvm-flash bench` is given that was built before, or how to build it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError, TvmFlashError

if TYPE_CHECKING:
    from ..artifact.library import Manifest
    from ..bench import Built

_BUILD = "tvm-flash build --preset benchmark --target cuda:{arch} -o {name}"
_CARRY = (
    "tvm-flash tune bf16,d=128,causal bf16,d=128 --target cuda:{arch} --trials 10 --carry {name}"
)


def refuse_device(device: str) -> None:
    """Raise TvmFlashError where ``device`` is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        cause = (
            "torch.cuda.is_available() is False"
            if torch.version.cuda
            else "it is torch without CUDA, install torch's CUDA build"
        )
        raise TvmFlashError(f"no CUDA device for torch {torch.__version__}: {cause}")


def built_before(artifact: Path | None, candidates: Path | None, device: str) -> Built:
    """The manifests of a library to measure and of candidates of searches.

    Raises ArtifactError for what is not there, with the command that builds it, UnsupportedSpec for
    another GPU's, TvmFlashError for what only GPU suites take.
    """
    from ..bench import Built

    if device == "cpu":
        if candidates is not None:
            raise TvmFlashError("--candidates are of GPUs: give --suite gpu, or leave them out")
        return Built(_manifest(artifact, _BUILD) if artifact else None)
    library = _served(artifact) if artifact else None
    if artifact is None:
        _refuse_without_compiler()
    return Built(library, _carried(candidates) if candidates else None)


def _served(artifact: Path) -> Manifest:
    """The manifest of a library for this GPU."""
    from ..verify.library import served_here

    manifest = _manifest(artifact, _BUILD)
    served_here(artifact, manifest)
    return manifest


def _carried(candidates: Path) -> Manifest:
    """The manifest of candidates for this GPU."""
    from ..tune.carried import carried_tasks
    from ..tune.cuda_search import gpu_at_hand

    manifest = _manifest(candidates, _CARRY)
    arch, _ = carried_tasks(candidates)
    gpu_at_hand(f"cuda:{arch.name}")
    return manifest


def _manifest(path: Path, command: str) -> Manifest:
    from ..artifact.library import verify

    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist: build it where TVM and a compiler are, and carry it here: "
            + command.format(arch=_arch(), name=path.name)
        )
    return verify(path)[1]


def _refuse_without_compiler() -> None:
    """Kernels that nobody built are compiled when they are needed, where that can be."""
    from importlib.util import find_spec

    if find_spec("tvm") is None:
        raise TvmFlashError(
            "no kernels, and no TVM to compile them: build a library where there is TVM, "
            f"`{_BUILD.format(arch=_arch(), name='kernels')}`, carry it here, and give "
            "--artifact kernels"
        )


def _arch() -> str:
    """The best architecture for torch's GPU, as targets name it; without one an example."""
    import torch

    from ..schedules.cuda.arch import ARCHS, serving_arch

    here = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if here else (9, 0)
    arch = serving_arch(capability, ARCHS.values())
    return arch.name if arch else "sm_{}{}".format(*capability)
