"""Compile Triton kernels to the PTX of this folder, without a GPU.

    pip install triton==3.9.0        # the version of fixtures.json
    python tests/support/ptx/triton/generate.py

Writes NAME.ptx for each entry of FIXTURES, and fixtures.json: what a test must know to launch them.
They are the work of another compiler than ours, so they say whether the interpreter reads PTX as
others write it. Tests read the files only; neither they nor CI need triton.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[3]))

import kernels  # noqa: E402

from tvm_flash.bench import triton_kernels as attention  # noqa: E402

SHORT = {"fp16": "f16", "bf16": "bf16", "fp32": "tf32"}


@dataclass(frozen=True)
class Fixture:
    """One compilation: a kernel, types of its run-time arguments, constants, tile options."""

    name: str
    kernel: triton.JITFunction
    arch: int
    arguments: dict[str, str]  # triton's type names, in order
    constants: dict[str, object]
    num_warps: int = 4
    num_stages: int = 2
    multiples: tuple[str, ...] = ()  # sizes that are multiples of 16: wide copies

    def source(self) -> ASTSource:
        """What triton compiles; pointers and ``multiples`` are declared to be multiples of 16."""
        signature = {**self.arguments, **dict.fromkeys(self.constants, "constexpr")}
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in enumerate(self.arguments.items())
            if kind[0] == "*" or name in self.multiples
        }
        return ASTSource(self.kernel, signature, self.constants, attributes)

    def compile(self):
        """Triton's compiled kernel."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return triton.compile(self.source(), GPUTarget("cuda", self.arch, 32), options)


def fixtures() -> list[Fixture]:
    """Every file of this folder."""
    listed = []
    for arch, dtype, causal in product((80, 90), ("fp16", "bf16"), (False, True)):
        suffix = f"sm{arch}_{SHORT[dtype]}{'_causal' * causal}"
        listed.append(forward(f"forward_{suffix}", arch, dtype, causal))
        if causal == (dtype == "bf16"):  # one of each: these are the large files
            listed += backward(suffix, arch, dtype, causal)
    listed.append(forward("forward_sm90_f16_causal_tma", 90, "fp16", True, tma=True))
    for arch in (80, 90):
        listed += others(arch)
    return [*listed, matmul_tma()]


def forward(name, arch: int, dtype: str, causal: bool, tma: bool = False) -> Fixture:
    """Attention's forward: query tiles of 64 rows, key tiles of 32, D = 64."""
    constants = {"D": 64, "BLOCK_Q": 64, "BLOCK_K": 32}
    constants |= {"CAUSAL": causal, "RAGGED": True, "TMA": tma}
    pointer = f"*{dtype}"
    inputs = {"q": pointer, "k": pointer, "v": pointer}
    if tma:
        rows = {"q": 64, "k": 32, "v": 32}
        inputs = {x: f"tensordesc<{dtype}[1,{rows[x]},64]>" for x in inputs}
    arguments = {**inputs, "out": pointer, "lse": "*fp32", "scale_log2": "fp32"}
    arguments |= {"seqlen_q": "i32", "seqlen_k": "i32"}
    return Fixture(name, attention.attention_forward, arch, arguments, constants)


def backward(suffix: str, arch: int, dtype: str, causal: bool) -> list[Fixture]:
    """Attention's backward: delta, then dk and dv, then dq."""
    pointer = f"*{dtype}"
    inputs = dict.fromkeys(("q", "k", "v", "dout"), pointer) | {"lse": "*fp32", "delta": "*fp32"}
    numbers = {"scale": "fp32", "scale_log2": "fp32", "seqlen_q": "i32", "seqlen_k": "i32"}
    tiles = {"D": 64, "BLOCK_Q": 32, "BLOCK_K": 64}
    options = {"CAUSAL": causal, "RAGGED": True, "TMA": False}
    grads = {"dk": pointer, "dv": pointer}
    swapped = {"D": 64, "BLOCK_Q": 64, "BLOCK_K": 32}
    delta = {"out": pointer, "dout": pointer, "delta": "*fp32", "seqlen_q": "i32"}
    return [
        Fixture(f"delta_{suffix}", attention.attention_delta, arch, delta,
                {"D": 64, "BLOCK_Q": 32}),
        Fixture(f"key_gradients_{suffix}", attention.attention_key_gradients, arch,
                {**inputs, **grads, **numbers}, {**tiles, **options}),
        Fixture(f"query_gradient_{suffix}", attention.attention_query_gradient, arch,
                {**inputs, "dq": pointer, **numbers}, {**swapped, **options}),
    ]  # fmt: skip


