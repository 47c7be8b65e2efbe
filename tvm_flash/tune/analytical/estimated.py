"""A GPU config's work by formula, without compiling it: what its tiles multiply, move and hold."""

from __future__ import annotations

from ...errors import UnsupportedSpec
from ...problem.arguments import named_sizes
from ...problem.spec import AttentionSpec
from ...schedules.cuda.arch import WARP, CudaArch
from ...schedules.cuda.backward_config import BackwardConfig
from ...schedules.cuda.entries import key_work, query_work
from ...schedules.cuda.forward import ForwardConfig
from ...schedules.cuda.residence import MOST_REGISTERS, REGISTER_UNIT, REGISTERS_PER_SM
from ...schedules.cuda.tiling import round_up
from ..gpu import gpu_of
from ..trial import Sizes
from .model import predict, total_seconds
from .visited import key_loads, query_loads
from .work import Amounts, KernelWork

Config = ForwardConfig | BackwardConfig

# Registers beside sums and fragments: ptxas took 56 to 83 for the defaults (tuning_logs/).
REST = 64
# The part of the time that each value without a register costs: it goes through local memory in
# every tile. How much is an assumption.
SPILLED = 0.02
# Lanes of an element of a score: maximum, scale and subtract, sum; in the backward scale and
# subtract, dP - delta, times P. Of integers: packing to halves, masks' selects.
_FLOATS, _FLOATS_BACK, _INTEGERS = 4, 4, 1.5
_PRODUCT = 2 * 16 * 8 * 16


def cuda_seconds(spec: AttentionSpec, config: Config, arch: CudaArch, sizes: Sizes) -> float:
    """Predicted seconds of one call; registers are estimated too, so a spill may go unseen.

    Raises UnsupportedSpec for a schedule that there is no model of.
    """
    _refuse_unknown(config)
    threads = WARP * config.num_warps
    share = REGISTERS_PER_SM // (threads * max(config.min_blocks, 1))
    limit = min(MOST_REGISTERS, share // REGISTER_UNIT * REGISTER_UNIT)
    wanted = config.registers(spec) + REST
    work = estimated_work(spec, config, sizes, min(wanted, limit))
    seconds = total_seconds([predict(work, arch, gpu_of(arch))])
    return seconds * (1 + SPILLED * max(wanted - limit, 0))


def estimated_work(spec: AttentionSpec, config: Config, sizes: Sizes, registers: int) -> KernelWork:
    """The kernel that makes products; others of a backward are the same for all its configs."""
    _refuse_unknown(config)
    extents, blocks = named_sizes(sizes), (config.block_q, config.block_k)
    if isinstance(config, ForwardConfig):
        tiles = query_loads(spec, query_work(extents, config.block_q), sizes, *blocks)
        base, tile = _forward(spec, config)
        overlap = 0.5
    else:
        tiles = key_loads(spec, key_work(extents, config.block_k), sizes, *blocks)
        base, tile = _backward(spec, config)
        overlap = 0.2
    overlap = 1.0 if config.stages == 2 else overlap
    shared = config.shared_bytes(spec)
    return KernelWork(base, tile, tiles, config.num_warps, registers, shared, overlap)


def _refuse_unknown(config: object) -> None:
    if not isinstance(config, Config):
        raise UnsupportedSpec(f"there is no model of the schedule of {type(config).__name__}")


def _forward(spec: AttentionSpec, config: ForwardConfig) -> tuple[Amounts, Amounts]:
    size, passes = _element(spec)
    depth, depth_v = (round_up(d, 16) for d in (spec.head_dim, spec.head_dim_v))
    rows, keys, warps = config.block_q, config.block_k, config.num_warps
    width, elements = depth + depth_v, rows * keys
    # Every warp reads all of K and V, and its own rows of Q unless it holds them.
    q_again = 0 if config.q_in_registers else rows * depth * size
    moved = keys * width * size
    tile = _amounts(
        products=2 * elements * width * passes,
        elements=elements,
        floats=_FLOATS,
        shared=warps * moved + q_again + moved,
        loaded=moved,
        barriers=2 if config.stages == 1 else 1,
    )
    ends = rows * width * size
    base = _amounts(0, rows * depth_v / 4, _FLOATS, 3 * ends, ends, 2)
    return base, tile


def _backward(spec: AttentionSpec, config: BackwardConfig) -> tuple[Amounts, Amounts]:
    size, passes = _element(spec)
    depth, depth_v = config.depth(spec.head_dim), config.depth(spec.head_dim_v)
    rows, keys, warps, split = (
        config.block_q, config.block_k, config.num_warps, config.column_groups,
    )  # fmt: skip
    elements, width = rows * keys, depth + depth_v
    warp_keys, queries, groups = keys * split // warps, rows // split, config.dq_groups(depth)
    # S^T and dP^T: a warp's keys and its queries; dV and dK: all queries, its columns, and P and dS
    # of the queries that are other warps'.
    first = warps * (warp_keys * (depth + config.dp_parts * depth_v) + queries * width)
    second = warps * rows * width / split + 2 * warps * warp_keys * (rows - queries)
    exchanged = elements * (2 if split > 1 else 1)
    # dQ: a warp's rows of dS, for each part, and its columns of K.
    of_dq = warps * keys * (config.dq_rows(groups) * config.dq_parts + depth // groups)
    arriving = rows * width * size + 8 * rows
    tile = _amounts(
        products=2 * elements * (3 * depth + 2 * depth_v) * passes,
        elements=elements,
        floats=_FLOATS_BACK,
        shared=size * (first + second + exchanged + of_dq) + arriving,
        loaded=arriving + 8 * rows * depth,
        barriers=3 if split > 1 or config.stages == 1 else 2,
    )
    reductions = Amounts(issued=rows * depth / WARP)
    ends = keys * width * size
    return _amounts(0, keys * depth_v / 4, 1, 3 * ends, 2 * ends, 2), tile + reductions


def _element(spec: AttentionSpec) -> tuple[int, int]:
    """(bytes of an element, 16-bit products that one of it costs): TF32 takes three of two."""
    return spec.element.bytes, 6 if spec.element.operand == "tf32" else 1


def _amounts(
    products: float, elements: float, floats: float, shared: float, loaded: float, barriers: float
) -> Amounts:
    """Amounts of a tile; a warp's access to shared memory moves 512 bytes."""
    special = elements if products else 0
    issued = products / _PRODUCT + shared / 512
    issued += elements * (floats + _INTEGERS + 1) / WARP
    return Amounts(
        products, special, floats * elements, _INTEGERS * elements, shared, issued, loaded, barriers
    )
