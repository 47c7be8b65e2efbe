"""Main loops of GPU kernels side by side, predicted from machine code: nothing is measured.

python benchmarks/main_loops.py "now" ARTIFACT              # a library of `tvm-flash build`
python benchmarks/main_loops.py "FlashAttention-2" FOLDER  # cubins and their index.json

index.json is a list of objects: file; direction ("forward" or "backward"); head_dim; causal; tile,
as text; warps of a block; blocks of an SM; registers of a thread. Its other fields say how the
cubins were made, and are kept. Results go to results/main-loops.json under the name, where rows of
the same direction, head_dim and mask are replaced and others stay: a library may hold a part of the
kernels. update_readme.py writes the table of docs/cuda.md of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_flash.artifact.folder import replacing
from tvm_flash.bench.table import Table, numbers, words
from tvm_flash.codegen.sass.flow import steady_round
from tvm_flash.codegen.sass.listing import Instruction, disassemble
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.tune.simulation.artifact import built_kernels
from tvm_flash.tune.simulation.prediction import predict_loop
from tvm_flash.tune.simulation.rates import ASSUMPTIONS

SETS = ("before", "now", "FlashAttention-2")
RESULTS = Path(__file__).parent / "results" / "main-loops.json"
ARCH = ARCHS["sm_80"]
# Kernels whose blocks share an SM lock into step as they happen to start: many starts, one mean.
SEEDS = 3


@dataclass(frozen=True)
class Kernel:
    """The kernel of a direction that multiplies matrices, and a round of its main loop."""

    direction: str
    head_dim: int
    causal: bool
    tile: str
    warps: int
    blocks: int
    registers: int
    round: list[Instruction]


def ours(path: Path) -> Iterator[Kernel]:
    """Plain bfloat16 kernels of the library at ``path``, for sm_80."""
    for kernel in built_kernels(path, [ARCH.name], ["forward", "backward"]):
        spec, code = kernel.record.spec, kernel.round()
        if code and spec == AttentionSpec(
            dtype="bfloat16", head_dim=spec.head_dim, causal=spec.causal
        ):
            variants = kernel.record.config["variants"]
            (own,) = (v for v in variants if ARCH.name in v["archs"])
            tile, given = f"{own['block_q']} x {own['block_k']}", kernel.cubin.resources
            known = spec.head_dim, spec.causal, tile, kernel.warps, kernel.blocks, given.registers
            yield Kernel(kernel.record.direction, *known, code)


def listed(folder: Path, index: list[dict[str, Any]]) -> Iterator[Kernel]:
    """The cubins in ``folder`` that ``index`` lists."""
    for entry in index:
        code = steady_round(disassemble((folder / entry["file"]).read_bytes(), entry["file"]))
        known = ("direction", "head_dim", "causal", "tile", "warps", "blocks", "registers")
        yield Kernel(*(entry[name] for name in known), code)


def predicted(kernel: Kernel) -> dict[str, Any]:
    """A row of the results: shares are of the tensor peak, by assumption: mean, least, most."""
    shares = {}
    for name, assumptions in ASSUMPTIONS.items():
        loop = predict_loop(kernel.round, ARCH, kernel.warps, kernel.blocks, assumptions, SEEDS)
        shares[name] = [round(share, 3) for share in (loop.share, loop.least, loop.most)]
    known = {name: value for name, value in vars(kernel).items() if name != "round"}
    return {
        **known, "instructions": len(kernel.round), "by_class": loop.instructions, "shares": shares
    }  # fmt: skip


def table(found: dict[str, Any]) -> Table:
    """A line for each kernel: shares under the base assumptions, "now" over FlashAttention-2."""
    sets = {name: {_key(row): row for row in found[name]["rows"]} for name in SETS}
    columns = (
        *words("head_dim", "now: tile, warps, blocks an SM"), *numbers("registers"),
        *numbers(*sets), *numbers(*(f"/ FA2, {name}" for name in ASSUMPTIONS)),
    )  # fmt: skip
    rows = []
    for key in sorted(sets["now"], key=lambda key: (key[0] != "forward", *key[1:])):
        row, theirs = sets["now"][key], sets["FlashAttention-2"][key]["shares"]
        title = f"{row['head_dim']} {row['direction']}, {'causal' if row['causal'] else 'full'}"
        geometry = f"{row['tile']}, {row['warps']}, {row['blocks']}"
        shares = [f"{known[key]['shares']['base'][0]:.3f}" for known in sets.values()]
        ratios = [f"{row['shares'][name][0] / theirs[name][0]:.2f}" for name in ASSUMPTIONS]
        rows.append((title, geometry, str(row["registers"]), *shares, *ratios))
    return Table("", columns, rows)


def _renewed(kept: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``new``, and those of ``kept`` that are of other kernels, in order."""
    rows = {_key(row): row for row in (*kept, *new)}
    return [rows[key] for key in sorted(rows)]


def _key(row: dict[str, Any]) -> tuple:
    return row["direction"], row["head_dim"], row["causal"]


def main() -> None:
    """Predict the kernels at argv[2] and keep them under the name argv[1]."""
    name, path = sys.argv[1], Path(sys.argv[2])
    index = path / "index.json"
    made = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else []
    rows = [predicted(kernel) for kernel in (listed(path, made) if made else ours(path))]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    known = kept.get(name, {"made": [], "rows": []})
    renewed = {"made": _renewed(known["made"], made), "rows": _renewed(known["rows"], rows)}
    found = {**kept, name: renewed}
    with replacing(RESULTS) as draft:
        draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
