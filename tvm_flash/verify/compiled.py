"""Verify what a spec compiles to: PTX, without a library."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..artifact.library import DIRECTIONS, symbol_name
from ..errors import UnsupportedSpec
from ..problem.presets import served_pairs
from ..problem.spec import AttentionSpec
from .trial import CallArguments, Candidate, Progress, tile_of, verification, with_forward
from .verdict import Verification

if TYPE_CHECKING:
    from ..ptx_interpreter import Report
    from ..schedules.cuda.arch import CudaArch
    from ..schedules.cuda.program import CudaProgram


def verify_spec(
    spec: AttentionSpec,
    directions: Collection[str] = tuple(DIRECTIONS),
    archs: Collection[str] | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Compile ``spec`` to PTX and hold it to FlashAttention's error rule, interpreted.

    archs: names as "sm_80"; None is all that a library is built for by default. Those that share a
    program are verified together. The configs are the first choices: a build takes the next one
    where registers spill, so that only its library tells what ships. Raises UnsupportedSpec for
    what no schedule serves or without tvm, BuildError without nvcc.
    """
    if find_spec("tvm") is None:
        raise UnsupportedSpec(
            "verifying a spec compiles it, which needs apache-tvm: pip install "
            "'tvm-flash[compile]', or verify a built library"
        )
    from ..codegen.toolkit import find_toolkit
    from ..schedules.cuda.arch import cuda_archs
    from ..schedules.cuda.select import cuda_programs

    find_toolkit()
    served = cuda_archs(archs or "cuda")
    pairs = served_pairs(spec, tuple(directions))
    # A backward is run on what its forward gave, whether that is judged or not.
    found = [
        _candidate(own, direction, chosen, program, seed)
        for own, direction in dict.fromkeys((*_before(pairs), *pairs))
        for chosen, program in cuda_programs(own, direction, served)
    ]
    found = [with_forward(c, found) for c in found if (c.spec, c.direction) in pairs]
    return verification(spec.name, "cuda", found, quick=quick, seed=seed, progress=progress)


def _before(pairs: Collection[tuple[AttentionSpec, str]]) -> list[tuple[AttentionSpec, str]]:
    """The forwards that gradients among ``pairs`` go back from."""
    gradients = ("backward", "backward_deterministic", "tables", "tables_deterministic")
    return [(spec.forward_spec, "forward") for spec, found in pairs if found in gradients]


def _candidate(
    spec: AttentionSpec,
    direction: str,
    archs: tuple[CudaArch, ...],
    program: CudaProgram,
    seed: int,
) -> Candidate:
    from ..codegen.cuda import ptx_of, ptx_version
    from .plan import run_program

    ptx = ptx_of(program, ptx_version(archs))

    def run(call: CallArguments, outputs: tuple[str, ...]) -> list[Report]:
        return run_program(program, ptx, call, outputs=outputs, seed=seed)

    names = tuple(arch.name for arch in archs)
    tile = tile_of(program.meta)
    return Candidate(symbol_name(spec, direction), spec, direction, names, tile, program.meta, run)
