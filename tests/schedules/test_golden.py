"""Scheduled code as text: a change to a definition or schedule shows as a diff.

`pytest tests/schedules/test_golden.py --update-golden` writes the files anew: read
the diff, then commit.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from golden_text import compare

from tvm_flash.artifact.library import symbol_name
from tvm_flash.cli.spec_text import parse_spec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.schedules.select import scheduled_module
from tvm_flash.schedules.target import cpu_target

FOLDER = Path(__file__).parent / "golden"

# Few, and different where schedules differ: element type, mask, score function, instruction set.
GOLDEN = [
    ("x86-64-v4", "fp32,d=64"),
    ("x86-64-v4", "fp32,d=64,causal,softcap"),
    ("x86-64-v4+bf16", "bf16,d=80,causal,window,alibi"),
    ("x86-64-v3", "fp32,d=64,causal"),
]


# Kernels for GPUs: the score and mask of each element stand in the text, and the order of copies,
# barriers and products. Tiles as small as they go: loops over fragments are unrolled.
GOLDEN_CUDA = [("sm_80", "bf16,d=16,causal"), ("sm_75", "f16,d=8,softcap")]
# Kinds of sequences whose blocks search for their entries, and whose rows lie in pages.
ENTRIES_CUDA = [
    (replace(parse_spec("f16,d=8"), sequences=kind), direction)
    for kind, direction in (
        ("packed", "forward"), ("packed", "backward"), ("paged", "forward"),
        ("packed", "forward_split"),
    )
]  # fmt: skip
APPENDS, APPENDING = replace(parse_spec("bf16,d=8"), sequences="paged"), ("x86-64-v3", "sm_80")
# Kernels that are no attention.
BESIDE = [
    ("x86-64-v3", "f16,d=8,causal,linear", "linear"), ("x86-64-v3", "bf16,row_softmax", "softmax"),
    ("x86-64-v3", "fp32,row_softmax", "softmax_backward"),
    ("sm_80", "bf16,row_softmax", "softmax_backward"),
    ("sm_80", "f16,d=8,causal,linear", "linear"), ("sm_80", "fp32,row_softmax", "softmax"),
]  # fmt: skip
SMALL = {"block_q": 16, "block_k": 16, "num_warps": 1}
# Kernels of warp groups: roles, barriers, order of issue.
HOPPER = {
    "forward": {"schedule": "cuda.hopper_forward", "block_q": 128, "block_k": 16},
    "backward": {"schedule": "cuda.hopper_backward", "block_q": 128},
}
OF_WARP_GROUPS = parse_spec("bf16,d=8,causal")


def file_name(spec, direction, target):
    return f"{symbol_name(spec, direction)}.{target}.txt"


def assert_recorded(spec, direction, target, code, update_golden):
    compare(FOLDER / file_name(spec, direction, target), f"{code.strip()}\n", update_golden)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("target", "text"), GOLDEN, ids=lambda value: value.replace(",", "_"))
def test_scheduled_code(target, text, direction, update_golden):
    spec = parse_spec(text)
    code = scheduled_module(spec, direction, cpu_target(target)).mod.script()
    assert_recorded(spec, direction, target, code, update_golden)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("arch", "text"), GOLDEN_CUDA, ids=lambda value: value.replace(",", "_"))
def test_scheduled_cuda_code(arch, text, direction, update_golden):
    spec = parse_spec(text)
    ((_, program),) = cuda_programs(spec, direction, (ARCHS[arch],), SMALL)
    code = "\n".join(launch.func.script() for launch in program.launches)
    assert_recorded(spec, direction, arch, code, update_golden)


@pytest.mark.parametrize(("spec", "direction"), ENTRIES_CUDA, ids=lambda x: getattr(x, "name", x))
def test_scheduled_cuda_code_of_entries(spec, direction, update_golden):
    ((_, program),) = cuda_programs(spec, direction, (ARCHS["sm_80"],), SMALL)
    code = "\n".join(launch.func.script() for launch in program.launches)
    assert_recorded(spec, direction, "sm_80", code, update_golden)


@pytest.mark.parametrize("direction", HOPPER)
def test_scheduled_code_of_warp_groups(direction, update_golden):
    arch, config = ARCHS["sm_90a"], HOPPER[direction]
    ((_, program),) = cuda_programs(OF_WARP_GROUPS, direction, (arch,), config)
    code = "\n".join(each.func.script() for each in program.launches if each.tensor_maps)
    assert_recorded(OF_WARP_GROUPS, direction, arch.name, code, update_golden)


@pytest.mark.parametrize("target", APPENDING)
def test_code_of_appending(target, update_golden):
    if target in ARCHS:
        ((_, program),) = cuda_programs(APPENDS, "append", (ARCHS[target],))
        code = program.launches[0].func.script()
    else:
        code = scheduled_module(APPENDS, "append", cpu_target(target)).mod.script()
    assert_recorded(APPENDS, "append", target, code, update_golden)


@pytest.mark.parametrize(("target", "text", "direction"), BESIDE)
def test_code_beside_attention(target, text, direction, update_golden):
    spec = parse_spec(text)
    if target in ARCHS:
        ((_, program),) = cuda_programs(spec, direction, (ARCHS[target],))
        code = program.launches[-1].func.script()
    else:
        code = scheduled_module(spec, direction, cpu_target(target)).mod.script()
    assert_recorded(spec, direction, target, code, update_golden)


def test_no_golden_file_is_left_over():
    recorded = [
        (parse_spec(text), direction, target)
        for target, text in GOLDEN + GOLDEN_CUDA
        for direction in ("forward", "backward")
    ]
    recorded += [(*found, "sm_80") for found in ENTRIES_CUDA]
    recorded += [(OF_WARP_GROUPS, direction, "sm_90a") for direction in HOPPER]
    recorded += [(APPENDS, "append", target) for target in APPENDING]
    recorded += [(parse_spec(text), direction, target) for target, text, direction in BESIDE]
    expected = {file_name(*found) for found in recorded}
    assert {path.name for path in FOLDER.glob("*.txt")} <= expected
