"""A small space with every kind of knob, and seconds of its points that are known."""

import math
from dataclasses import dataclass

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.config_fields import Config
from tvm_flash.schedules.space import Knob, Space
from tvm_flash.tune.strategy import make_strategy
from tvm_flash.tune.trial import Observation, SearchTask, Sizes, Trial


@dataclass(frozen=True)
class ToyConfig(Config):
    schedule = "toy"

    block_q: int = 4
    block_k: int = 8
    stages: int = 1
    lanes: int = 16
    order: str = "qk"
    swizzle: bool = False


KNOBS = (
    Knob("block_q", (1, 2, 4, 8, 16, 32), "rows"),
    Knob("block_k", (2, 4, 8, 16, 32, 64), "columns"),
    Knob("stages", (0, 1, 2, 3), "of the pipeline"),
    Knob("lanes", (16, 32, 64, 128), "of a vector"),
    Knob("order", ("kq", "qk", "diagonal"), "of tiles"),
    Knob("swizzle", (False, True), "of rows"),
)


def refused(config):
    return ["too many registers"] if config.block_q * config.block_k > 256 else []


SPACE = Space.around(ToyConfig(), KNOBS, refused)
# 12 points, 3 of them refused.
SMALL = SPACE.restricted(
    {"block_q": [2, 32], "block_k": [4, 16], "stages": [1], "lanes": [16], "swizzle": [False]}
    | {"order": ["kq", "qk", "diagonal"]}
)


def task(space=SPACE):
    return SearchTask(
        space,
        AttentionSpec(dtype="float32", head_dim=64),
        "forward",
        "x86-64-v4",
        Sizes(1, 8, 8, 256, 256),
    )


def seconds(point):
    """A bowl with one optimum, skewed, and a corner where nothing compiles."""
    block_q, block_k, stages, lanes, order, swizzle = point
    if stages == 3 and lanes == 128:
        return None
    q, k = math.log2(block_q / 8), math.log2(block_k / 16)
    bowl = 0.1 * q**2 + 0.08 * (k - 0.3 * q) ** 2 + 0.05 * (stages - 2) ** 2
    rest = 0.03 * abs(math.log2(lanes / 64)) + {"kq": 0.1, "qk": 0.0, "diagonal": 0.2}[order]
    return 1e-3 * (1 + bowl + rest + 0.05 * (not swizzle))


def trial(point):
    """What a search would record of ``point``."""
    time = seconds(point)
    return Trial("ok", 0.0, 1.0, (time, time * 1.1)) if time else Trial("crash")


def run(name, seed=0, budget=64, batch=8, space=SPACE, measure=seconds):
    """(points in the order they were proposed, best seconds after each) of one search."""
    strategy = make_strategy(name, task(space), seed)
    start = space.point(space.start)
    strategy.observe([Observation(start, measure(start))])
    points, best, least = [], [], measure(start) or math.inf
    while len(points) < budget:
        proposed = list(strategy.propose(min(batch, budget - len(points))))
        if not proposed:
            break
        found = [Observation(point, measure(point)) for point in proposed]
        strategy.observe(found)
        for observation in found:
            least = min(least, observation.seconds or math.inf)
            best.append(least)
        points += proposed
    return points, best
