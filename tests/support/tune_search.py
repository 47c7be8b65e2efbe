"""A space of toy configs, hardware that makes times up, and sessions on them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.config_fields import Config
from tvm_flash.schedules.space import Knob, Space
from tvm_flash.tune.session import Session
from tvm_flash.tune.sizes import sizes_of
from tvm_flash.tune.trial import SearchTask, Trial
from tvm_flash.tune.trial_log import TrialLog

SPEC = AttentionSpec(dtype="float32", head_dim=64)
ORIGIN = {"cpu": "a CPU", "machine": {"cores": 4}, "versions": {"tvm": "0"}}
NOISE = (0.98, 1.0, 1.01, 1.02, 0.99)


@dataclass(frozen=True)
class Toy(Config):
    """Numbers of no schedule at all."""

    schedule = "toy"
    x: int = 0
    y: int = 0


KNOBS = (Knob("x", tuple(range(6)), "left or right"), Knob("y", tuple(range(6)), "up or down"))


def toy_task():
    space = Space.around(Toy(), KNOBS, lambda config: ["no"] * (config.x == config.y == 5))
    return SearchTask(space, SPEC, "forward", "x86-64-v4", sizes_of("forward", "long"))


class Made:
    """Hardware whose times are ``cost(config)``, noisy, or whatever trial it returns instead.

    stop_after: how many evaluations until it raises ``error``.
    """

    jobs = 2

    def __init__(self, cost, stop_after=None, error=KeyboardInterrupt):
        self.cost, self.left, self.error = cost, stop_after, error
        self.asked = []

    def evaluate(self, task, configs, incumbent, seconds):
        # As they finish: in no order.
        for index in random.Random(len(configs)).sample(range(len(configs)), len(configs)):
            if self.left == 0:
                raise self.error
            self.left = None if self.left is None else self.left - 1
            self.asked.append((configs[index], incumbent, seconds))
            yield index, self._trial(configs[index], incumbent, seconds)

    def origin(self, task):
        return ORIGIN

    def close(self):
        """Nothing runs."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _trial(self, config, incumbent, seconds):
        cost = self.cost(config)
        if isinstance(cost, Trial):
            return cost
        # Deterministic, and another one for each pair and length.
        noise = random.Random(f"{config} {incumbent} {seconds}")
        ours = [cost * noise.choice(NOISE) for _ in range(9)]
        theirs = [self.cost(incumbent) * noise.choice(NOISE) for _ in range(9)]
        return Trial("ok", 1e-7, 1e-5, tuple(ours), tuple(theirs))


class Sensitive:
    """A strategy whose proposals change with any bit of what it was told."""

    def __init__(self, task, seed):
        self.told, self.space, self.seed, self.proposed = [], task.space, seed, set()

    def propose(self, count):
        left = [point for point in self.space.points if point not in self.proposed]
        chosen = random.Random(f"{self.seed} {self.told}").sample(left, min(count, len(left)))
        self.proposed.update(chosen)
        return chosen

    def observe(self, observations):
        self.told += observations


def session(folder, hardware, strategy=Sensitive, trials=20, seed=0, rescue=None, **options):
    """A session on the toy space; its strategy is ``session.strategy``."""
    task = toy_task()
    made = strategy(task, seed)
    log = TrialLog(folder, task, ORIGIN, strategy.__name__, seed, rescue=rescue)
    found = Session(task, made, hardware, log, trials=trials, seconds=0.5, **options)
    found.strategy = made
    return found
