"""Clocks of the CPU forward's tasks: query tiles in groups of rows, over staged key tiles."""

from __future__ import annotations

from ...problem.spec import AttentionSpec
from ...schedules.cpu.forms.tasks import groups_of_tile, tile_work
from ...schedules.cpu.forward import ForwardConfig
from ..trial import Sizes
from .core import Core
from .products import FILL, Micro, product
from .visited import key_tiles

_FLOAT = 4
# Vector operations of an element's softmax beside the polynomial: scale, maximum, subtract, clip
# (compare, select), round (add, subtract), fraction, exponent (shift, multiply), sum.
SOFTMAX = 11
# Those that move it: the score and the probability are stored, and read again.
_MOVES = 3
# Clocks of a vector that is staged: load and store; half precision is widened too.
STAGED = {"float32": 1.5, "float16": 2.5, "bfloat16": 2.5}
# A vector through a transpose of 16 x 16: four shuffles and selects, load and store.
TRANSPOSED = 6


def forward_tasks(
    core: Core, spec: AttentionSpec, config: ForwardConfig, sizes: Sizes, threads: int
) -> list[float]:
    """Clocks of each task, in the order in which they start."""
    tile, rows = config.tile(spec), config.rows
    groups = -(-sizes.seqlen_q // rows)
    share = sizes.batch * sizes.num_heads * groups // (threads * config.tasks_per_thread)
    per_tile = groups_of_tile(share, config.block_q // rows)
    of_groups = key_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, rows, config.block_k)
    of_tiles = key_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, rows * per_tile, config.block_k)
    pair = _pair(core, spec, config, per_tile)
    stage = _stage(core, spec, config, sizes)
    start = rows / config.vector * (tile.depth + 2 * tile.depth_v) * TRANSPOSED
    clocks = []
    for first, blocks in zip(range(0, groups, per_tile), of_tiles, strict=True):
        own = of_groups[first : first + per_tile]
        clocks.append(blocks * stage + sum(own) * pair + len(own) * start)
    work = tile_work(sizes.batch, sizes.num_heads, len(clocks))
    return [clocks[place["tile"]] for place in work.places()]


def _pair(core: Core, spec: AttentionSpec, config: ForwardConfig, per_tile: int) -> float:
    """Clocks of a group of rows and a key tile."""
    tile, rows = config.tile(spec), config.rows
    groups = rows // config.lanes
    words, keys = tile.depth // tile.operand.pack, config.block_k // tile.operand.pack
    # Each band of keys reads all of the group's Q, each band of head_dim_v all of P.
    unrolled = {"unit": config.unit, "unroll": config.unroll}
    first = Micro(config.rows_s, config.lanes, config.vector, fresh=True, **unrolled)
    scores = product(
        core, first, words, config.block_k / config.rows_s * groups, words * rows * _FLOAT
    )
    second = Micro(config.rows_o, config.lanes, config.vector, **unrolled)
    output = product(
        core, second, keys, tile.depth_v / config.rows_o * groups, keys * rows * _FLOAT
    )
    vectors = config.block_k * rows / config.vector
    operations = SOFTMAX + config.exp2_degree + 2 * (tile.operand.pack - 1)
    softmax = vectors * max(operations / core.arithmetic, _MOVES / core.stores)
    statistics = rows / config.vector * 2 * SOFTMAX
    return scores + output + softmax + statistics + _state(core, config, tile, per_tile)


def _state(core: Core, config: ForwardConfig, tile, per_tile: int) -> float:
    """Clocks in which a group's Q and sums of O come to the first cache and O goes back."""
    row = (tile.depth + 2 * tile.depth_v) * _FLOAT
    staged = config.block_k * (tile.depth + tile.depth_v) * _FLOAT
    held = per_tile * config.rows * (tile.depth + tile.depth_v) * _FLOAT + staged
    if held <= FILL * core.l1:
        return 0.0
    return config.rows * row / (core.l2_rate if held <= FILL * core.l2 else core.l3_rate)


def _stage(core: Core, spec: AttentionSpec, config: ForwardConfig, sizes: Sizes) -> float:
    """Clocks to copy a key tile of K and V, widened, from where they lie."""
    tile = config.tile(spec)
    width = tile.depth + tile.depth_v
    rate = arrival_rate(core, spec, sizes.seqlen_k, sizes.num_kv_heads)
    arrival = config.block_k * width * spec.element.bytes / rate
    return config.block_k * width / config.vector * STAGED[spec.dtype] + arrival


def arrival_rate(core: Core, spec: AttentionSpec, rows: int, heads: int) -> float:
    """Bytes a clock at which a head's rows of two tensors are read again.

    Rows of a head lie ``heads`` rows apart: they fall into as small a part of the cache's sets.
    """
    taken = rows * heads * (spec.head_dim + spec.head_dim_v) * spec.element.bytes
    return core.l2_rate if taken <= FILL * core.l2 else core.l3_rate
