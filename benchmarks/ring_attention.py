"""Ring attention and exchanged heads beside one process: times and bytes sent on this CPU.

    python benchmarks/ring_attention.py [--seqlen 4096] [--ranks 2]

writes results/ring-attention.json; update_readme.py makes the table of docs/distributed.md of it.
Every rank has one thread, over gloo, which here copies through the loopback: what a network does to
it is not measured. One process has as many threads as there are ranks, which wait meanwhile.
Medians of 5 turns, milliseconds of the slowest rank; bytes are counted as tensors are handed to
torch.distributed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tvm_flash import attention
from tvm_flash.artifact.folder import replacing
from tvm_flash.bench.host import describe
from tvm_flash.bench.table import Table, numbers, words
from tvm_flash.bench.timing import four_digits
from tvm_flash.distributed import ring_attention, shard_sequence, ulysses_attention

RESULTS = Path(__file__).resolve().parent / "results" / "ring-attention.json"
HEADS, KV_HEADS, DIM = 8, 2, 64
ROUNDS = 5
DTYPES = (torch.float32, torch.bfloat16)
SHARED = {
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


def contenders(seqlen: int, dtype: torch.dtype, options: dict) -> dict[str, Callable]:
    """Calls that give this rank's seconds of a forward and of its backward, by name."""
    whole = inputs(seqlen, dtype)
    calls = {"one process": partial(alone, partial(attention, **options), whole)}
    for name, (function, own) in SHARED.items():
        rows = [shard_sequence(x, layout=own.get("layout", "contiguous")) for x in whole]
        calls[name] = partial(seconds, partial(function, **own, **options), rows)
    return calls


def alone(call: Callable, tensors: list[torch.Tensor]) -> tuple[float, float]:
    """``seconds`` on rank 0 with the threads of all ranks, which wait."""
    if dist.get_rank() != 0:
        return seconds(lambda *_: None, [])
    torch.set_num_threads(dist.get_world_size())
    spent = seconds(call, tensors)
    torch.set_num_threads(1)
    return spent


def seconds(call: Callable, tensors: list[torch.Tensor]) -> tuple[float, float]:
    """Seconds until all ranks have done a forward, and from there a backward."""
    leaves = [x.detach().requires_grad_() for x in tensors[:-1]]
    dist.barrier()
    start = time.perf_counter()
    out = call(*leaves)
    dist.barrier()
    middle = time.perf_counter()
    if leaves:
        torch.autograd.grad(out, leaves, tensors[-1])
    dist.barrier()
    return middle - start, time.perf_counter() - middle


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

    def of(self, call: Callable) -> int:
        """The most that a rank hands over in ``call``."""
        before = self.bytes
        call()
        sent = torch.tensor([self.bytes - before])
        dist.all_reduce(sent, op=dist.ReduceOp.MAX)
        return int(sent)


def work(rank: int, world: int, store: str, seqlen: int, answers) -> None:
    """All contenders in turns on one rank; rank 0 answers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    counter = Counter()
    for dtype, (problem, options) in product(DTYPES, PROBLEMS.items()):
        calls = contenders(seqlen, dtype, options)
        sent = {name: counter.of(call) for name, call in calls.items()}  # compiles, too
        found = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                found[name].append(call())
        if rank == 0:
            answers.put([described(dtype, problem, n, found[n], sent[n]) for n in calls])
    dist.destroy_process_group()


def of_ranks(world: int, seqlen: int) -> Iterator[list[dict]]:
    """The rows of each problem, as they come."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        arguments = (world, store, seqlen, answers)
        started = multiprocessing.spawn(work, arguments, nprocs=world, join=False)
        for _ in range(len(DTYPES) * len(PROBLEMS)):
            while answers.empty():
                started.join(timeout=1)  # raises what a rank has raised
            yield answers.get()
        started.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=4096)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    rows = []
    for found in of_ranks(options.ranks, options.seqlen):
        rows += found
        print(*map(json.dumps, found), sep="\n", flush=True)
    document = {"machine": describe().to_json(), **vars(options), "rows": rows}
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def described(dtype: torch.dtype, problem: str, name: str, found: list, sent: int) -> dict:
    """A row as it is kept: medians in milliseconds, bytes of a forward and backward."""
    forward, backward = (four_digits(1e3 * median(x)) for x in zip(*found, strict=True))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "problem": problem,
        "contender": name,
        "forward_ms": forward,
        "backward_ms": backward,
        "sent_bytes": sent,
    }


def table(found: dict) -> Table:
    """The rows, for people."""
    columns = words("dtype", "mask", "how") + numbers("forward, ms", "backward, ms", "sent, MiB")
    rows = [
        (
            row["dtype"],
            row["problem"],
            row["contender"],
            f"{row['forward_ms']:.1f}",
            f"{row['backward_ms']:.1f}",
            f"{row['sent_bytes'] / 2**20:.2f}",
        )
        for row in found["rows"]
    ]
    return Table("", tuple(columns), rows)


if __name__ == "__main__":
    main()
