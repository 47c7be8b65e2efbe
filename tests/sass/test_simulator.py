"""Rounds whose clocks are known from the control words and the rates of an A100's SM."""

from __future__ import annotations

import pytest
from listings import code

from tvm_flash.errors import UnsupportedSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.tune.simulation.prediction import predict_loop
from tvm_flash.tune.simulation.rates import (
    ASSUMPTIONS,
    COPY_SPREAD,
    LATENCIES,
    OPERANDS_READ,
    TO_MEMORY,
    rates_of,
)
from tvm_flash.tune.simulation.simulator import POLICIES, simulate
from tvm_flash.tune.simulation.steps import steps_of

SM_80 = rates_of(ARCHS["sm_80"])
HMMA = "B------:-:-:-:S{} HMMA.16816.F32 R8, R4, R2, R8\n"


def clocks(text, warps=4, blocks=1, policy=POLICIES[0], rates=SM_80, seed=0):
    return simulate(steps_of(code(text), rates), warps, blocks, rates, policy, seed)


def met(text, **settings):
    """Clocks of a round after which the warps of a block meet, so that none gets ahead."""
    return clocks(text + "BAR.SYNC.DEFER_BLOCKING 0x0\n", **settings)


def test_a_chain_takes_the_sum_of_its_stalls():
    chain = "B------:-:-:-:S04 FFMA R0, R1, R2, R0\n" * 10
    assert clocks(chain + "B------:-:-:-:S05 NOP") == 45
    # Two warps of a scheduler fit into each other's gaps; eight keep the unit busy, which takes an
    # instruction every other clock.
    assert met(chain, warps=8) <= 45 + SM_80.barrier
    assert 8 * 20 <= met(chain, warps=32) <= 8 * 20 + 30


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("warps", [4, 8])
def test_products_follow_each_other_after_8_clocks(policy, warps):
    least = 16 * 8 * warps / 4
    assert least <= met(HMMA.format("01") * 16, warps=warps, policy=policy) <= least + 20
    assert clocks(HMMA.format("08") * 16, 4, policy=policy) == 16 * 8
    assert clocks(HMMA.format("12") * 16, 4, policy=policy) == 16 * 12


def test_special_functions_take_8_clocks_each():
    assert clocks("MUFU.EX2 R0, R1\n" * 20) == 20 * 8
    assert 320 - 32 <= met("MUFU.EX2 R0, R1\n" * 20, warps=8) <= 320 + 20


@pytest.mark.parametrize(
    ("opcode", "lines"),
    [
        ("LDSM.16.M88.4", 4),
        ("LDSM.16.MT88.2", 2),
        ("LDSM.16.M88", 1),
        ("LDS.128", 4),
        ("LDS", 1),
        ("STS.64", 2),
    ],
)
def test_all_warps_share_128_bytes_a_clock_of_shared_memory(opcode, lines):
    load = f"B------:-:1:-:S01 {opcode} R0, [R1]\n" * 20 + "B-1----:-:-:-:S01 NOP\n"
    assert 16 * 20 * lines <= met(load, warps=16) <= 16 * 20 * lines + 60


def test_a_result_is_awaited_by_its_counter():
    load = "B------:-:2:-:S01 LDSM.16.M88.4 R4, [R1]\n"
    waited = clocks(load + "B--2---:-:-:-:S01 FFMA R0, R4, R2, R0", warps=1)
    assert waited == LATENCIES["ldmatrix"] + 1
    assert clocks(load + "FFMA R0, R4, R2, R0", warps=1) < waited


def test_operands_are_read_before_they_are_overwritten():
    store = "B------:3:-:-:S01 STS.128 [R1], R4\n"
    waited = clocks(store + "B---3--:-:-:-:S01 FFMA R4, R4, R2, R0", warps=1)
    assert waited == TO_MEMORY + 4 + OPERANDS_READ + 1


def test_warps_of_a_block_meet():
    apart = "B------:-:-:-:S15 NOP\n BAR.SYNC.DEFER_BLOCKING 0x0\n"
    for warps in (1, 4):
        assert clocks(apart, warps) == 15 + SM_80.barrier
    slow = rates_of(ARCHS["sm_80"], ASSUMPTIONS["barrier 30 clocks"])
    assert clocks(apart, rates=slow) == 15 + 30
    # Two warps of one scheduler issue one after the other, and the later one is waited for.
    assert clocks(apart, warps=8) == 16 + SM_80.barrier
    assert clocks(apart, warps=4, blocks=2) == 15 + SM_80.barrier, "blocks do not wait for another"


