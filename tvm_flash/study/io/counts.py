"""Bytes through device memory of three attention algorithms, counted as their kernels run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from ...codegen.cuda import ptx_of
from ...errors import TvmFlashError, UnsupportedSpec
from ...problem.spec import AttentionSpec
from ...reference import attention_reference
from ...schedules.cuda.arch import ARCHS
from ...schedules.cuda.forward import ForwardConfig, forward_launch
from ...schedules.cuda.program import CudaProgram
from ...verify.buffers import tensors_of
from ...verify.plan import run_program
from ...verify.rule import deviations
from ..kernels.original import original_program
from ..kernels.original_config import OriginalConfig
from ..kernels.standard import StandardConfig, standard_program
from .theory import (
    EXACT,
    FLASH2,
    ORIGINAL,
    STANDARD,
    TERMS,
    THEOREM,
    Fit,
    fit,
    key_tile,
    memory_elements,
)

FORMAT = 1
ARCH = ARCHS["sm_80"]
DTYPE = "float16"
SECTOR = 32


class WrongResult(TvmFlashError):
    """A kernel that was counted broke the error rule: its count would mean nothing."""


@dataclass(frozen=True)
class Row:
    """One counted run: batch 1, one head, no mask, seqlen queries and as many keys.

    tile: side of the tile that theory knows (query rows; keys for FlashAttention-1). memory: M,
    elements on chip for that side. shared: bytes of shared memory of the largest block. read,
    written: bytes per tensor, each counted once per warp and instruction. sectors: of 32 bytes that
    these accesses touch. predicted: bytes by theory.EXACT.
    """

    algorithm: str
    seqlen: int
    head_dim: int
    tile: int
    memory: int
    shared: int
    read: dict[str, int]
    written: dict[str, int]
    sectors: int
    predicted: int

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(self.read.values()) + sum(self.written.values())

    def to_json(self) -> dict[str, Any]:
        """One entry of the document's "rows"."""
        return {**asdict(self), "bytes": self.bytes}


def count(algorithm: str, seqlen: int, head_dim: int, tile: int, other: int | None = None) -> Row:
    """Interpret one problem with every check on, hold its result to the error rule, and count.

    other: the side of the tile that changes no count: keys, for FlashAttention-1 queries.
    Raises UnsupportedSpec where the schedule cannot serve the tile, WrongResult, and what the
    interpreter finds.
    """
    other = other or _OTHER_SIDE[algorithm](tile)
    program, ptx = _compiled(algorithm, head_dim, tile, other)
    call = _call(program, seqlen, head_dim, other)
    written = [name for name in tensors_of(call) if name not in ("q", "k", "v")]
    # Any seed but 0: a long run would else let one part of a warp overtake the other.
    reports = run_program(program, ptx, call, outputs=written, seed=1)
    _check(algorithm, call)
    read, wrote = (
        _total(getattr(report, f"bytes_{way}") for report in reports) for way in ("read", "written")
    )
    sectors = sum(sum(kind.values()) for report in reports for kind in report.sectors.values())
    shared = max(step.shared_bytes for step in program.launches)
    return Row(
        algorithm, seqlen, head_dim, tile, memory_elements(tile, head_dim), shared,
        read, wrote, int(sectors), EXACT[algorithm](seqlen, head_dim, tile),
    )  # fmt: skip


def sweep(seqlens: Sequence[int], head_dim: int, tiles: Sequence[int]) -> Iterator[Row]:
    """Every algorithm at every tile and length, those of one compilation together."""
    for tile in tiles:
        for algorithm in EXACT:
            for seqlen in seqlens:
                yield count(algorithm, seqlen, head_dim, tile)


