"""Each synchronisation of the backward for sm_90a deleted once: the interpreter notices it, or here
stands why nothing can.

By hand, what survives: PYTHONPATH=tests/support python tests/cuda/hopper/test_backward_mutants.py
"""

from collections import Counter

import pytest
from ptx.own_kernels import Own, Problem
from ptx.synchronisation import opcodes, surviving

from tvm_flash.cases import Case
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.hopper.backward_config import HopperBackwardConfig

KERNELS = {
    64: Own("dkdv", AttentionSpec(dtype="float16", head_dim=64, causal=True),
            HopperBackwardConfig(128), "sm_90a"),
    128: Own("dkdv", AttentionSpec(dtype="bfloat16", head_dim=128), HopperBackwardConfig(64),
             "sm_90a"),
}  # fmt: skip
# By what is deleted: how many of them nothing can notice, of either kernel.
EXPLAINED = {
    # The fence of another product stands between the last use of these registers and this one:
    # sums that a product sets anew are touched no more before it.
    "wgmma.fence.sync.aligned": 5,
    # The last tile waits for all products: whether they are of one group or of two is the same.
    "wgmma.commit_group.sync.aligned": 1,
    # Lane 0 of every warp waits for its reductions to be complete behind it.
    "cp.async.bulk.wait_group.read": 2,
}


def problems(kernel):
    """Many tiles of queries under other schedules, of one block and of several."""
    spec, grouped = kernel.spec, {"batch": 1, "heads": 2, "kv_heads": 1}
    block = kernel.tile[0]
    for seed, (sq, sk) in enumerate(((5 * block + 9, 130), (3 * block, 70), (block - 3, 300))):
        case = Case(f"{sq}x{sk}", spec.dtype, spec.head_dim, seqlen_q=sq, seqlen_k=sk,
                    variant={"causal": spec.causal}, **grouped)  # fmt: skip
        yield Problem(kernel, case, seed)


@pytest.mark.parametrize("dim", KERNELS)
@pytest.mark.sweep
def test_every_synchronisation_is_needed(dim):
    found, alive = surviving(KERNELS[dim], list(problems(KERNELS[dim])))
    assert len(found) > 60
    assert opcodes(alive) == Counter(EXPLAINED), "\n".join(m.description for m in alive)


if __name__ == "__main__":
    for dim, kernel in KERNELS.items():
        found, alive = surviving(kernel, list(problems(kernel)))
        print(dim, len(found), opcodes(found))
        print(len(alive), *(m.description for m in alive), sep="\n", flush=True)
