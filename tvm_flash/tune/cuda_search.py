"""Searches on this machine's GPU: whether there is one, and what is searched on it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UnsupportedSpec
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import ARCHS, CudaArch, cuda_archs, serving_arch
from .directions import check_directions
from .sizes import problem_of
from .trial import SearchTask

_HIDE = "CUDA_VISIBLE_DEVICES= before the command hides the GPU, and a model ranks configs instead"


def gpu_at_hand(target: str) -> CudaArch | None:
    """The architecture of torch's GPU, which ``target`` ("cuda", "cuda:sm_90") means; None: no GPU.

    "cuda" means the one that kernels are compiled for at first use: sm_90a and not sm_90.
    Raises UnsupportedSpec, with what to do, for a target of other architectures or of several, and
    for a GPU whose architecture is not in ARCHS.
    """
    import torch

    asked = cuda_archs(target)
    if not torch.cuda.is_available():
        return None
    major, minor = capability = torch.cuda.get_device_capability()
    own = [arch for arch in ARCHS.values() if arch.capability == capability]
    if not own:
        raise UnsupportedSpec(
            f"this GPU is of compute capability {major}.{minor}, records are kept for "
            f"{', '.join(ARCHS)}; {_HIDE}"
        )
    if not target.partition(":")[2]:
        return serving_arch(capability, own)
    if len(asked) > 1 or asked[0] not in own:
        names = " or ".join(arch.name for arch in own)
        raise UnsupportedSpec(
            f"target {target!r} cannot be measured here: this GPU is {names}; {_HIDE}"
        )
    return asked[0]


def gpu_tasks(
    specs: Sequence[AttentionSpec], directions: Sequence[str], arch: CudaArch
) -> list[SearchTask]:
    """One search for each spec and direction; a GPU kernel serves all lengths.

    Raises UnsupportedSpec with the reasons of all that no schedule serves or no search is for.
    """
    from ..schedules.cuda.space import cuda_space

    check_directions(directions)
    found, refused = [], {}
    for spec in dict.fromkeys(specs):
        for d in directions:
            try:
                space = cuda_space(spec, d, arch)
            except UnsupportedSpec as error:
                refused.update({f"{spec.name} {d}: {reason}": None for reason in error.reasons})
                continue
            found.append(SearchTask(space, spec, d, arch.name, problem_of(spec)))
    if refused:
        raise UnsupportedSpec(refused)
    return found
