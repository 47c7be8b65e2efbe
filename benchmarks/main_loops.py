"""Main loops of GPU kernels side by side, predicted from machine code: nothing is measured.

python benchmarks/main_loops.py "now" ARTIFACT              # a library of `tvm-flash build`
python benchmarks/main_loops.py "FlashAttention-2" FOLDER  # cubins and their index.json

index.json is a list of objects: file; direction ("forward" or "backward"); head_dim; causal; tile,
as text; warps of a block; blocks of an SM; registers of a thread. Its other fields say how the
cubins were made, and are kept. Results go to results/main-loops.json, where a name that is there
already is replaced; update_readme.py writes the table of docs/cuda.md of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_flash.artifact.folder import replacing
from tvm_flash.artifact.library import read_ptx, verify
from tvm_flash.bench.table import Table, numbers, words
from tvm_flash.codegen.nvcc import assemble
from tvm_flash.codegen.report import blocks_per_sm
from tvm_flash.codegen.sass.flow import steady_round
from tvm_flash.codegen.sass.listing import Instruction, disassemble
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.tune.sass.prediction import predict_loop
from tvm_flash.tune.sass.rates import ASSUMPTIONS, WARP

RESULTS = Path(__file__).parent / "results" / "main-loops.json"
ARCH = ARCHS["sm_80"]
# Kernels whose blocks share an SM lock into step as they happen to start: many starts, one mean.
SEEDS = 12


@dataclass(frozen=True)
class Kernel:
    """The kernel of a direction that multiplies matrices, and what is known of it."""

    direction: str
    head_dim: int
    causal: bool
    tile: str
    warps: int
    blocks: int
    registers: int
    code: list[Instruction]


def built_kernels(path: Path) -> Iterator[Kernel]:
    """bfloat16 kernels of the library at ``path``, assembled again for sm_80."""
    texts = read_ptx(path)
    for record in verify(path)[1].kernels:
        spec = record.spec
        if spec.dtype != "bfloat16" or spec.head_dim != spec.head_dim_v or spec.softcap:
            continue
        for launch in record.launches:
            if ARCH.name not in launch["resources"]:
                continue
            cubin = assemble(texts[f"{launch['name']}_kernel"], launch["name"], ARCH.name)
            if not steady_round(code := disassemble(cubin.code, launch["name"])):
                continue
            variants = record.config["variants"]
            (own,) = (v for v in variants if ARCH.name in v["archs"])
            warps, registers = launch["threads"] // WARP, cubin.resources.registers
            blocks, _ = blocks_per_sm(ARCH, registers, launch["threads"], launch["shared_bytes"])
            known = (f"{own['block_q']} x {own['block_k']}", warps, blocks, registers, code)
            yield Kernel(record.direction, spec.head_dim, spec.causal, *known)


def listed_kernels(folder: Path) -> Iterator[Kernel]:
    """The cubins in ``folder``."""
    for entry in json.loads((folder / "index.json").read_text(encoding="utf-8")):
        code = disassemble((folder / entry["file"]).read_bytes(), entry["file"])
        known = ("direction", "head_dim", "causal", "tile", "warps", "blocks", "registers")
        yield Kernel(*(entry[name] for name in known), code)


def predicted(kernel: Kernel) -> dict[str, Any]:
    """A row of the results: shares are of the tensor peak, by assumption: mean, least, most."""
    code = steady_round(kernel.code)
    shares = {}
    for name, assumptions in ASSUMPTIONS.items():
        loop = predict_loop(code, ARCH, kernel.warps, kernel.blocks, assumptions, SEEDS)
        shares[name] = [round(share, 3) for share in (loop.share, loop.least, loop.most)]
    known = {name: value for name, value in vars(kernel).items() if name != "code"}
    return {**known, "round": len(code), "instructions": loop.instructions, "shares": shares}


def table(found: dict[str, Any]) -> Table:
    """A line for each kernel; the last columns are "now" over FlashAttention-2."""
    sets = [(name, {_key(row): row for row in found[name]["rows"]}) for name in found]
    by_name = dict(sets)
    ours, theirs = by_name["now"], by_name["FlashAttention-2"]
    columns = (
        *words("head_dim", "now: tile, warps, blocks an SM"), *numbers("registers"),
        *numbers(*found), *(numbers(f"/ FA2, {name}")[0] for name in ASSUMPTIONS),
    )  # fmt: skip
    rows = []
    for key in sorted(ours, key=lambda key: (key[0] != "forward", key[1:])):
        row = ours[key]
        ratios = [
            f"{row['shares'][name][0] / theirs[key]['shares'][name][0]:.2f}" for name in ASSUMPTIONS
        ]
        shares = [f"{known[key]['shares']['base'][0]:.3f}" for _, known in sets]
        title = f"{row['head_dim']} {row['direction']}, {'causal' if row['causal'] else 'full'}"
        geometry = f"{row['tile']}, {row['warps']}, {row['blocks']}"
        rows.append((title, geometry, str(row["registers"]), *shares, *ratios))
    return Table("", columns, rows)


def _key(row: dict[str, Any]) -> tuple:
    return row["direction"], row["head_dim"], row["causal"]


def main() -> None:
    """Predict the kernels at argv[2] and keep them under the name argv[1]."""
    name, path = sys.argv[1], Path(sys.argv[2])
    index = path / "index.json"
    kernels = listed_kernels(path) if index.is_file() else built_kernels(path)
    rows = [predicted(kernel) for kernel in kernels]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    made = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
    found = {**kept, name: {"made": made, "rows": sorted(rows, key=_key)}}
    with replacing(RESULTS) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
