"""Ring attention and exchanged heads beside one process: times and bytes sent on this CPU.

    python benchmarks/ring_attention.py [--seqlen 4096] [--ranks 2]

Every rank has one thread, over gloo, which here copies through the loopback: what a network does to
it is not measured. One process has as many threads as there are ranks. Medians of 3, milliseconds
of the slowest rank, in turns; bytes are counted as tensors are handed to torch.distributed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, product
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tvm_flash import attention
from tvm_flash.distributed import ring_attention, shard_sequence, ulysses_attention

HEADS, KV_HEADS, DIM = 8, 2, 64
ROUNDS = 3
DTYPES = (torch.float32, torch.bfloat16)
CONTENDERS = {
    "ring, zigzag": (ring_attention, {"layout": "zigzag"}),
    "ring, contiguous": (ring_attention, {"layout": "contiguous"}),
    "heads exchanged": (ulysses_attention, {}),
}
PROBLEMS = {
    "causal": {"causal": True},
    "full": {},
    "window 512": {"causal": True, "window_size": (512, 0)},
}


def inputs(seqlen: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v and dout of a whole sequence."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, seqlen, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def times(call: Callable, tensors: list[torch.Tensor], barrier: Callable) -> list[list[float]]:
    """Milliseconds of forward and backward by round, after one that compiles."""
    *leaves, dout = tensors
    leaves = [x.requires_grad_() for x in leaves]
    found = []
    for _ in range(ROUNDS + 1):
        barrier()
        start = time.perf_counter()
        out = call(*leaves)
        barrier()
        middle = time.perf_counter()
        torch.autograd.grad(out, leaves, dout)
        barrier()
        found.append([1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)])
    return found[1:]


class Counter:
    """Bytes that this rank hands to torch.distributed to be sent."""

    def __init__(self):
        self.bytes = 0
        point_to_point, exchange = dist.P2POp, dist.all_to_all_single

        def counted_operation(op, tensor, *rest):
            self.bytes += tensor.nbytes * (op is dist.isend)
            return point_to_point(op, tensor, *rest)

        def counted_exchange(found, parts, **options):
            self.bytes += parts.nbytes * (dist.get_world_size() - 1) // dist.get_world_size()
            return exchange(found, parts, **options)

        dist.P2POp, dist.all_to_all_single = counted_operation, counted_exchange


def work(rank: int, world: int, store: str, seqlen: int, answers) -> None:
    """All contenders on one rank; rank 0 answers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    counter = Counter()
    for dtype in (torch.float32, torch.bfloat16):
        for problem, options in PROBLEMS.items():
            for name, (function, own) in CONTENDERS.items():
                layout = own.get("layout", "contiguous")
                rows = [shard_sequence(x, layout=layout) for x in inputs(seqlen, dtype)]
                counter.bytes = 0
                call = partial(function, **own, **options)
                found = times(call, rows, dist.barrier)
                sent = torch.tensor([counter.bytes / (ROUNDS + 1)])
                dist.all_reduce(sent, op=dist.ReduceOp.MAX)
                if rank == 0:
                    answers.put((str(dtype), problem, name, found, sent.item()))
    dist.destroy_process_group()


def of_ranks(world: int, seqlen: int) -> Iterator[tuple]:
    """The rows of all contenders, as they come."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        arguments = (world, store, seqlen, answers)
        started = multiprocessing.spawn(work, arguments, nprocs=world, join=False)
        for _ in range(len(DTYPES) * len(PROBLEMS) * len(CONTENDERS)):
            while answers.empty():
                started.join(timeout=1)  # raises what a rank has raised
            yield answers.get()
        started.join()


def of_one(seqlen: int, threads: int) -> Iterator[tuple]:
    """The rows of attention in this process."""
    torch.set_num_threads(threads)
    for dtype, (problem, options) in product(DTYPES, PROBLEMS.items()):
        found = times(partial(attention, **options), inputs(seqlen, dtype), lambda: None)
        yield str(dtype), problem, f"one process, {threads} threads", found, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=4096)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    rows = chain(of_one(options.seqlen, options.ranks), of_ranks(options.ranks, options.seqlen))
    for dtype, problem, name, found, sent in rows:
        forward, backward = (statistics.median(spent) for spent in zip(*found, strict=True))
        print(
            f"{dtype:15} {problem:12} {name:24} forward {forward:7.1f} ms, "
            f"backward {backward:7.1f} ms, sent by a rank {sent / 2**20:6.2f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
