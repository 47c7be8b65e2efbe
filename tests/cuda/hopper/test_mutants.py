"""Each synchronisation of the forward for sm_90a deleted once: the interpreter notices it, or here
stands why nothing can.

By hand, with what survives: PYTHONPATH=tests/support python tests/cuda/hopper/test_mutants.py
"""

from collections import Counter

import pytest
from ptx.own_kernels import Own, Problem
from ptx.synchronisation import opcodes, surviving

from tvm_flash.cases import Case
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.hopper.forward_config import HopperForwardConfig

KERNEL = Own(
    "forward", AttentionSpec(dtype="float16", head_dim=64, causal=True),
    HopperForwardConfig(128, 64), "sm_90a",
)  # fmt: skip
# By what is deleted: how many of them nothing can notice.
EXPLAINED = {
    # The first use of a stage waits for nothing.
    "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64": 1,
    # P and O are at rest since before the fence of S, which the products of O follow.
    "wgmma.fence.sync.aligned": 1,
    # It orders what ptxas makes (``order_after``), and means nothing to a reader of PTX.
    "bar.warp.sync": 1,
    # A warp writes O where its own part of the products read Q: as hardware does, not as PTX says.
    "bar.sync": 1,
}


def problems():
    """Many tiles of keys under other schedules, a negative scale, rows past the end."""
    alone = {"batch": 1, "heads": 1, "kv_heads": 1}
    for seed, (sq, sk, scale) in enumerate(((150, 600, 0.125), (70, 330, -0.2), (128, 700, 0.125))):
        variant = {"causal": True, "softmax_scale": scale}
        case = Case(f"{sq}x{sk}", "float16", 64, seqlen_q=sq, seqlen_k=sk, variant=variant, **alone)
        yield Problem(KERNEL, case, seed)


@pytest.mark.sweep
def test_every_synchronisation_is_needed():
    found, alive = surviving(KERNEL, list(problems()))
    assert len(found) > 40
    assert opcodes(alive) == Counter(EXPLAINED), "\n".join(m.description for m in alive)


if __name__ == "__main__":
    found, alive = surviving(KERNEL, list(problems()))
    print(len(found), opcodes(found))
    print(len(alive), *(m.description for m in alive), sep="\n")
