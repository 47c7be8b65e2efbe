"""A compiled config's work, counted: its PTX is interpreted on two small problems, and judged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...artifact.library import symbol_name
from ...codegen.cache import content, digest
from ...codegen.sass.listing import Instruction
from ...codegen.versions import build_versions
from ...problem.arguments import named_sizes
from ...problem.spec import AttentionSpec
from ...ptx_interpreter import Report
from ...schedules.cuda.arch import WARP
from ...schedules.cuda.entries import key_work, query_work
from ...schedules.cuda.program import CudaProgram, Launch
from ...verify.plan import grid_of, run_program
from ...verify.problems import Problem
from ...verify.trial import CallArguments, Candidate, judge, tile_of
from ...verify.verdict import Outcome
from ..trial import Sizes
from .visited import key_loads, query_loads
from .work import Amounts, KernelWork, solved

# Which part of an SM a PTX opcode occupies; the first that matches. What is none of these (moves,
# branches, parameters) takes an issue slot or nothing at all: ptxas decides.
_PARTS = (
    ("special", r"ex2|rcp|rsqrt|sqrt|lg2|sin|cos|tanh|div\.\w*\.?f32"),
    ("float32", r"(?:fma|mad|mul|add|sub|neg|abs)\.(?:\w+\.)*f32"),
    ("integer", r"(?:add|sub|mul|mad|shl|shr|and|or|xor|not|lop3|bfe|div|rem)\.(?:\w+\.)*[usb]\d"),
    ("integer", r"min|max|setp|selp|cvt|vote|shfl"),
)
# Bytes of a warp through shared memory: "x4" matrices of 128, or 32 lanes of a vector of words.
_MATRICES = re.compile(r"ldmatrix.*\.x(\d)")
_VECTOR = re.compile(r"(?:ld|st)\.(?:volatile\.)?shared(?:\.v(\d))?\.[busf](\d+)")
_PRODUCT = re.compile(r"mma\..*\.m(\d+)n(\d+)k(\d+)\..*")
_FREE = re.compile(r"mov|cvta|ld\.param|ret|bra|cvt\.\w*64")
# What a run fills shared memory by, beyond what opcodes name.
_COPY = re.compile(r"cp\.async\.c[ag]")
_SECTOR = 32


@dataclass(frozen=True)
class Counted:
    """What the launches of one program do, and whether its results hold to the error rule.

    failure: why not, or what the interpreter found (empty: right). error, allowed: of the result
    nearest to its limit. launches: work of a block and of a visited tile, in launch order.
    """

    failure: str
    error: float | None
    allowed: float | None
    launches: tuple[tuple[Amounts, Amounts], ...] = ()

    def to_json(self) -> dict[str, Any]:
        works = [[base.to_json(), tile.to_json()] for base, tile in self.launches]
        return {**asdict(self), "launches": works}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Counted:
        works = tuple((Amounts(**base), Amounts(**tile)) for base, tile in data["launches"])
        return cls(data["failure"], data["error"], data["allowed"], works)


def count(spec: AttentionSpec, direction: str, program: CudaProgram, ptx: Sequence[str]) -> Counted:
    """Interpret ``program`` on one and on two tiles of rows; kept on disk by its PTX."""
    key = {
        **build_versions(),
        "spec": spec.to_json(),
        "direction": direction,
        "config": program.config,
        "ptx": list(ptx),
        "counted": _sources(),
    }
    name = f"{digest(key)}.json"
    return content(
        name,
        lambda: json.dumps(_count(spec, direction, program, ptx).to_json()).encode(),
        read=lambda kept: Counted.from_json(json.loads(kept)),
    )


@lru_cache(maxsize=1)
def _sources() -> list[str]:
    """The code that decides what is counted: this folder's, the interpreter's, the error rule's."""
    package = Path(__file__).resolve().parents[2]
    folders = (Path(__file__).parent, package / "ptx_interpreter", package / "verify")
    files = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return [path.read_text(encoding="utf-8") for path in files]


def _count(
    spec: AttentionSpec, direction: str, program: CudaProgram, ptx: Sequence[str]
) -> Counted:
    longest = max(program.meta["block_q"], program.meta["block_k"])
    runs = [_run(spec, direction, program, ptx, length) for length in (longest, 2 * longest)]
    outcomes = [outcome for outcome, _ in runs]
    if failure := next((o.failure for o in outcomes if not o.ok), ""):
        return Counted(failure, None, None)
    nearest = max((d for o in outcomes for d in o.deviations), key=lambda d: d.error / d.allowed)
    works = []
    for number, launch in enumerate(program.launches):
        warps = launch.threads // WARP
        visited = [
            block_tiles(spec, program, launch, Sizes(1, 1, 1, length, length))
            for length in (longest, 2 * longest)
        ]
        works.append(
            solved(
                [
                    (len(tiles), sum(tiles), amounts(reports[number], warps))
                    for tiles, (_, reports) in zip(visited, runs, strict=True)
                ]
            )
        )
    return Counted("", nearest.error, nearest.allowed, tuple(works))