def fits(rows: Iterable[Row]) -> dict[str, dict[str, Fit]]:
    """Per algorithm: "theorem", its own terms alone, and "all", with those of lower order.

    The theorem's form of standard attention knows no tile, so it is fitted at the largest.
    """
    rows = list(rows)
    widest = max(row.tile for row in rows)
    found = {}
    for algorithm, terms in THEOREM.items():
        own = [row for row in rows if row.algorithm == algorithm]
        fixed = [row for row in own if row.tile == widest] if algorithm == STANDARD else own
        found[algorithm] = {
            "theorem": fit(terms, _points(fixed)), "all": fit(tuple(TERMS), _points(own)),
        }  # fmt: skip
    return found


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """The document of ``tvm-flash study io --json``."""
    return {
        "format": FORMAT,
        "dtype": DTYPE,
        "arch": ARCH.name,
        "rows": [row.to_json() for row in rows],
        "fits": {
            algorithm: {name: asdict(one) for name, one in both.items()}
            for algorithm, both in fits(rows).items()
        },
    }


def rows_of(document: dict[str, Any]) -> list[Row]:
    """The rows that ``document`` wrote."""
    return [Row(**{k: v for k, v in row.items() if k != "bytes"}) for row in document["rows"]]


def _total(counters: Iterable[Counter]) -> dict[str, int]:
    return {name: int(number) for name, number in sum(counters, Counter()).items()}


def _points(rows: Iterable[Row]) -> list[tuple[int, int, int, int]]:
    return [(row.seqlen, row.head_dim, row.tile, row.bytes) for row in rows]


@lru_cache(maxsize=16)
def _compiled(
    algorithm: str, head_dim: int, tile: int, other: int
) -> tuple[CudaProgram, list[str]]:
    program = _PROGRAMS[algorithm](AttentionSpec(dtype=DTYPE, head_dim=head_dim), tile, other)
    return program, ptx_of(program)


def _supported(config, spec: AttentionSpec):
    if reasons := config.reasons(spec, ARCH):
        raise UnsupportedSpec(reasons)
    return config


def _standard(spec: AttentionSpec, tile: int, other: int) -> CudaProgram:
    config = _supported(StandardConfig(tile, other, _warps(tile)), spec)
    return standard_program(spec, config, ARCH, "standard")


def _original(spec: AttentionSpec, tile: int, other: int) -> CudaProgram:
    config = _supported(OriginalConfig(other, tile, _warps(tile)), spec)
    return original_program(spec, config, ARCH, "original")


def _flash2(spec: AttentionSpec, tile: int, other: int) -> CudaProgram:
    config = _supported(ForwardConfig(tile, other, _warps(tile)), spec)
    parameters = ("q", "k", "v", "out", "lse", "softmax_scale")
    return CudaProgram("flash2", parameters, (forward_launch(spec, config, ARCH, "flash2"),))


_PROGRAMS: dict[str, Callable[[AttentionSpec, int, int], CudaProgram]] = {
    STANDARD: _standard, ORIGINAL: _original, FLASH2: _flash2,
}  # fmt: skip
_OTHER_SIDE = {STANDARD: key_tile, ORIGINAL: lambda tile: 32, FLASH2: key_tile}


def _warps(tile: int) -> int:
    """Each warp has at least the 16 rows (or keys) of a tensor-core tile."""
    return max(min(4, tile // 16), 1)


def _call(program: CudaProgram, seqlen: int, head_dim: int, keys: int) -> dict[str, Any]:
    """What ``program`` is called with; ``keys``: what the rows of S and P are padded to."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, DTYPE)
    width = -(-seqlen // keys) * keys
    rows, heads = (1, 1, seqlen), (1, seqlen, 1, head_dim)
    call = {name: torch.randn(heads, generator=generator).to(dtype) for name in "qkv"}
    call["out"] = torch.empty(heads, dtype=dtype)
    call |= {name: torch.empty(rows) for name in ("lse", "row_max", "row_sum")}
    call |= {name: torch.empty(*rows, width, dtype=dtype) for name in ("s", "p")}
    call["sums"] = torch.empty(*rows, head_dim)
    call["softmax_scale"] = head_dim**-0.5
    return {name: call[name] for name in program.parameters}


def _check(algorithm: str, call: dict[str, Any]) -> None:
    inputs = (call["q"], call["k"], call["v"])
    exact, plain = (
        dict(zip(("out", "lse"), attention_reference(*inputs, upcast=dtype), strict=True))
        for dtype in (torch.float64, None)
    )
    for held in deviations(DTYPE, {name: call[name] for name in exact}, exact, plain):
        if not held.ok:
            raise WrongResult(f"{algorithm}: {held}")
