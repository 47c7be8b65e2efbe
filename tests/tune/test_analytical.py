"""Analytical models without a compiler: tiles visited, data sheets, predictions."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from listings import code

from tvm_flash.errors import UnsupportedSpec
from tvm_flash.problem.numbers import usual_numbers
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format
from tvm_flash.schedules.cpu.split_forward import default_split_config
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.space import cuda_space
from tvm_flash.schedules.select import as_config, space_of
from tvm_flash.schedules.target import TARGETS, cpu_target
from tvm_flash.score import variants
from tvm_flash.study.replay import table as replay_table
from tvm_flash.tune.analytical import predictor
from tvm_flash.tune.analytical.core import core_of
from tvm_flash.tune.analytical.cpu import cpu_seconds, makespan
from tvm_flash.tune.analytical.cpu_split import split_tasks
from tvm_flash.tune.analytical.model import predict
from tvm_flash.tune.analytical.products import Micro, product
from tvm_flash.tune.analytical.visited import key_tiles, query_tiles
from tvm_flash.tune.analytical.work import Amounts, KernelWork, solved
from tvm_flash.tune.gpu import GPUS, gpu_of
from tvm_flash.tune.trial import SearchTask, Sizes

ROOT = Path(__file__).resolve().parents[2]
F32, BF16 = (
    AttentionSpec(dtype="float32", head_dim=64),
    AttentionSpec(dtype="bfloat16", head_dim=64),
)
V4 = cpu_target("x86-64-v4")
SIZES = Sizes(1, 8, 8, 512, 512)


def spearman(a, b) -> float:
    """Correlation of ranks; equal values share the mean of theirs."""

    def ranks(values):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[place]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def visible(spec, seqlen_q, seqlen_k):
    """(Sq, Sk), by the definition of windows."""
    offset = variants.alignment_offset(spec.alignment, seqlen_q, seqlen_k)
    ends = spec.window(usual_numbers(spec.head_dim, seqlen_k))
    left, right = (-1 if end is None else end for end in ends)
    q, k = torch.arange(seqlen_q)[:, None] + offset, torch.arange(seqlen_k)
    seen = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    seen &= (k >= q - left) if left >= 0 else True
    return seen & ((k <= q + right) if right >= 0 else True)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([8, 16, 24]),
    st.sampled_from([8, 16, 40]), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_visited_tiles_hold_every_visible_pair(sq, sk, block_q, block_k, causal, left, right, top):
    alignment = "top_left" if top else "bottom_right"
    ends = {"window_left": left, "window_right": right}
    spec = replace(F32, causal=causal, alignment=alignment, **ends)
    seen = visible(spec, sq, sk)
    by_rows = [
        tile.any(0).view(1, -1).nonzero()[:, 1] for tile in seen.split(block_q)
    ]  # fmt: skip
    needed = [len(set((keys // block_k).tolist())) for keys in by_rows]
    visited = key_tiles(spec, sq, sk, block_q, block_k)
    assert len(visited) == len(needed)
    assert all(v >= n for v, n in zip(visited, needed, strict=True))
    columns = [tile.any(1).nonzero()[:, 0] for tile in seen.split(block_k, dim=1)]
    needed = [len(set((rows // block_q).tolist())) for rows in columns]
    visited = query_tiles(spec, sq, sk, block_q, block_k)
    assert all(v >= n for v, n in zip(visited, needed, strict=True))


def test_visited_tiles_of_a_causal_mask():
    spec = replace(F32, causal=True)
    assert key_tiles(spec, 256, 256, 64, 32) == [2, 4, 6, 8]
    assert query_tiles(spec, 256, 256, 64, 32) == [4, 4, 3, 3, 2, 2, 1, 1]
    assert key_tiles(F32, 100, 70, 64, 32) == [3, 3]
    # A quarter of the keys to the left: 64.
    assert key_tiles(replace(spec, window_left=True), 256, 256, 64, 32) == [2, 4, 4, 4]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_rates_multiply_to_the_data_sheets_peak(gpu):
    sheet = {
        "T4": 65e12, "A100-SXM4-80GB": 312e12, "A10": 125e12, "L40S": 362e12,
        "H100-SXM5-80GB": 989e12, "RTX 5090": 209.5e12,
    }  # fmt: skip
    assert gpu.tensor_peak == pytest.approx(sheet[gpu.name], rel=0.02)
    assert gpu.arch in ARCHS and "NVIDIA" in gpu.source


def test_an_architecture_without_numbers_is_refused():
    with pytest.raises(UnsupportedSpec, match=r"sm_100.*known are sm_75, sm_80"):
        gpu_of(ARCHS["sm_100"])


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_two_runs_tell_blocks_from_tiles(blocks, tiles, base, tile):
    def together(blocks, tiles):
        return blocks, tiles, Amounts(tensor=blocks * base + tiles * tile)

    found = solved([together(blocks, tiles), together(2 * blocks, 4 * tiles)])
    assert found[0].tensor == pytest.approx(base, rel=1e-6, abs=1e-3)
    assert found[1].tensor == pytest.approx(tile, rel=1e-6, abs=1e-3)


def test_runs_that_say_the_same_are_the_tiles_work():
    both = [(n, n, Amounts(tensor=6.0 * n, l2=2.0 * n)) for n in (1, 2)]
    assert solved(both) == (Amounts(), Amounts(tensor=6.0, l2=2.0))


def kernel(blocks, tiles=8, **changes):
    tile = Amounts(tensor=2e6, special=8e3, shared=8e4, issued=2e3, barriers=2)
    fields = {"warps": 4, "registers": 240, "shared_bytes": 32768, "overlap": 0.5, **changes}
    return KernelWork(Amounts(shared=6e4), tile, [tiles] * blocks, **fields)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90"])
def test_predictions_obey_the_roofline_and_waves(arch):
    gpu, arch = gpu_of(ARCHS[arch]), ARCHS[arch]
    slots = 2 * gpu.multiprocessors
    whole, double, one_more = (predict(kernel(n), arch, gpu) for n in (slots, 2 * slots, slots + 1))
    assert whole.resident == 2 and whole.limit == "registers"
    floor = 2e6 * 8 * slots / (gpu.tensor_peak * gpu.mma_share)
    assert floor < whole.seconds < 3 * floor + 1e-5
    assert double.seconds == pytest.approx(2 * whole.seconds, rel=0.15)
    assert one_more.seconds == pytest.approx(double.seconds, rel=0.05), "a tail of one block"
    assert predict(kernel(slots, overlap=1.0), arch, gpu).seconds <= whole.seconds
    two, more = (predict(kernel(6 * slots, registers=r), arch, gpu) for r in (240, 128))
    assert more.resident > two.resident and more.seconds < two.seconds
    with pytest.raises(ValueError, match=r"no block.*shared memory"):
        predict(kernel(1, shared_bytes=300_000), arch, gpu)


def test_a_simulated_round_is_a_tiles_time():
    arch, gpu = ARCHS["sm_80"], gpu_of(ARCHS["sm_80"])
    steady = code("B------:-:-:-:S12 HMMA.16816.F32 R8, R4, R2, R8\n" * 16)
    tile = Amounts(tensor=2 * (2 * 4 * 16 * 2048))  # of 4 warps and two rounds
    slots = 2 * gpu.multiprocessors

    def seconds(tiles, blocks=slots):
        work = KernelWork(Amounts(), tile, [tiles] * blocks, 4, 240, 32768, round=steady)
        return predict(work, arch, gpu)

    found = seconds(100)
    assert found.loop.blocks == 2 and found.bound == "tensor"
    grown = (seconds(200).seconds - found.seconds) * gpu.hertz
    assert grown == pytest.approx(100 * 2 * found.loop.clocks)
    alone = seconds(100, gpu.multiprocessors)
    assert alone.loop.blocks == 1 and alone.loop.clocks == 12 * 16, (
        "a grid that leaves SMs half empty"
    )


def test_micro_kernels_wait_for_latency_ports_caches_and_spills():
    core = core_of(V4)

    def clocks(rows, lanes, reused=0, **flags):
        per_step = (
            product(core, Micro(rows, lanes, 16, fresh=True, **flags), 4096, 1, reused) / 4096
        )
        return per_step / (rows * lanes / 16)

    assert clocks(4, 64) == pytest.approx(1 / core.fma, rel=0.02), "enough sums: the ports"
    assert clocks(2, 16) == pytest.approx(core.fma_latency / 2, rel=0.02), "one chain of two"
    assert clocks(2, 64, reused=10 * core.l1) > clocks(2, 64), "from the second cache"
    assert clocks(2, 64, reused=10 * core.l2) > clocks(2, 64, reused=10 * core.l1)
    assert clocks(12, 64) > clocks(4, 64), "53 vectors in 32 registers"


def test_shapes_change_the_predicted_time_as_they_should():
    start = space_of(F32, "forward", V4).start

    def seconds(spec=F32, sizes=SIZES, threads=1, **numbers):
        return cpu_seconds(spec, replace(start, **numbers), V4, sizes, threads)

    long = Sizes(1, 8, 8, 2048, 2048)
    assert seconds(sizes=long) == pytest.approx(16 * seconds(), rel=0.2)
    assert 0.4 < seconds(replace(F32, causal=True), long) / seconds(sizes=long) < 0.7
    assert 3 < seconds(sizes=long) / seconds(sizes=long, threads=4) <= 4.001
    ragged = seconds(sizes=Sizes(1, 8, 8, 512, 513), block_k=256)
    assert ragged > 1.3 * seconds(block_k=256), "a tile for one key"


def test_a_split_forward_takes_the_chunks_that_rows_see_heads_side_by_side():
    spec, config = F32, replace(default_split_config(F32, V4), chunk=256)
    sizes = Sizes(1, 4, 4, 1, 1000)
    tasks = split_tasks(core_of(V4), spec, config, sizes, 1)
    assert len(tasks) == 4 and tasks[:3] == [tasks[0]] * 3, "the four heads of a chunk"
    assert 0 < tasks[3] < tasks[0]
    apart = split_tasks(core_of(V4), spec, config, sizes, 4)
    assert len(apart) == 16 and sum(apart) == pytest.approx(sum(tasks)), "a task for each head"
    narrow = replace(spec, causal=True, window_left=True)  # a quarter of the keys: 250
    tasks = split_tasks(core_of(V4), narrow, config, Sizes(1, 1, 1, 1, 1000), 1)
    assert tasks[:2] == [0.0] * 2 and min(tasks[2:]) > 0, "keys 749 to 999"


def test_makespan():
    assert makespan([3, 1, 1, 1], 2) == 3
    assert makespan([1, 1, 1], 2) == 2
    assert makespan([1.5] * 4, 1) == 6


def narrowed(space):
    """The start, and what differs in its first three knobs: whole spaces take long to list."""
    fixed = {knob.name: [getattr(space.start, knob.name)] for knob in space.knobs[3:]}
    return space.restricted(fixed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("direction", "sizes", "bucket"),
    [
        ("forward", Sizes(2, 4, 2, 100, 333), "medium"),
        ("forward", Sizes(2, 8, 2, 1, 6000), "decode"),
        ("backward", Sizes(2, 4, 2, 100, 333), "medium"),
    ],
    ids=["forward", "decode", "backward"],
)
def test_every_cpu_space_has_predictions(target, dtype, direction, sizes, bucket):
    spec = AttentionSpec(dtype=dtype, head_dim=72, causal=True)
    space = narrowed(space_of(spec, direction, target, bucket))
    predicted = predictor(SearchTask(space, spec, direction, target.name, sizes, 4))
    seconds = [predicted(point) for point in space.points]
    assert all(0 < s < 10 for s in seconds) and len(set(seconds)) > 1
    assert seconds == [predicted(point) for point in space.points]


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [("sm_75", "float16"), *((a, t) for a in ("sm_80", "sm_90") for t in ("float16", "float32"))],
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_gpu_space_has_predictions(arch, direction, dtype):
    spec = AttentionSpec(dtype=dtype, head_dim=64, causal=True)
    space = cuda_space(spec, direction, ARCHS[arch])
    predicted = predictor(SearchTask(space, spec, direction, arch, Sizes(4, 8, 4, 1024, 1024)))
    seconds = [predicted(point) for point in space.points[::9]]
    assert all(1e-6 < s < 1 for s in seconds) and len(set(seconds)) > len(seconds) // 4


def test_targets_without_a_model_are_refused():
    space = cuda_space(BF16, "forward", ARCHS["sm_100"])
    task = SearchTask(space, BF16, "forward", "sm_100", SIZES)
    with pytest.raises(UnsupportedSpec, match="sm_100"):
        predictor(task)(space.point(space.start))
    with pytest.raises(UnsupportedSpec, match="quantum"):
        predictor(replace(task, target="quantum"))


def relative_times(lines):
    """{config: time over that of the search's start}: ratios to the incumbent, chained."""
    factor, found = 1.0, defaultdict(list)
    for line in sorted(lines, key=lambda line: (line["date"], line["trial"])):
        pairs = zip(line["seconds"], line["incumbent_seconds"], strict=False)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        found[json.dumps(line["config"], sort_keys=True)].append(factor * ratio)
        factor *= ratio if line.get("best") and line["trial"] else 1
    return {config: statistics.median(ratios) for config, ratios in found.items()}


@pytest.mark.parametrize(("schedule", "least"), [("cpu.forward", 0.7), ("cpu.backward", 0.5)])
def test_cpu_predictions_order_the_committed_logs(schedule, least):
    tasks = defaultdict(list)
    for path in sorted((ROOT / "tuning_logs" / "x86-64-v4").glob("*.jsonl")):
        for line in record_format.read(path):
            searched = line["strategy"] == "coordinate"
            if searched and line["outcome"] == "ok" and line["config"]["schedule"] == schedule:
                tasks[path.name, line["bucket"], str(line["problem"])].append(line)
    found = []
    for lines in tasks.values():
        measured = relative_times(lines)
        if len(measured) < 12:
            continue
        spec = AttentionSpec.from_json(lines[0]["spec"])
        problem = dict(lines[0]["problem"])
        threads, direction = problem.pop("threads"), lines[0]["direction"]
        predicted = [
            cpu_seconds(
                spec, as_config(json.loads(config), direction), V4, Sizes(**problem), threads
            )
            for config in measured
        ]
        found.append(spearman(list(measured.values()), predicted))
    assert len(found) > 10 and statistics.median(found) > least


@pytest.mark.parametrize("name", ["forward_d64_s512", "backward_d64_s512"])
def test_cpu_predictions_order_exhaustive_tables(name):
    """Measured apart from the model; nothing in it was fitted to these tables."""
    table = replay_table.read(name)
    predicted = predictor(table.task)
    measured = {point: s for point, s in table.seconds.items() if s is not None}
    order = sorted(measured, key=predicted)
    assert spearman(list(measured.values()), [predicted(p) for p in measured]) > 0.8
    assert min(measured[p] for p in order[:5]) < 1.03 * min(measured.values())