def kernel_works(
    spec: AttentionSpec,
    program: CudaProgram,
    counted: Counted,
    sizes: Sizes,
    registers: Sequence[int],
    rounds: Sequence[Sequence[Instruction]] | None = None,
) -> list[KernelWork]:
    """The work of every launch on a problem.

    In launch order: registers of a thread; steady rounds of the main loops (None: not simulated).
    """
    rounds = rounds or [()] * len(program.launches)
    return [
        KernelWork(
            base, tile, block_tiles(spec, program, launch, sizes), launch.threads // WARP, used,
            launch.shared_bytes, overlap_of(program.config, launch.name), steady,
        )
        for launch, (base, tile), used, steady in zip(
            program.launches, counted.launches, registers, rounds, strict=True
        )
    ]  # fmt: skip


def _run(
    spec: AttentionSpec, direction: str, program: CudaProgram, ptx: Sequence[str], length: int
) -> tuple[Outcome, list[Report]]:
    """The verdict on one head of ``length`` rows and keys, and what its launches did."""
    reports = []

    def run(call: CallArguments, outputs: tuple[str, ...]) -> list[Report]:
        reports.extend(run_program(program, ptx, call, outputs=outputs))
        return reports

    symbol = symbol_name(spec, direction)
    candidate = Candidate(symbol, spec, direction, (), tile_of(program.meta), program.meta, run)
    return judge(candidate, Problem("counted", length, length, heads=1)), reports


def block_tiles(
    spec: AttentionSpec, program: CudaProgram, launch: Launch, sizes: Sizes
) -> list[int]:
    """Tiles that each block of ``launch`` visits, in the order of launch."""
    extents, blocks = named_sizes(sizes), (program.meta["block_q"], program.meta["block_k"])
    if launch.name.endswith("_dkdv"):
        return key_loads(spec, key_work(extents, blocks[1]), sizes, *blocks)
    if launch.name.endswith(("_delta", "_dq")):
        x, y, z = grid_of(launch, extents)
        return [0] * (x * y * z)
    return query_loads(spec, query_work(extents, blocks[0]), sizes, *blocks)


def overlap_of(config: Mapping[str, object], name: str) -> float:
    """Which part of a tile's time passes between asking for data and waiting for them.

    Two stages: all of it. One: the forward loads V during Q K^T and K during P V, half a tile; the
    backward loads Q and dO during dQ alone, one of five products.
    """
    if name.endswith(("_delta", "_dq")):
        return 0.0
    if config.get("stages") == 2:
        return 1.0
    return 0.2 if name.endswith("_dkdv") else 0.5


def amounts(report: Report, warps: int) -> Amounts:
    """The work in what an interpreted launch executed."""
    found = dict.fromkeys(("tensor", "special", "float32", "integer"), 0.0)
    shared, issued = 128.0 * report.total_bank_conflicts, 0
    for opcode, times in report.instructions.items():
        if product := _PRODUCT.match(opcode):
            m, n, k = map(int, product.groups())
            found["tensor"] += times * 2 * m * n * k * (2 if "tf32" in opcode else 1)
        elif part := next((p for p, pattern in _PARTS if re.match(pattern, opcode)), None):
            found[part] += times * WARP
        shared += times * shared_bytes(opcode)
        issued += 0 if _FREE.match(opcode) else times
    sectors = sum(sum(kind.values()) for kind in report.sectors.values())
    # A reduction in L2 reads and writes what it adds to.
    l2 = _SECTOR * int(sectors) + 2 * 4 * int(sum(report.atomics.values()))
    return Amounts(**found, shared=shared, issued=issued, l2=l2, barriers=report.barriers / warps)


def shared_bytes(opcode: str) -> int:
    """Bytes that one warp moves through shared memory by ``opcode``."""
    if matrices := _MATRICES.match(opcode):
        return 128 * int(matrices[1])
    if vector := _VECTOR.match(opcode):
        return WARP * int(vector[1] or 1) * int(vector[2]) // 8
    if _COPY.match(opcode):
        return WARP * (16 if ".cg." in opcode else 4)
    return 0
