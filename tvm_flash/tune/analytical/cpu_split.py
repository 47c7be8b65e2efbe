"""Clocks of the CPU split forward's tasks: a chunk of keys for packed query rows."""

from __future__ import annotations

from functools import cache

from ...problem.spec import AttentionSpec
from ...schedules.cpu.forms.tasks import chunk_work, heads_of_task
from ...schedules.cpu.split_forward import SplitForwardConfig
from ..trial import Sizes
from .core import Core
from .cpu_forward import SOFTMAX
from .products import CALL
from .visited import visibility

_FLOAT = 4
# A sum over lanes: of a vector of sums, each lane takes a shuffle and an addition.
_FOLD = 2
# Clocks of a row of a chunk that is combined, for its maximum, sum and the factors of both: an
# assumption.
_COMBINED = 60


def split_tasks(
    core: Core, spec: AttentionSpec, config: SplitForwardConfig, sizes: Sizes, threads: int
) -> list[float]:
    """Clocks of each task, in the order in which they start: a chunk of keys for some heads, and
    its share of combining.

    Each of ``threads`` cores is given memory's whole rate for one: what they share is not modelled.
    """
    kv_heads, group = sizes.num_kv_heads, sizes.num_heads // sizes.num_kv_heads
    packed, rows, chunk = group * sizes.seqlen_q, config.rows, config.chunk
    seen = visibility(spec, sizes.seqlen_q, sizes.seqlen_k)

    @cache
    def clocks(tile: int, part: int) -> float:
        first, end = tile * rows, min((tile + 1) * rows, packed)
        last, within = (end - 1) // group, (part * chunk, (part + 1) * chunk)
        visits = seen.keys(first // group, last + 1, config.block_k, within=within)
        keys = visits.end - visits.first(0)
        return _chunk(core, spec, config, end - first, keys) if keys > 0 else 0.0

    tiles, chunks = -(-packed // rows), -(-sizes.seqlen_k // chunk)
    of_all, wanted = sizes.batch * chunks * tiles, threads * config.tasks_per_thread
    heads = heads_of_task(of_all, kv_heads, config.heads, wanted)
    taken = []
    for place in chunk_work(of_all, -(-kv_heads // heads)).places():
        part, tile = divmod(place["slot"] % (chunks * tiles), tiles)
        own = min(heads, kv_heads - place["head"] * heads)
        taken.append(own * clocks(tile, part))
    return taken


def _chunk(
    core: Core, spec: AttentionSpec, config: SplitForwardConfig, rows: int, keys: int
) -> float:
    tile, vector = config.tile(spec), config.vector
    padded = -(-keys // config.block_k) * config.block_k
    blocks, groups = padded // config.block_k, -(-rows // config.row_block)
    calls = blocks * groups
    scores = calls * (config.block_k * _score_key(core, config, tile.depth // vector) + CALL)
    output = calls * tile.depth_v / config.columns * _output(core, config)
    vectors = groups * config.row_block * padded / vector
    softmax = vectors * (SOFTMAX + config.exp2_degree) / core.arithmetic
    arrival = keys * (spec.head_dim + spec.head_dim_v) * spec.element.bytes / core.memory_rate
    combined = rows * (_COMBINED + 4 * tile.depth_v / vector)
    return max(scores + output + softmax, arrival) + combined


def _score_key(core: Core, config: SplitForwardConfig, vectors: int) -> float:
    """Clocks of a key and row_block rows: products, sums over lanes, loads of K and Q."""
    rows = config.row_block
    chains = max(rows * config.step, 1)
    products = max(rows * vectors / core.fma, core.fma_latency * rows * vectors / chains)
    loads = (vectors + rows * vectors / config.step) / core.loads
    return max(products, loads) + rows * _FOLD


def _output(core: Core, config: SplitForwardConfig) -> float:
    """Clocks of ``columns`` of O for row_block rows and a block of keys."""
    rows, vectors = config.row_block, config.columns // config.vector
    step = max(rows * vectors / core.fma, (rows + vectors) / core.loads, core.fma_latency)
    return config.block_k * step + 2 * rows * vectors + CALL
