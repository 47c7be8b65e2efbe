"""The search of benchmarks/tune_cpu.py, with measurements made up."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tvm_flash.schedules.cpu.forward import ForwardConfig
from tvm_flash.spec import AttentionSpec

ROOT = Path(__file__).resolve().parent.parent
SPEC = AttentionSpec("float32", 64)


@pytest.fixture(scope="module")
def tune():
    """The parts of benchmarks/tune_cpu.py."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import tune.search

    yield tune.search
    sys.path.remove(str(ROOT / "benchmarks"))


def test_neighbours_differ_little_and_are_valid(tune):
    start = ForwardConfig(block_q=64, lanes=64)
    found = list(tune.neighbours(start, SPEC, random.Random(0)))
    assert found and not [config for config in found if config.reasons(SPEC)]
    names = list(start.to_json())
    changes = [[n for n in names if config.to_json()[n] != start.to_json()[n]] for config in found]
    assert {len(changed) for changed in changes} <= {1, 2}
    assert ["block_k"] in changes and any("lanes" in c for c in changes if len(c) == 2)


def test_search_promotes_what_wins_twice(tune):
    """A landscape with one best config, reached by two steps, and luck in single measurements."""
    start, told = ForwardConfig(block_q=64, block_k=64), []

    def cost(config):
        return 1.0 + (config.block_k != 128) + (config.rows_s != 8)

    def attempt(config, incumbent, again):
        if config.rows_o == 2:
            return tune.Trial("crash")
        lucky = 0.5 if config.rows_o == 8 and not again else 1.0
        noise = (0.99, 1.0, 1.01)
        ours, theirs = cost(config) * lucky, cost(incumbent)
        return tune.Trial(
            "ok", 0.0, 1.0, tuple(ours * x for x in noise), tuple(theirs for _ in noise)
        )

    best = tune.search(start, SPEC, 500, 0, attempt, lambda *told_of: told.append(told_of))
    assert best == replace(start, block_k=128, rows_s=8, lanes=best.lanes, block_q=best.block_q)
    promoted = [config for _, config, _, won in told if won]
    assert promoted and promoted[-1] == best
    assert not [config for config in promoted if config.rows_o == 8], "lucky once"
    assert "crash" in {trial.outcome for _, _, trial, _ in told}
    few = []
    tune.search(start, SPEC, 3, 0, attempt, lambda number, *_: few.append(number))
    assert max(few) == 3
    again = []
    tune.search(start, SPEC, 500, 0, attempt, lambda *told_of: again.append(told_of))
    assert again == told, "the same seed tries the same configs"
