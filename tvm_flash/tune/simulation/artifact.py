"""The main loops of a built CUDA library, predicted: no GPU is needed, and none is measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...artifact.library import KernelRecord, Manifest, read_ptx, verify
from ...codegen.nvcc import Cubin, Resources, assemble
from ...codegen.report import blocks_per_sm
from ...codegen.sass.flow import steady_round
from ...codegen.sass.listing import Instruction, disassemble
from ...errors import ArtifactError, UnsupportedSpec
from ...schedules.cuda.arch import ARCHS, WARP, CudaArch
from .prediction import LoopPrediction, predict_loop
from .rates import ASSUMPTIONS, Assumptions

# The reason of kernels that add up rows and have nothing to predict.
NO_LOOP = "no loop of matrix products"


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
    kernels = built_kernels(path, archs, directions)
    found = []
    for kernel in kernels:
        found.append(_predicted(kernel, assumptions))
        progress(len(found), len(kernels), f"{kernel.name} {kernel.arch.name}")
    return found


@dataclass(frozen=True)
class BuiltKernel:
    """One kernel of a library, for one architecture: what its manifest and its PTX say."""

    record: KernelRecord
    launch: Mapping[str, Any]
    arch: CudaArch
    ptx: str

    @property
    def name(self) -> str:
        """The name of its launch."""
        return self.launch["name"]

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.launch["threads"] // WARP

    @cached_property
    def cubin(self) -> Cubin:
        """Its machine code, by this machine's ptxas."""
        return assemble(self.ptx, self.name, self.arch.name)

    @property
    def blocks(self) -> int:
        """Blocks that an SM holds."""
        resources = self.cubin.resources
        shared = self.launch["shared_bytes"] + resources.shared
        return blocks_per_sm(self.arch, resources.registers, self.launch["threads"], shared)[0]

    def round(self) -> list[Instruction]:
        """A steady round of its main loop; nothing without a loop of matrix products."""
        return steady_round(disassemble(self.cubin.code, self.name))


def built_kernels(
    path: str | Path,
    archs: Collection[str] | None = None,
    directions: Collection[str] | None = None,
) -> list[BuiltKernel]:
    """The kernels of the CUDA artifact at ``path``, each once for each architecture.

    Functions may share a kernel: it is of the first. Raises as ``predicted_loops``.
    """
    _, manifest = verify(path)
    refuse_cpu_library(path, manifest)
    texts, found = read_ptx(path), {}
    for record in manifest.kernels:
        for launch in record.launches:
            for arch in launch["resources"]:
                known = ((directions, record.direction), (archs, arch))
                if all(wanted is None or own in wanted for wanted, own in known):
                    kernel = _kernel(path, record, launch, arch, texts)
                    found.setdefault((launch["name"], arch), kernel)
    return list(found.values())


def refuse_cpu_library(path: str | Path, manifest: Manifest) -> None:
    """Raise ValueError for the library of ``manifest`` unless it is for GPUs."""
    if manifest.device != "cuda":
        raise ValueError(
            f"{path} is a library for CPUs: only GPU kernels have their loops predicted"
        )


def _kernel(
    path: str | Path, record: KernelRecord, launch: Mapping[str, Any], arch: str, texts: Mapping
) -> BuiltKernel:
    """Raises ArtifactError for a launch that no build wrote."""
    text, threads = texts.get(f"{launch['name']}_kernel"), launch["threads"]
    wrong = [
        *([] if text else ["has no PTX"]),
        *([] if arch in ARCHS else [f"is for {arch!r}, which is unknown"]),
        *([] if threads > 0 and threads % WARP == 0 else [f"has {threads} threads a block"]),
    ]
    if wrong:
        raise ArtifactError(f"{path}: {launch['name']} {', '.join(wrong)}; build it again")
    return BuiltKernel(record, launch, ARCHS[arch], text)


def _predicted(kernel: BuiltKernel, assumptions: Assumptions) -> KernelLoop:
    known = kernel.name, kernel.arch.name, kernel.cubin.resources, kernel.blocks
    try:
        code = kernel.round()
        if not code:
            return KernelLoop(*known, None, NO_LOOP)
        loop = predict_loop(code, kernel.arch, kernel.warps, kernel.blocks, assumptions)
    except (UnsupportedSpec, ValueError) as error:
        return KernelLoop(*known, None, str(error))
    return KernelLoop(*known, loop)
