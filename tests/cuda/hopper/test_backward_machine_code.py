"""What ptxas makes of the backward for sm_90a: no spill, products in the order of the sketch."""

import pytest
from hopper_kernels import ARCH, assembled

from tvm_flash.codegen.sass.flow import loops
from tvm_flash.codegen.sass.listing import disassemble
from tvm_flash.codegen.sass.spills import refused_spills
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.hopper.backward_config import HopperBackwardConfig
from tvm_flash.schedules.cuda.select import cuda_programs

# What the order of a round is read from: opcodes, and the names that stand for them here.
SIGNS = {"HGMMA": "product", "MUFU": "exp2", "STSM": "dS", "BAR": "meet", "UBLKRED": "add",
         "REDG": "add", "RED": "add"}  # fmt: skip


def built(direction="backward", role="dkdv", config=None, **fields):
    """(launch, cubin) of the launch ``role`` of the default for sm_90a, or of ``config``."""
    spec = AttentionSpec(**{"dtype": "bfloat16", **fields})
    given = config and config.to_json()
    ((_, program),) = cuda_programs(spec, direction, (ARCH,), given)
    assert role == "dq" or program.config["schedule"] == HopperBackwardConfig.schedule
    return assembled(program, f"_{role}")


def check(*launch, few_spills=False, **fields):
    """The main loop in SIGNS, of a kernel that keeps all in registers and products in flight.

    few_spills: as many as a build accepts, none that a round stores.
    """
    launch, cubin = built(*launch, **fields)
    assert few_spills or not cubin.resources.in_local_memory, cubin.resources
    assert not refused_spills(launch, [cubin])  # products that wait for each other too
    code = disassemble(cubin.code, launch.name)
    main = max(loops(code), key=lambda loop: loop.products)
    return [sign for at in sorted(main.body) if (sign := sign_of(code[at]))]


def sign_of(instruction):
    """What an instruction means for the order: a word of SIGNS, a wait for products, or nothing."""
    opcode = instruction.opcode
    if opcode.startswith("WARPGROUP.DEPBAR"):
        return "wait"
    if opcode.startswith("MUFU"):
        return "exp2" if opcode == "MUFU.EX2" else None
    return SIGNS.get(opcode.partition(".")[0])


def groups(signs):
    """Products between waits and meetings, in order, with what the words beside them are."""
    found = [[]]
    for word in signs:
        if word in ("wait", "meet"):
            found.append([])
        else:
            found[-1].append(word)
    return [(group.count("product"), set(group) - {"product"}) for group in found]


def test_products_come_in_the_order_of_the_sketch():
    signs = check(head_dim=128, causal=True)
    # dP^T and dV with the exponentials between; dK behind dS; dQ after the meeting; S^T; dQ leaves.
    assert groups(signs) == [
        (8 + 4, {"exp2"}), (4, {"dS"}), (8, set()), (8, set()), (0, {"add"}), (0, set()),
    ]  # fmt: skip
    assert signs.count("exp2") == 32


@pytest.mark.parametrize(
    "dim", [128, *(pytest.param(d, marks=pytest.mark.sweep) for d in (64, 256))]
)
def test_all_products_of_dq_in_order_are_in_flight_at_once(dim):
    keys = {64: 128, 128: 112, 256: 32}[dim]
    signs = check("backward_deterministic", "dq", head_dim=dim, causal=True)
    first, *others = groups(signs)
    assert first == (2 * dim // 16 + keys // 16, set())
    assert not any(products for products, _ in others) and signs.count("exp2") == keys // 2


@pytest.mark.parametrize("sums", ["bulk", "red"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.sweep
def test_of_every_default(dtype, dim, causal, sums):
    config = HopperBackwardConfig(128 if dim == 64 else 64, sums=sums)
    few = dim == 64 and sums == "red"
    signs = check(few_spills=few, dtype=dtype, head_dim=dim, causal=causal, config=config)
    assert signs.count("add") == (1 if sums == "bulk" else 8)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(
    "fields", [{"alibi": True}, {"softmax": "sink"}, {"softcap": True}, {"dropout": True}], ids=str
)
@pytest.mark.sweep
def test_variants_are_accepted(fields, dim):
    check(few_spills=True, head_dim=dim, causal=True, **fields)
