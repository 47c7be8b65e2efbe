"""Our own kernels as subjects of mutation: single launches, and what float64 says to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from tvm_flash.cases import Case, Inputs, make_inputs
from tvm_flash.codegen.cuda import ptx_of
from tvm_flash.problem.arguments import TABLE, named_sizes, shape_of, size_values, values_before
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.ptx_interpreter import DeviceMemory, launch
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.config_fields import Config
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.backward_config import BackwardConfig
from tvm_flash.schedules.cuda.forward import ForwardConfig
from tvm_flash.schedules.cuda.hopper.backward_config import HopperBackwardConfig
from tvm_flash.schedules.cuda.program import CudaProgram, Launch
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.schedules.cuda.split_forward import SplitForwardConfig
from tvm_flash.verify.buffers import MappedTensors
from tvm_flash.verify.plan import bind, grid_of, parsed
from tvm_flash.verify.rule import deviations, results

WRITTEN = {"forward": ("out", "lse"), "delta": ("delta",), "dkdv": ("dk", "dv", "dq_acc"),
           "dq": ("dq",), "ordered": ("dq",),
           "parts": ("out", "lse"), "merge": ("out", "lse")}  # fmt: skip
DIRECTIONS = {"forward": "forward", "ordered": "backward_deterministic",
              "parts": "forward_split", "merge": "forward_split"}  # fmt: skip
# What the launches of a program hand on to one another: a mutant runs among them.
HANDED_ON = ("part_out", "part_m", "part_l")
MOST_PARTS = 37


@dataclass(frozen=True)
class Own:
    """A kernel of ours for ``arch``: ``role``, a key of WRITTEN, says which of its program."""

    role: str
    spec: AttentionSpec
    config: Config | None = None
    arch: str = "sm_80"

    @cached_property
    def whole(self) -> CudaProgram:
        """The program."""
        config = self.config.to_json() if self.config else None
        direction = DIRECTIONS.get(self.role, "backward")
        ((_, program),) = cuda_programs(self.spec, direction, (ARCHS[self.arch],), config)
        return program

    @cached_property
    def program(self) -> CudaProgram:
        """The same, with this launch alone."""
        number = {"dkdv": 1, "dq": 2, "ordered": 2, "merge": 1}.get(self.role, 0)
        return replace(self.whole, launches=self.whole.launches[number : number + 1])

    @cached_property
    def launches(self) -> list[tuple[Launch, str]]:
        """What runs to judge it, with the texts: itself, or all where it is judged by their end."""
        divides = self.role in ("parts", "merge")
        program = self.whole if divides else self.program
        return list(zip(program.launches, ptx_of(program), strict=True))

    @cached_property
    def names(self) -> list[str]:
        """The tensors that those take."""
        taken = dict.fromkeys(name for step, _ in self.launches for name in step.arguments)
        del taken["softmax_scale"]
        return list(taken)

    @cached_property
    def ptx(self) -> str:
        """Its text."""
        return ptx_of(self.program)[0]

    @property
    def step(self) -> Launch:
        """The launch."""
        return self.program.launches[0]

    @property
    def tile(self) -> tuple[int, int]:
        """Queries and keys of a tile."""
        fields = self.program.config.get("ordered_dq") or self.program.config
        return fields["block_q"], fields["block_k"]

    def rows_of(self, sums: torch.Tensor) -> torch.Tensor:
        """dq_acc (1, B, H, rows, columns) as (B, rows, H, columns).

        Tiles of 16 x 8, in each 32 lanes with 4 registers (upper or lower 8 rows, even or odd
        column): a register of all lanes after the other, or a lane's side by side.
        """
        _, b, h, rows, columns = sums.shape
        in_quads = self.program.config["schedule"] == HopperBackwardConfig.schedule
        lanes = (8, 4, 2, 2) if in_quads else (2, 2, 8, 4)
        order = (6, 4, 5, 7) if in_quads else (4, 6, 7, 5)  # half, row, column pair, odd
        tiles = sums.reshape(b, h, rows // 16, columns // 8, *lanes)
        return tiles.permute(0, 2, *order[:2], 1, 3, *order[2:]).reshape(b, rows, h, columns)


_HALF, _WIDE = (
    AttentionSpec(dtype="float16", head_dim=64, causal=True),
    AttentionSpec(dtype="bfloat16", head_dim=128),
)
# For the row kernels: a head_dim that is no multiple of a warp nor of dq_acc's columns.
_ODD = AttentionSpec(dtype="float16", head_dim=80)
OWN = {
    "own_forward_f16_d64_causal": Own("forward", _HALF),
    "own_forward_bf16_d128_two_stages": Own("forward", _WIDE, ForwardConfig(64, 32, stages=2)),
    "own_backward_f16_d64_causal": Own("dkdv", _HALF),
    "own_backward_bf16_d128_exchange": Own(
        "dkdv", _WIDE, BackwardConfig(64, 64, num_warps=8, column_groups=2, stages=2)
    ),
    "own_ordered_dq_f16_d64_causal": Own("ordered", _HALF),
    "own_parts_f16_d64_causal": Own("parts", _HALF, SplitForwardConfig(64, 16)),
    "own_merge_f16_d80": Own("merge", _ODD, SplitForwardConfig(64, 16)),
    "own_delta_f16_d80": Own("delta", _ODD),
    "own_dq_rows_f16_d80": Own("dq", _ODD),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """A launch of ``own`` on the inputs of ``case``.

    hostile: every score is far below 0, where a hidden key that counts as 0 would win. seed: of
    the schedule; not 0 shuffles warps, so that what no barrier orders happens in another order.
    """

    own: Own
    case: Case
    seed: int = 0
    hostile: bool = False
    _made: dict = field(default_factory=dict)

    def __call__(self, kernel) -> None:
        """Launch under all checks; AssertionError when a result is wrong or not written."""
        own, tensors, memory = self.own, self._tensors, DeviceMemory()
        written = [name for name in (*WRITTEN[own.role], *HANDED_ON) if name in tensors]
        zeroed = [name for name in values_before(TABLE["backward"]) if name in written]
        for name in zeroed:
            tensors[name].zero_()
        mapped = MappedTensors(memory, tensors, written, zeroed)
        scale, sizes = self.case.numbers["softmax_scale"], named_sizes(self._sizes)
        sizes["splits"] = self._splits
        for step, ptx in own.launches:
            is_own = step.name == own.step.name
            launch(
                kernel if is_own else parsed(ptx).kernels[f"{step.name}_kernel"],
                grid_of(step, sizes), (step.threads, 1, 1),
                bind(step, ptx, tensors | {"softmax_scale": scale}), memory,
                shared_bytes=step.shared_bytes, seed=self.seed,
            )  # fmt: skip
        mapped.check()
        self._judge(tensors, scale)

    def _judge(self, tensors: dict, scale: float) -> None:
        found = {name: tensors[name] for name in WRITTEN[self.own.role]}
        if "dq_acc" in found:
            sums = self.own.rows_of(found.pop("dq_acc"))
            found["dq"] = sums[:, : self.case.seqlen_q, :, : self.case.head_dim] * scale
        if "delta" in found:  # a float32 statistic of a row, as lse is
            found["lse"] = found.pop("delta")
        exact, plain = self._exact
        held = deviations(self.case.dtype, found, exact, plain)
        wrong = [str(deviation) for deviation in held if not deviation.ok]
        assert not wrong, "; ".join(wrong)

    @property
    def _splits(self) -> int:
        """Parts of the keys, where they are divided: also more than tiles, and than lanes."""
        return MOST_PARTS if self.case.seqlen_k > 32 * self.own.tile[1] else 1 + self.seed * 2

    @property
    def _sizes(self) -> tuple[int, ...]:
        c = self.case
        return c.batch, c.heads, c.kv_heads, c.seqlen_q, c.seqlen_k

    @cached_property
    def _inputs(self) -> Inputs:
        inputs = make_inputs(self.case, seed=self.case.seqlen_q)
        if self.hostile:
            inputs.q.mul_(0.1).sub_(24)
            inputs.k.mul_(0.1).add_(1)
        return inputs

    @cached_property
    def _attention(self) -> tuple[dict, dict]:
        return (
            results(attention_reference, self._inputs, upcast=torch.float64),
            results(attention_reference, self._inputs),
        )

    @cached_property
    def _exact(self) -> tuple[dict, dict]:
        """What is right, and what PyTorch gives."""
        tensors, scale = self._tensors, self.case.numbers["softmax_scale"]
        if self.own.role == "delta":
            return {"lse": self._delta(torch.float64)}, {"lse": self._delta(torch.float32)}
        if self.own.role == "dq":
            sums = self.own.rows_of(tensors["dq_acc"]).double() * scale
            exact = sums[:, : self.case.seqlen_q, :, : self.case.head_dim]
            return {"dq": exact}, {"dq": exact.to(tensors["dq"].dtype)}
        return self._attention

    def _delta(self, dtype) -> torch.Tensor:
        out = self._attention[0]["out"].to(self._inputs.dout.dtype)
        product = out.to(dtype) * self._inputs.dout.to(dtype)
        return product.sum(dim=-1).transpose(1, 2).contiguous() - self._inputs.dlse

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        """The launch's arguments by name."""
        inputs, exact = self._inputs, self._attention[0]
        q, k, v = inputs[:3]
        tensors = {
            "q": q, "k": k, "v": v, "dout": inputs.dout, "dlse": inputs.dlse,
            "out": exact["out"].to(q.dtype), "lse": exact["lse"].float(),
            "delta": self._delta(torch.float64).float(),
            **{f"d{name}": torch.empty_like(x) for name, x in zip("qkv", (q, k, v), strict=True)},
        }  # fmt: skip
        meta = self.own.program.meta
        if "head_dim_pad" in meta:
            values = size_values(self.own.spec, self._sizes, meta) | {"splits": self._splits}
            generator = torch.Generator().manual_seed(self.case.seqlen_q)
            for argument in (*TABLE["backward"], *TABLE["forward_split"]):
                if argument.name in ("dq_acc", *HANDED_ON):
                    shape = shape_of(argument, values)
                    tensors[argument.name] = torch.randn(shape, generator=generator)
        return {name: tensors[name] for name in self.own.names}


