"""Clocks of the CPU backward's tasks: workers over key tiles, five products per pair of blocks."""

from __future__ import annotations

from ...problem.arguments import size_values
from ...problem.spec import AttentionSpec
from ...schedules.cpu.backward import BackwardConfig
from ...schedules.cpu.forms.tasks import dealt_work
from ...schedules.cpu.forms.tiles import BackwardTile
from ..trial import Sizes
from .core import Core
from .cpu_forward import SOFTMAX, STAGED, TRANSPOSED, arrival_rate
from .products import FILL, Micro, product
from .visited import key_tiles, query_tiles

_FLOAT = 4
# Instructions of an element of dS: dP - delta, times P, and what reads and writes them.
_DSCORE = 4


def backward_tasks(
    core: Core, spec: AttentionSpec, config: BackwardConfig, sizes: Sizes, threads: int
) -> list[float]:
    """Clocks of each task, in the order in which they start."""
    group = sizes.num_heads // sizes.num_kv_heads
    blocks = query_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, config.block_q, config.block_k)
    copies = size_values(spec, sizes, {"block_k": config.block_k}, threads)["copies"]
    steps = _steps(spec, config, sizes, len(blocks))
    tile, vector = config.tile(spec), config.vector
    width, sums = tile.words + tile.words_v, tile.depth_lanes + tile.lanes_v
    staged = STAGED[spec.dtype] * width / vector
    of_keys = config.block_k * (staged + TRANSPOSED * width / vector + 4 * sums / vector)
    rate = arrival_rate(core, spec, sizes.seqlen_q, sizes.num_heads)
    of_rows = config.block_q * (staged + width * spec.element.bytes / rate)
    of_step = _step(core, spec, config, tile)
    clocks = [
        of_keys + group * (visited * of_rows + pairs * of_step)
        for visited, pairs in zip(blocks, steps, strict=True)
    ]
    work = dealt_work(sizes.batch, sizes.num_kv_heads, copies)
    return [sum(clocks[place["part"] :: copies]) for place in work.places()]


def _steps(
    spec: AttentionSpec, config: BackwardConfig, sizes: Sizes, key_blocks: int
) -> list[float]:
    """Steps of keys that the query blocks of each key tile visit together.

    A mask cuts them off by step_k, so their sum over key tiles is that of narrow tiles.
    """
    narrow = key_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, config.block_q, config.step_k)
    per_block = config.block_k // config.step_k
    blocks = query_tiles(spec, sizes.seqlen_q, sizes.seqlen_k, config.block_q, config.block_k)
    whole = sum(blocks) * per_block
    kept = sum(narrow) / whole if whole else 0.0
    return [visited * per_block * kept for visited in blocks[:key_blocks]]


def _step(core: Core, spec: AttentionSpec, config: BackwardConfig, tile: BackwardTile) -> float:
    """Clocks of a query block and step_k keys."""
    queries, keys, pack = config.block_q, config.step_k, tile.operand.pack
    names = (config.vector, config.unit)
    wide = Micro(config.rows, config.lanes, *names, fresh=True, unroll=config.unroll)
    of_rows = Micro(config.rows, config.head_lanes, *names, unroll=config.unroll)
    of_keys = Micro(config.key_rows, config.head_lanes, *names, unroll=config.unroll)
    clocks = 0.0
    for depth in (tile.depth, tile.depth_v):
        # A group of keys stays for all bands of rows.
        count = queries / config.rows * keys / config.lanes
        reused = depth * config.lanes * _FLOAT
        clocks += product(core, wide, depth, count, reused)
    columns, columns_v = tile.depth_lanes, tile.lanes_v
    count = queries / config.rows * columns / config.head_lanes
    clocks += product(core, of_rows, keys // pack, count, keys * config.head_lanes * _FLOAT)
    for width in (columns, columns_v):
        count = keys / config.key_rows * width / config.head_lanes
        reused = queries * config.head_lanes * _FLOAT
        clocks += product(core, of_keys, queries // pack, count, reused)
    vectors = queries * keys / config.vector
    operations = SOFTMAX + config.exp2_degree + _DSCORE + 4 * (pack - 1)
    clocks += vectors * max(operations / core.arithmetic, 4 / core.stores)
    return clocks + _moved(core, config, tile) / _rate(core, config, tile)


def _moved(core: Core, config: BackwardConfig, tile: BackwardTile) -> float:
    """Bytes of a step that come from beyond the first cache: operands once, sums there and back."""
    width, sums = tile.words + tile.words_v, tile.depth_lanes + tile.lanes_v
    of_keys = config.step_k * (width + tile.words + 2 * sums)
    of_rows = config.block_q * (width + 2 * tile.depth_lanes)
    return _FLOAT * (of_keys + of_rows + 4 * config.block_q * config.step_k)


def _rate(core: Core, config: BackwardConfig, tile: BackwardTile) -> float:
    """Bytes a clock: the worker's buffers together decide which cache holds them."""
    width, sums = tile.words + tile.words_v, tile.depth_lanes + tile.lanes_v
    floats = config.block_k * (2 * width + sums) + config.block_q * (width + tile.depth_lanes)
    held = _FLOAT * (floats + 4 * config.block_q * config.step_k)
    return core.l2_rate if held <= FILL * core.l2 else core.l3_rate
