"""Small models that ranks train, each by another way to divide the work, and one process's."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from packed_problems import random
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint

from tvm_flash import attention
from tvm_flash.distributed import (
    register_sharding,
    ring_attention,
    shard_sequence,
    ulysses_attention,
)

WIDTH, HEADS, KV_HEADS, DIM = 48, 4, 2, 32


class Block(nn.Module):
    """Attention between projections, with a residual; ``attend`` computes causal attention."""

    def __init__(self, attend=attention):
        super().__init__()
        self.q = nn.Linear(WIDTH, HEADS * DIM, bias=False)
        self.k = nn.Linear(WIDTH, KV_HEADS * DIM, bias=False)
        self.v = nn.Linear(WIDTH, KV_HEADS * DIM, bias=False)
        self.out = nn.Linear(HEADS * DIM, WIDTH, bias=False)
        self.attend = attend

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, DIM)) for f in (self.q, self.k, self.v))
        return x + self.out(self.attend(q, k, v, causal=True).flatten(-2))


def model(attend=attention) -> nn.Sequential:
    """Two blocks with the same weights on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(Block(attend), Block(attend))


def tokens(batch: int = 4, seqlen: int = 64) -> torch.Tensor:
    """Embeddings (batch, seqlen, WIDTH), the same on every rank."""
    return random(batch, seqlen, WIDTH, seed=9)


def loss_of(out) -> torch.Tensor:
    return out.square().sum()


def gradients_of_one() -> dict[str, torch.Tensor]:
    """Gradients of the whole batch in one process."""
    whole = model()
    loss_of(whole(tokens())).backward()
    return {name: x.grad for name, x in whole.named_parameters()}


def largest_difference(found) -> float:
    """The largest error of gradients by name, over the largest gradient of its tensor."""
    wanted = gradients_of_one()
    assert found.keys() == wanted.keys()
    return max(((found[name] - x).abs().max() / x.abs().max()).item() for name, x in wanted.items())


def own_entries() -> torch.Tensor:
    """This rank's part of the batch."""
    return tokens().chunk(dist.get_world_size())[dist.get_rank()]


def data_parallel() -> float:
    replica = nn.parallel.DistributedDataParallel(model())
    loss_of(replica(own_entries())).backward()
    # It averages; the loss of one process is a sum.
    ranks = dist.get_world_size()
    return largest_difference(
        {name: x.grad * ranks for name, x in replica.module.named_parameters()}
    )


def fully_sharded() -> float:
    sharded = model()
    for block in sharded:
        fully_shard(block)
    fully_shard(sharded)
    loss_of(sharded(own_entries())).backward()
    ranks = dist.get_world_size()
    return largest_difference(
        {name: x.grad.full_tensor() * ranks for name, x in sharded.named_parameters()}
    )


def tensor_parallel(use_local: bool) -> float:
    """Heads are divided; attention sees local tensors or DTensors."""
    register_sharding()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    divided = model(attention if use_local else _on_dtensors)
    plan = {name: ColwiseParallel(use_local_output=use_local) for name in "qkv"}
    for block in divided:
        parallelize_module(block, mesh, {**plan, "out": RowwiseParallel()})
    loss_of(divided(tokens())).backward()
    return largest_difference(
        {name: x.grad.full_tensor() for name, x in divided.named_parameters()}
    )


def _on_dtensors(q, k, v, **options):
    assert isinstance(q, DTensor) and q.placements == (Shard(2),)
    out = attention(q, k, v, **options)
    assert out.placements == (Shard(2),)
    return out


def sequence_parallel(how: str, wrapped: str) -> float:
    """Rows are divided; wrapped: what else is done to the blocks."""
    layout = "zigzag" if how == "ring" else "contiguous"
    divided = model(ring_attention if how == "ring" else ulysses_attention)
    run = divided
    if wrapped == "compile":
        run = torch.compile(divided, backend="aot_eager")
    if wrapped == "checkpoint":

        def run(x):
            for block in divided:
                x = checkpoint(block, x, use_reentrant=False)
            return x

    if wrapped == "ddp":
        run = nn.parallel.DistributedDataParallel(divided)
    loss_of(run(shard_sequence(tokens(), layout=layout))).backward()
    found = {name: x.grad for name, x in copy.copy(divided).named_parameters()}
    for x in found.values():
        if wrapped == "ddp":
            x *= dist.get_world_size()
        else:
            dist.all_reduce(x)
    return largest_difference(found)


def dtensors(dim: int, with_sink: bool) -> tuple:
    """Attention of DTensors sharded along ``dim``, None replicated: placements of out, lse and
    gradients; and the largest error beside whole tensors."""
    register_sharding()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = [random(2, 24, heads, DIM, seed=n) for n, heads in enumerate((4, 2, 2))]
    whole += [random(4, seed=5)] * with_sink
    upstream = random(2, 24, 4, DIM, seed=6), random(2, 4, 24, seed=7)
    leaves = [x.clone().requires_grad_() for x in whole]
    wanted = _attended(leaves, upstream)
    places = [Replicate() if dim is None else Shard(dim)] * 3 + [Replicate()]
    leaves = [
        distribute_tensor(x, mesh, [place]).requires_grad_()
        for x, place in zip(whole, places, strict=False)
    ]
    found = _attended(leaves, [distribute_tensor(x, mesh, [Replicate()]) for x in upstream])
    error = max(
        (x.full_tensor() - want).abs().max().item() for x, want in zip(found, wanted, strict=True)
    )
    return [str(x.placements[0]) for x in found], error


def _attended(leaves, upstream):
    q, k, v, *sink = leaves
    found = attention(q, k, v, causal=True, return_lse=True, sink=sink[0] if sink else None)
    return [*found, *torch.autograd.grad(found, leaves, upstream)]


def dtensors_of_variant(dim: int, variant: str) -> tuple:
    """As ``dtensors`` of a forward with slopes, or with a function that knows heads."""
    register_sharding()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = [random(2, 24, heads, DIM, seed=n) for n, heads in enumerate((4, 2, 2))]
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    options = {
        "slopes": {"alibi_slopes": slopes},
        "heads": {"score_mod": lambda score, b, h, q_idx, k_idx: score - 0.1 * h * q_idx},
    }[variant]
    wanted = attention(*whole, **options)
    if variant == "slopes":
        options = {"alibi_slopes": distribute_tensor(slopes, mesh, [Replicate()])}
    out = attention(*(distribute_tensor(x, mesh, [Shard(dim)]) for x in whole), **options)
    return str(out.placements[0]), (out.full_tensor() - wanted).abs().max().item()