def others(arch: int) -> list[Fixture]:
    """Matrix products and row operations."""
    sizes = {"m": "i32", "n": "i32", "k": "i32"}
    tiles = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
    found = []
    for dtype in ("fp16", "fp32"):
        arguments = {**dict.fromkeys("abc", f"*{dtype}"), **sizes}
        name = f"matmul_sm{arch}_{SHORT[dtype]}"
        multiples = ("n", "k") if dtype == "fp16" else ()
        found.append(Fixture(name, kernels.matmul, arch, arguments, tiles, 4, 3, multiples))
    rows = {"x": "*fp16", "y": "*fp16", "columns": "i32"}
    found.append(Fixture(f"softmax_sm{arch}_f16", kernels.softmax, arch, rows, {"BLOCK": 512}))
    rows = {"x": "*bf16", "weight": "*fp32", "bias": "*fp32", "y": "*bf16", "columns": "i32"}
    rows["epsilon"] = "fp32"
    found.append(
        Fixture(f"layer_norm_sm{arch}_bf16", kernels.layer_norm, arch, rows, {"BLOCK": 256})
    )
    return found


def matmul_tma() -> Fixture:
    """The matrix product by tensor maps, Hopper's road."""
    arguments = {"a": "tensordesc<fp16[64,64]>", "b": "tensordesc<fp16[64,64]>"}
    arguments |= {"c": "tensordesc<fp16[64,64]>", "m": "i32", "n": "i32", "k": "i32"}
    tiles = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
    return Fixture("matmul_sm90_f16_tma", kernels.matmul_tma, 90, arguments, tiles, num_stages=3)


def stripped(ptx: str) -> str:
    """``ptx`` without comments and debug information."""
    ptx = re.sub(r"^\s*\.section\b[^{]*\{[^}]*\}", "", ptx, flags=re.MULTILINE)
    ptx = re.sub(r"//[^\n]*", "", ptx)
    lines = (line.rstrip() for line in ptx.splitlines())
    dropped = (".loc", ".file", "$L__tmp", "$L__func", "$L__BB0_end")
    kept = [line for line in lines if line and not line.lstrip().startswith(dropped)]
    return "\n".join(kept).replace(", debug", "") + "\n"


def parameter_types(ptx: str) -> str:
    """Types of the entry's parameters, in order; they end with what triton appends."""
    heading = ptx.partition(".entry")[2].partition("{")[0]
    found = re.findall(r"\.(b8|[bsuf]\d\d)\b[^,]*?_param_\d+(\[\d+\])?", heading)
    return " ".join("".join(parts) for parts in found)


def describe(fixture: Fixture, compiled, ptx: str) -> dict:
    """The fixture's entry in fixtures.json; maps: the tensor maps, in the order of arguments."""
    maps = compiled.metadata.tensordesc_meta or []
    return {
        "kernel": compiled.metadata.name,
        "arch": fixture.arch,
        "shared_bytes": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "arguments": fixture.arguments,
        "constants": fixture.constants,
        "parameters": parameter_types(ptx),
        "maps": [{"box": m["block_size"], "swizzle": m["swizzle"]} for m in maps],
    }


def main() -> None:
    """Write the whole folder."""
    for old in HERE.glob("*.ptx"):
        old.unlink()
    entries = {}
    for fixture in fixtures():
        compiled = fixture.compile()
        ptx = stripped(compiled.asm["ptx"])
        (HERE / f"{fixture.name}.ptx").write_text(ptx, encoding="utf-8")
        entries[fixture.name] = describe(fixture, compiled, ptx)
        print(f"{len(ptx) / 1000:7.1f} KB  {fixture.name}")
    document = {"triton": triton.__version__, "fixtures": entries}
    text = json.dumps(document, indent=1) + "\n"
    (HERE / "fixtures.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
