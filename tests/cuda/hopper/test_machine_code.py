"""What ptxas makes of the forward for sm_90a: no spill, and exponentials beside products."""

from dataclasses import replace

import pytest
from hopper_kernels import ARCH, assembled

from tvm_flash.codegen.sass.listing import disassemble
from tvm_flash.codegen.sass.overlap import overlap
from tvm_flash.codegen.sass.spills import refused_spills
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.hopper.defaults import FORWARD, hopper_forward_configs
from tvm_flash.schedules.cuda.select import cuda_programs


def built(choice=0, **fields):
    """(launch, cubin) of the default forward for sm_90a, or of one further down the list."""
    spec = AttentionSpec(**{"dtype": "bfloat16", **fields})
    ((_, program),) = cuda_programs(spec, "forward", (ARCH,), choice=choice)
    assert program.config["schedule"] == "cuda.hopper_forward"
    return assembled(program)


def check(choice=0, **fields):
    """Assert that nothing is in memory, and what runs beside the products of a round."""
    launch, cubin = built(choice, **fields)
    assert not cubin.resources.in_local_memory, cubin.resources
    assert not refused_spills(launch, [cubin])
    found = overlap(disassemble(cubin.code, launch.name))
    keys = launch.tensor_maps[1].rows
    # S of 64 x keys: half of it in each of two halves of a warp group's lanes; P beside it.
    assert found.products == -(-fields["head_dim"] // 16) + keys // 16
    # One more for each maximum, unless the mask's own code lies between.
    assert found.exponentials == keys // 2 + 2 and found.beside == found.exponentials


def test_exponentials_run_beside_products():
    check(head_dim=128, causal=True)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("choice", range(4))
@pytest.mark.parametrize("dims", FORWARD, ids=str)
@pytest.mark.sweep
def test_of_every_default(dims, choice, causal):
    fields = {"head_dim": dims[0], "head_dim_v": dims[1], "causal": causal}
    if choice >= len(hopper_forward_configs(AttentionSpec(dtype="bfloat16", **fields), ARCH)):
        pytest.skip("fewer configs")
    check(choice, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"softcap": True},
        {"alibi": True},
        {"softmax": "sink"},
        {"softmax": "sigmoid"},
        {"dropout": True},
        {"sequences": "packed"},
        {"sequences": "packed", "head_dim": 64},
        {"sequences": "packed", "head_dim": 256},
    ],
    ids=str,
)
@pytest.mark.sweep
def test_variants_are_kept_in_registers(fields):
    launch, cubin = built(**{"head_dim": 128, "causal": True, **fields})
    assert not cubin.resources.spill_stores and not refused_spills(launch, [cubin])


def test_products_that_wait_are_refused():
    launch, cubin = built(head_dim=64)
    slow = replace(cubin, resources=replace(cubin.resources, serialised=1))
    (reason,) = refused_spills(launch, [slow])
    assert "wait for each other" in reason
