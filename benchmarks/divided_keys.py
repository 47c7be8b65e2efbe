"""What dividing keys costs a GPU kernel: registers, and counts of the interpreter, beside the plain
forward with the same tile. Nothing is timed. update_readme.py writes the table of docs/cuda.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from tvm_flash.bench.table import Table, words
from tvm_flash.codegen.cuda import ptx_of
from tvm_flash.codegen.nvcc import assemble
from tvm_flash.problem.arguments import WRITTEN, arguments, given_sizes, names, size_values
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.ptx_interpreter import Report
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.schedules.cuda.program import CudaProgram
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.layouts import as_sequences
from tvm_flash.verify.plan import run_program

RESULTS = Path(__file__).parent / "results" / "divided-keys.json"
ARCH = ARCHS["sm_80"]
ASSEMBLED = ("sm_80", "sm_90")
# One query of heads that share their keys, over so many keys in so many parts.
HEADS, KEYS, SPLITS = 4, (768, 1536), 3
SPECS = [
    AttentionSpec(dtype="bfloat16", head_dim=head_dim, sequences=kind)
    for kind in ("dense", "paged")
    for head_dim in (64, 128, 256)
]
DIRECTIONS = {"forward": "cuda.forward", "forward_split": "cuda.forward_split"}


def main() -> None:
    """Compile and interpret every kernel of the table."""
    RESULTS.write_text(json.dumps([row for spec in SPECS for row in rows(spec)], indent=1) + "\n")


def rows(spec: AttentionSpec) -> Iterator[dict]:
    """The plain forward with the tile of the divided one, and the two launches of that."""
    (config, *_) = SCHEDULES.defaults(spec, "forward_split", ARCH)
    for direction, schedule in DIRECTIONS.items():
        fields = {**config.to_json(), "schedule": schedule}
        ((_, program),) = cuda_programs(spec, direction, (ARCH,), fields)
        ptx = ptx_of(program)
        few, more = (_reports(spec, direction, program, ptx, keys) for keys in KEYS)
        for number, step in enumerate(program.launches):
            cubins = [assemble(ptx[number], step.name, arch) for arch in ASSEMBLED]
            instructions = [reports[number].instructions.total() for reports in (few, more)]
            yield {
                "sequences": spec.sequences,
                "head_dim": spec.head_dim,
                "kernel": direction if number == 0 else "merge",
                "tile": [config.block_q, config.block_k, config.num_warps, config.stages],
                "registers": [cubin.resources.registers for cubin in cubins],
                "local_bytes": [cubin.resources.in_local_memory for cubin in cubins],
                "shared_bytes": step.shared_bytes,
                "instructions_per_key": (instructions[1] - instructions[0]) / (KEYS[1] - KEYS[0]),
                "key_bytes": sum(more[number].bytes_read[name] for name in "kv") / KEYS[1],
                "bank_conflicts": more[number].total_bank_conflicts,
            }


def _reports(
    spec: AttentionSpec, direction: str, program: CudaProgram, ptx: list[str], keys: int
) -> list[Report]:
    shapes = {"q": (1, 1, HEADS), "k": (1, keys, 1), "v": (1, keys, 1)}
    given = {n: torch.randn(*x, spec.head_dim).bfloat16() for n, x in shapes.items()}
    sizes: tuple | dict = (1, HEADS, 1, 1, keys)
    given, call = as_sequences(spec.sequences, given, sizes), arguments(spec, direction)
    if spec.sequences != "dense":
        sizes = {**given_sizes(call, given), "max_seqlen_k": keys}
    values = {**size_values(spec, sizes, program.meta), "splits": SPLITS}
    given = {**given, "softmax_scale": spec.head_dim**-0.5}
    call = completed(call, given, new_tensors(values))
    return run_program(program, ptx, call, outputs=names(arguments(spec, direction), *WRITTEN))


def table(found: list[dict]) -> Table:
    """The rows for people. Of four heads: the plain forward has a block for each of them."""
    columns = words(
        "head_dim", "kernel", "tile, warps, stages", "registers sm_80, sm_90", "spilled",
        "shared, KiB", "instructions a key", "bytes of K and V a key", "bank conflicts",
    )  # fmt: skip
    lines = []
    for row in found:
        block_q, block_k, *others = row["tile"]
        is_merge = row["kernel"] == "merge"
        lines.append((
            f"{row['head_dim']} {row['sequences']}",
            row["kernel"],
            "" if is_merge else ", ".join([f"{block_q} x {block_k}", *map(str, others)]),
            ", ".join(map(str, row["registers"])),
            ", ".join(map(str, row["local_bytes"])),
            f"{row['shared_bytes'] / 1024:.0f}",
            f"{row['instructions_per_key']:.1f}",
            f"{row['key_bytes']:.0f}",
            str(row["bank_conflicts"]),
        ))  # fmt: skip
    return Table("", columns, lines)


if __name__ == "__main__":
    main()