def problems(own: Own) -> list[Problem]:
    """The telling ones first, then a sweep over what a length can leave over."""
    return [
        Problem(own, Case(f"{n}", own.spec.dtype, own.spec.head_dim, **fields), n % 3, hostile)
        for n, (fields, hostile) in enumerate(_sizes(own))
    ]


def _sizes(own: Own) -> Iterator[tuple[dict, bool]]:
    block_q, block_k = own.tile
    alone = {"batch": 1, "heads": 1, "kv_heads": 1, "variant": {"causal": own.spec.causal}}
    grouped = alone | {"heads": 4, "kv_heads": 2}

    def size(seqlen_q, seqlen_k, more=alone, hostile=False, **fields):
        return more | {"seqlen_q": seqlen_q, "seqlen_k": seqlen_k} | fields, hostile

    yield size(block_q - 3, block_k + 9)
    yield size(block_q + 1, 2 * block_k + 7, logits_scale=24.0)
    yield size(2 * block_q + 5, 3 * block_k + 7, view="packed", heads=2)
    yield size(2 * block_q + 5, block_k - 7, grouped, view="every_other", batch=2)
    yield size(1, block_k + 1, grouped)
    yield size(3 * block_q, 2 * block_k, view="bhsd", heads=2)
    yield size(block_q - 5, block_k - 1, hostile=True)
    # Nothing to sum over, and one key or row alone.
    yield size(0, block_k + 5) if own.role == "dkdv" else size(block_q + 5, 0)
    yield size(block_q + 1, 1)
    # A backward prefetches the rows of the next head: the sweep is over those limits as well.
    heads = 2 if own.role == "dkdv" else 1
    for n, (last_q, last_k) in enumerate(zip(places(block_q), places(block_k, 7), strict=True)):
        # Every other time more keys than rows, or a causal mask would hide most of what is there.
        yield size(last_q + 1, last_k + 1 + n % 2 * block_q, heads=heads)
    if own.role not in ("delta", "dq"):  # one key too many among dozens is less than a rounding
        for last_k in places(block_k):
            yield size(9, last_k + 1, hostile=True)
    # A forward changes the signs of Q in shared memory.
    negative = {"causal": own.spec.causal, "softmax_scale": -0.2}
    yield size(block_q + 3, block_k + 5, alone | {"variant": negative})
    if own.role == "merge":  # more parts than lanes
        yield size(2, MOST_PARTS * block_k - 3, grouped)


def places(block: int, order: int = 1) -> list[int]:
    """16 positions in a tile: in every group of 8, in even and odd columns of an mma."""
    groups = [i * (block // 8) // 16 for i in range(16)]
    found = [8 * n + (i // 2 + n) % 4 * 2 + i % 2 for i, n in enumerate(groups)]
    return [found[i * order % 16] for i in range(16)]
