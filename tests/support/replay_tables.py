"""Small replay tables for tests: a made-up speed over a real space, nothing compiled."""

import math
import random

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.record_format import SIZES
from tvm_flash.schedules.select import space_of
from tvm_flash.schedules.target import cpu_target
from tvm_flash.study.replay import table as replay_table
from tvm_flash.study.replay.make import restricted

KNOBS = {
    "block_q": (64, 128, 256, 512),
    "block_k": (32, 64, 128),
    "lanes": (16, 32, 64),
    "rows_s": (2, 4, 8),
    "rows_o": (2, 4, 8),
}
TARGET = "x86-64-v4"


def made_up(seed=0, head_dim=64, seqlen=512, knobs=KNOBS, failing=0.05):
    """Head and lines of a table: smooth, with interactions and noise; a few points fail."""
    draw = random.Random(seed)
    spec = AttentionSpec(dtype="float32", head_dim=head_dim)
    space = restricted(space_of(spec, "forward", cpu_target(TARGET), "medium"), knobs)
    start = space.point(space.start)
    head = {
        "kind": "replay table",
        "format": 1,
        "spec": spec.to_json(),
        "direction": "forward",
        "target": TARGET,
        "cpu": "a CPU",
        "problem": dict(zip(SIZES, (1, 8, 8, seqlen, seqlen, 1), strict=True)),
        "start": space.start.to_json(),
        "knobs": {k.name: {"values": list(k.values), "meaning": k.meaning} for k in space.knobs},
        "points": len(space.points),
        "clock": "thread_time",
        "date": "2026-01-01T00:00:00+00:00",
        "versions": {},
        "machine": {},
    }
    lines = [
        line(
            point, seconds_of(space.config(point)), draw, point != start and draw.random() < failing
        )
        for point in space.points
    ]
    return head, lines


def seconds_of(config):
    """Fastest at block_q=256, block_k=64, lanes=32, rows_s=4, rows_o=8."""
    distances = (
        math.log2(config.block_q / 256), math.log2(config.block_k / 64),
        math.log2(config.lanes / 32), math.log2(config.rows_s / 4), math.log2(config.rows_o / 8),
    )  # fmt: skip
    return 4e-3 * (
        1 + 0.05 * sum(d * d for d in distances) + 0.03 * abs(distances[0] * distances[2])
    )


def line(point, seconds, draw, failed):
    """One line; six repeats that differ by about a percent."""
    repeats = 0 if failed else 6
    drift = [draw.gauss(1, 0.05) for _ in range(repeats)]
    return {
        "point": list(point),
        "outcome": draw.choice(("wrong", "crash", "timeout")) if failed else "ok",
        "seconds": [seconds * d * draw.gauss(1, 0.005) for d in drift],
        "reference_seconds": [5e-3 * d * draw.gauss(1, 0.005) for d in drift],
        "compile_seconds": round(draw.uniform(1, 2), 3),
        "check_seconds": 0.05,
        "measure_seconds": 0.3,
        "error": None if failed else 1e-6,
        "allowed": None if failed else 1e-5,
    }


def write_table(path, **options):
    """A made-up table at ``path``, and what reading it gives."""
    head, lines = made_up(**options)
    replay_table.write(path, head, lines)
    return replay_table.read(path)