def test_groups_of_copies():
    """Two groups: the first is waited for while the second is on its way."""
    copy = """
        LDGSTS.E.BYPASS.LTC128B.128 [R2], [R4.64]
        B------:-:0:-:S01 LDGDEPBAR
    """
    both, first = (copy + copy + f"DEPBAR.LE SB0, 0x{left}\n NOP" for left in (0, 1))
    all_waited, one_waited = clocks(both, warps=1), clocks(first, warps=1)
    latency = LATENCIES["l2"]
    assert latency < all_waited <= latency + COPY_SPREAD + 30
    # With one group always left, a round waits for what the last one asked for.
    assert one_waited < all_waited
    assert clocks(copy + "NOP", warps=1) < 30, "who does not wait goes on"


def test_copies_share_the_way_to_l2():
    many = "LDGSTS.E.BYPASS.LTC128B.128 [R2], [R4.64]\n" * 64
    awaited = many + "B------:-:0:-:S01 LDGDEPBAR\n DEPBAR.LE SB0, 0x0\n"
    awaited += "BAR.SYNC.DEFER_BLOCKING 0x0\n"
    fewer = rates_of(ARCHS["sm_80"], ASSUMPTIONS["L2 28 B/clock"])
    full, less = clocks(awaited, warps=16), clocks(awaited, warps=16, rates=fewer)
    assert full >= 16 * 64 * 512 / 40 and less >= 16 * 64 * 512 / 28


def test_what_never_runs_takes_an_issue_slot_alone():
    assert clocks("@!PT LDS RZ, [RZ]\n" * 10 + "NOP") == 11


def test_the_same_seed_gives_the_same_clocks():
    text = HMMA.format("01") * 8 + "MUFU.EX2 R0, R1\n" * 8 + "BAR.SYNC 0x0\n"
    for policy in POLICIES:
        assert clocks(text, 4, 2, policy, seed=1) == clocks(text, 4, 2, policy, seed=1)


def test_a_prediction():
    steady = code(HMMA.format("01") * 8 + "MUFU.EX2 R0, R1\n LDL R3, [R1]\n LDSM.16.M88.4 R4, [R1]")
    found = predict_loop(steady, ARCHS["sm_80"], 4, 2)
    assert found.parts == {
        "tensor": 128, "special": 16, "float32": 0, "integer": 0, "shared": 8 * 5, "issue": 22,
        "l2": 0,
    }  # fmt: skip
    assert found.clocks == 128 and found.bound == "tensor" and found.busy == 1
    assert found.share == found.least == found.most == pytest.approx(1)
    assert found.instructions == {"products": 8, "special": 1, "spill load": 1, "ldmatrix": 1}
    assert found.to_json()["tensor_share"] == [1, 1, 1]


def test_a_prediction_names_its_range():
    text = HMMA.format("08") * 20 + "B------:-:-:-:S13 FMUL R0, R0, R1\n" * 12 + "BAR.SYNC 0x0\n"
    found = predict_loop(code(text), ARCHS["sm_80"], 4, 2)
    assert found.least <= found.share <= found.most < 1
    slower = predict_loop(code(text), ARCHS["sm_80"], 4, 2, ASSUMPTIONS["barrier 30 clocks"])
    assert slower.clocks >= found.clocks


def test_tensor_rates_follow_the_data_sheet():
    text = code(HMMA.format("01") * 8)
    busy = {name: predict_loop(text, ARCHS[name], 4, 1).parts["tensor"] / 8 for name in (
        "sm_75", "sm_80", "sm_86", "sm_90", "sm_120")}  # fmt: skip
    assert busy["sm_75"] == busy["sm_86"] == 16 and busy["sm_80"] == 8 and busy["sm_120"] == 32
    assert busy["sm_90"] == pytest.approx(4 / 0.629)
    tf32 = predict_loop(code("HMMA.1688.F32.TF32 R8, R4, R2, R8"), ARCHS["sm_80"], 4, 1)
    assert tf32.parts["tensor"] == 8


@pytest.mark.parametrize("opcode", ["HGMMA.64x128x16.F32", "UTCHMMA", "HMMA.SP.16832.F32"])
def test_products_of_other_instructions_are_not_modelled(opcode):
    with pytest.raises(UnsupportedSpec, match=f"{opcode} is not modelled"):
        predict_loop(code(f"{opcode} R4, gdesc[UR4]"), ARCHS["sm_90"], 4, 1)


def test_what_cannot_be_simulated():
    with pytest.raises(UnsupportedSpec, match="sm_100"):
        predict_loop(code("NOP"), ARCHS["sm_100"], 4, 1)
    with pytest.raises(ValueError, match="0 instructions"):
        predict_loop([], ARCHS["sm_80"], 4, 1)
    with pytest.raises(ValueError, match="blocks=0"):
        predict_loop(code("NOP"), ARCHS["sm_80"], 4, 0)
