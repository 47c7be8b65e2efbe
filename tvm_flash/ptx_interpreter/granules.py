"""The smallest accesses of a kernel: what shadow memory need not look into."""

import numpy as np

from .load_store import ELEMENT, space_of, vector_length


def smallest_shared(kernel):
    """Bytes of the smallest access that the kernel has to shared memory, at most 4."""
    return min([4, *_sizes(kernel, "shared")])


def smallest_global(kernel):
    """Bytes of its smallest access to global memory, at most 16; asynchronous copies have 4."""
    copies = [4 for ins in kernel.instructions if ins.opcode.split(".")[0] == "cp"]
    return min([16, *copies, *_sizes(kernel, "global")])


def _sizes(kernel, space):
    return [
        np.dtype(ELEMENT[ins.type]).itemsize * vector_length(ins)
        for ins in kernel.instructions
        if ins.opcode.split(".")[0] in ("ld", "st", "atom", "red")
        and space_of(ins) in (space, "generic")
    ]
