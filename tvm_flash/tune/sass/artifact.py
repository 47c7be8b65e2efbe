"""The main loops of a built CUDA library, predicted: no GPU is needed, and none is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...artifact.library import Manifest, read_ptx, verify
from ...codegen.nvcc import Resources, assemble
from ...codegen.report import blocks_per_sm
from ...codegen.sass.flow import steady_round
from ...codegen.sass.listing import disassemble
from ...errors import UnsupportedSpec
from ...schedules.cuda.arch import ARCHS
from .prediction import LoopPrediction, predict_loop
from .rates import ASSUMPTIONS, WARP, Assumptions


@dataclass(frozen=True)
class KernelLoop:
    """The main loop of one kernel on one architecture.

    resources: what ptxas of this machine gave it. blocks: that an SM holds. loop: the prediction;
    None where ``reason`` says why there is none.
    """

    name: str
    arch: str
    resources: Resources
    blocks: int
    loop: LoopPrediction | None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "kernel": self.name,
            "arch": self.arch,
            "registers": self.resources.registers,
            "blocks": self.blocks,
            "reason": self.reason,
            "loop": self.loop and self.loop.to_json(),
        }


def predicted_loops(
    path: str | Path,
    archs: Collection[str] | None = None,
    directions: Collection[str] | None = None,
    assumptions: Assumptions = ASSUMPTIONS["base"],
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[KernelLoop]:
    """Predict the main loops of the CUDA artifact at ``path``, for each kernel and architecture.

    Its PTX is assembled again by this machine's ptxas, read back as machine code, and a steady
    round simulated on an SM that holds as many blocks as fit (docs/analytical-models.md). archs,
    directions: those alone ("sm_80"; "forward"). progress: called with what is done, of how many.
    Raises ArtifactError for files that are not what was built, ValueError for a CPU library, and
    BuildError without nvcc or nvdisasm.
    """
    _, manifest = verify(path)
    if manifest.device != "cuda":
        raise ValueError(
            f"{path} is a library for CPUs: only GPU kernels have their loops predicted"
        )
    texts = read_ptx(path)
    wanted = list(_launches(manifest, archs, directions))
    found = []
    for launch, arch in wanted:
        found.append(_predicted(launch, arch, texts[f"{launch['name']}_kernel"], assumptions))
        progress(len(found), len(wanted), f"{launch['name']} {arch}")
    return found


def _launches(
    manifest: Manifest, archs: Collection[str] | None, directions: Collection[str] | None
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each kernel once for each architecture: kernels of several functions may be the same."""
    seen = set()
    for record in manifest.kernels:
        if directions is not None and record.direction not in directions:
            continue
        for launch in record.launches:
            for arch in launch["resources"]:
                key = launch["name"], arch
                if (archs is None or arch in archs) and key not in seen:
                    seen.add(key)
                    yield launch, arch


def _predicted(
    launch: Mapping[str, Any], arch: str, ptx: str, assumptions: Assumptions
) -> KernelLoop:
    name, threads = launch["name"], launch["threads"]
    cubin = assemble(ptx, name, arch)
    shared = launch["shared_bytes"] + cubin.resources.shared
    blocks, _ = blocks_per_sm(ARCHS[arch], cubin.resources.registers, threads, shared)
    known = name, arch, cubin.resources, blocks
    try:
        code = steady_round(disassemble(cubin.code, name))
        if not code:
            return KernelLoop(*known, None, "no loop of matrix products")
        loop = predict_loop(code, ARCHS[arch], threads // WARP, blocks, assumptions)
    except (UnsupportedSpec, ValueError) as error:
        return KernelLoop(*known, None, str(error))
    return KernelLoop(*known, loop)
