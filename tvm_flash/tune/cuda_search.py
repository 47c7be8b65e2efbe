"""Searches on this machine's GPU: whether there is one, and what is searched on it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UnsupportedSpec
from ..problem.spec import AttentionSpec
from ..schedules.cuda.arch import ARCHS, CudaArch, cuda_archs
from .analytical.cuda import problem_of
from .trial import SearchTask


def gpu_at_hand(target: str) -> CudaArch | None:
    """The architecture of torch's GPU, if ``target`` ("cuda", "cuda:sm_90") means it; else None.

    A target of other architectures, or of several, is ranked and not measured.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    own = ARCHS.get(f"sm_{10 * major + minor}")
    asked = target.partition(":")[2]
    return own if own is not None and (not asked or cuda_archs(target) == (own,)) else None


def gpu_tasks(
    specs: Sequence[AttentionSpec], directions: Sequence[str], arch: CudaArch
) -> list[SearchTask]:
    """One search for each spec and direction; a GPU kernel serves all lengths.

    Raises UnsupportedSpec for what no schedule serves, and for the ordered backward, whose second
    kernel has no space.
    """
    from ..schedules.cuda.space import cuda_space

    if "backward_deterministic" in directions:
        raise UnsupportedSpec(["backward_deterministic has no space of its own: tune backward"])
    return [
        SearchTask(cuda_space(spec, d, arch), spec, d, arch.name, problem_of(spec))
        for spec in dict.fromkeys(specs)
        for d in directions
    ]
