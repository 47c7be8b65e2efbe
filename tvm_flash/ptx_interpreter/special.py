"""Special registers (PTX ISA chapter 10)."""

import numpy as np

AXES = "xyz"
NAMES = {
    "tid", "ctaid", "clusterid", "ntid", "nctaid", "nclusterid", "laneid", "warpid", "nwarpid",
    "smid",
    "nsmid", "gridid", "cluster_ctaid", "cluster_nctaid", "cluster_ctarank", "cluster_nctarank",
    "is_explicit_cluster", "dynamic_smem_size", "total_smem_size", "aggr_smem_size", "clock",
    "clock_hi", "clock64", "globaltimer", "globaltimer_lo", "globaltimer_hi", "lanemask_eq",
    "lanemask_lt", "lanemask_le", "lanemask_gt", "lanemask_ge",
}  # fmt: skip


def special_values(run, name):
    """The value of a special register for every lane of a run (scalar or [lanes])."""
    word = name.lstrip("%")
    base, _, axis = word.partition(".")
    thread = np.tile(np.arange(run.threads), run.blocks)
    block = np.repeat(run.numbers, run.threads)
    if base == "tid":
        return _axis(thread, run.block_shape, axis)
    if base in ("ctaid", "clusterid"):
        return _axis(block, run.grid, axis)
    if base == "ntid":
        return run.block_shape[AXES.index(axis)]
    if base in ("nctaid", "nclusterid"):
        return run.grid[AXES.index(axis)]
    simple = {
        "laneid": thread & 31,
        "warpid": thread >> 5,
        "nwarpid": run.threads // 32,
        "smid": block % 132,
        "nsmid": 132,
        "gridid": 0,
        "cluster_ctaid": 0,
        "cluster_nctaid": 1,
        "cluster_ctarank": 0,
        "cluster_nctarank": 1,
        "is_explicit_cluster": 0,
        "dynamic_smem_size": run.dynamic_shared,
        "total_smem_size": run.shared.size,
        "aggr_smem_size": run.shared.size,
        "clock": 0,
        "clock_hi": 0,
        "clock64": 0,
        "globaltimer": 0,
        "globaltimer_lo": 0,
        "globaltimer_hi": 0,
    }
    if base in simple:
        return simple[base]
    return _lanemask(base[9:], (thread & 31).astype(np.uint64))


def _axis(number, shape, axis):
    x, y = shape[0], shape[1]
    return {"x": number % x, "y": number // x % y, "z": number // (x * y)}[axis]


def _lanemask(which, lane):
    one = np.uint64(1)
    bit = one << lane
    below = bit - one
    everything = np.uint64(0xFFFFFFFF)
    return {
        "eq": bit,
        "lt": below,
        "le": below | bit,
        "gt": everything & ~(below | bit),
        "ge": everything & ~below,
    }[which]
