"""Worker processes: what fails costs itself alone, and says why."""

import os
import time

import pytest
from tune_toys import cannot_start, toy

from tvm_flash.tune.hardware import HardwareFailure
from tvm_flash.tune.workers import Failure, Workers


@pytest.fixture
def workers():
    made = []

    def make(jobs=2, **options):
        made.append(Workers(toy, jobs, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_failures_cost_themselves_alone(workers):
    fates = ["fine", "segfault", "exit", "hang", "raise"]
    items = [(fate, number) for number, fate in enumerate(fates * 2)]
    answers = dict(workers(3).map(items, timeout=0.5))
    assert sorted(answers) == list(range(len(items)))
    for number, (fate, value) in enumerate(items):
        answer = answers[number]
        if fate == "fine":
            assert answer == value
        else:
            assert isinstance(answer, Failure)
            assert answer.outcome == ("timeout" if fate == "hang" else "crash")
    notes = {fate: answers[number].note for number, fate in enumerate(fates) if number}
    assert "SIGSEGV" in notes["segfault"]
    assert "status 3" in notes["exit"] and "out of registers" in notes["exit"]
    assert "0.5 s" in notes["hang"] and "RuntimeError: no 4" in notes["raise"]


def test_processes_are_kept_renewed_and_ended(workers):
    pool = workers(1)

    def process():
        ((_, number),) = pool.map([("pid",)], 60)
        return number

    first = process()
    assert process() == first != os.getpid()
    pool.renew()
    second = process()
    assert second != first
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def test_who_stops_listening_leaves_nothing_running(workers):
    pool = workers(2)
    started = time.monotonic()
    for index, _ in pool.map([("fine", 1), ("hang",)], timeout=100):
        assert index == 0
        break
    assert dict(pool.map([("fine", 2)], timeout=100)) == {0: 2}
    assert time.monotonic() - started < 60


def test_processes_that_cannot_start():
    pool = Workers(toy, 1, prepare=cannot_start)
    with pytest.raises(HardwareFailure, match="no compiler here"):
        list(pool.map([("fine",)], 60))
    pool.close()
