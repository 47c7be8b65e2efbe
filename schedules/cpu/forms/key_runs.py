"""Blocks of keys that are read in place: looked up once for all heads, and asked for ahead."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

CACHE_LINE = 64


def found_runs(block: int):
    """An inline function that stores where each of ``count`` blocks of keys from ``first`` on lies.

    runs (blocks, numbers) int64: what ``Sequences.run`` gives.
    """

    @T.inline
    def find(runs, sequences, entry, first, count):
        for n in range(count):
            with T.sblock("run"):
                vn = T.axis.spatial(runs.shape[0], n)
                at = T.meta_var(sequences.run(entry, first + vn * block))
                runs[vn, 0] = at[0]
                if len(at) > 1:
                    runs[vn, 1] = at[1]

    return find


def asked(buffer, index):
    """Ask for the cache line of an element for the second-level cache: it is read in a while.

    On Zen 4 lines that are asked for the first level come no sooner than without.
    """
    read, second_level, data = (tirx.const(n, "int32") for n in (0, 2, 1))
    address = tirx.address_of(buffer[index])
    return tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, second_level, data)
