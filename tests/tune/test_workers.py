"""Worker processes: what fails costs itself alone, and says why."""

import os

import pytest
from tune_toys import cannot_start, toy

from tvm_flash.errors import HardwareFailure
from tvm_flash.workers import Failure, Workers


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
    fates = ["fine", "segfault", "exit", "raise"]
    items = [(fate, number) for number, fate in enumerate(fates * 2)]
    answers = dict(workers(3).map(items, timeout=600))
    assert sorted(answers) == list(range(len(items)))
    for number, (fate, value) in enumerate(items):
        answer = answers[number]
        if fate == "fine":
            assert answer == value
        else:
            assert isinstance(answer, Failure)
            assert answer.outcome == "crash"
    notes = {fate: answers[number].note for number, fate in enumerate(fates) if number}
    assert "SIGSEGV" in notes["segfault"]
    assert "status 3" in notes["exit"] and "out of registers" in notes["exit"]
    assert "RuntimeError: no 3" in notes["raise"]


def test_a_hang_costs_itself_alone(workers):
    pool = workers(2)
    (answer,) = dict(pool.map([("hang",)], timeout=0.5)).values()
    assert answer == Failure("timeout", "no answer within 0.5 s")
    assert dict(pool.map([("fine", 1), ("fine", 2)], timeout=600)) == {0: 1, 1: 2}


def test_processes_are_kept_renewed_and_ended(workers):
    pool = workers(1)

    def process():
        ((_, number),) = pool.map([("pid",)], 600)
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
    for index, _ in pool.map([("fine", 1), ("hang",)], timeout=600):
        assert index == 0
        break
    assert not pool._busy
    assert dict(pool.map([("fine", 2)], timeout=600)) == {0: 2}


def test_processes_that_cannot_start():
    pool = Workers(toy, 1, prepare=cannot_start)
    with pytest.raises(HardwareFailure, match="no compiler here"):
        list(pool.map([("fine",)], 600))
    pool.close()


def test_a_process_is_ready_before_its_first_item(workers):
    pool = workers(1)
    pool.start()
    (worker,) = pool._idle
    assert worker._ready
    pool.start()
    assert pool._idle == [worker]
    with pytest.raises(HardwareFailure, match="no compiler here"):
        workers(1, prepare=cannot_start).start()
