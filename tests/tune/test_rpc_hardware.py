"""What a search is told of candidates on servers, whatever becomes of their sessions."""

import pytest

from tvm_flash.errors import HardwareFailure
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.tune.rpc import hardware as rpc
from tvm_flash.tune.rpc.servers import Describe, Stopped
from tvm_flash.tune.rpc.session import RemoteCpu
from tvm_flash.tune.rpc.trial import Lost
from tvm_flash.tune.trial import SearchTask, Sizes, Trial
from tvm_flash.workers import Failure

CPU = RemoteCpu(
    "a CPU", frozenset({"avx2", "fma", "bmi2", "f16c", "movbe", "sse4_2", "ssse3", "popcnt"}), 8
)
LOST = Lost("crash", "10.0.0.7:9090", "on 10.0.0.7:9090: it ended")
OK = Trial("ok", 1e-7, 1e-5, (1.0, 1.0), (1.0, 1.0))
TASK = SearchTask(
    None,
    AttentionSpec(dtype="float32", head_dim=64),
    "forward",
    "x86-64-v3",
    Sizes(1, 1, 1, 64, 64),
)


class ScriptedWorkers:
    """Answers jobs from ``script``: for each config what its attempts end with, in order."""

    def __init__(self, script, cpu=CPU):
        self.script, self.cpu = script, cpu
        self.jobs, self.closed = [], False

    def __call__(self, function, jobs, prepare):
        return self

    def map(self, items, timeout):
        for index, (job,) in enumerate(items):
            if isinstance(job, Describe):
                yield index, self.cpu
            else:
                self.jobs.append(job)
                yield index, self.script[job.config].pop(0)

    def close(self):
        self.closed = True


@pytest.fixture
def hardware(monkeypatch):
    monkeypatch.setattr(rpc.Tracker, "_keys", lambda self: ["board"] * 3)

    def make(workers, target="x86-64-v3"):
        monkeypatch.setattr(rpc, "Workers", workers)
        return rpc.RpcHardware("tracker", 9190, "board", target)

    return make


def outcomes(found):
    return {index: trial.outcome for index, trial in found}


def test_a_lost_session_is_tried_elsewhere(hardware):
    workers = ScriptedWorkers({"a": [LOST, OK], "b": [OK], "c": [Failure("timeout", "slow"), OK]})
    found = hardware(workers).evaluate(TASK, ["a", "b", "c"], "start", 0.1)
    assert outcomes(found) == {0: "ok", 1: "ok", 2: "ok"}
    tried = [(job.config, job.avoid) for job in workers.jobs]
    assert tried == [("a", ""), ("b", ""), ("c", ""), ("a", LOST.address), ("c", "")]


@pytest.mark.parametrize("last", [LOST, Failure("timeout", "no answer")])
def test_two_lost_sessions_are_an_outcome(hardware, last):
    workers = ScriptedWorkers({"a": [LOST, last], "b": [OK]})
    trials = dict(hardware(workers).evaluate(TASK, ["a", "b"], "start", 0.1))
    assert trials[1] is OK and trials[0].outcome == last.outcome
    assert trials[0].note == f"twice, {last.note}"


def test_what_was_measured_before_the_end_is_told(hardware):
    workers = ScriptedWorkers({"a": [OK], "b": [Stopped("no servers left")], "c": [OK]})
    found = hardware(workers).evaluate(TASK, ["a", "b", "c"], "start", 0.1)
    assert next(found) == (0, OK)
    with pytest.raises(HardwareFailure, match="no servers left"):
        next(found)


def test_servers_that_cannot_run_the_target(hardware):
    workers = ScriptedWorkers({})
    with pytest.raises(ValueError, match=r"'x86-64-v4' needs avx512bw .* a CPU lacks: give"):
        hardware(workers, "x86-64-v4")
    assert workers.closed


def test_servers_that_go_before_they_are_counted(hardware, monkeypatch):
    workers = ScriptedWorkers({}, cpu=Stopped("none left"))
    asked = iter([["board"], []])
    monkeypatch.setattr(rpc.Tracker, "_keys", lambda self: next(asked))
    with pytest.raises(HardwareFailure, match="none left"):
        hardware(workers)
    assert workers.closed


def test_servers_that_do_not_answer(hardware):
    for cpu in (Stopped("cannot be reached"), Failure("timeout", "cannot be reached")):
        workers = ScriptedWorkers({}, cpu=cpu)
        with pytest.raises(HardwareFailure, match="cannot be reached"):
            hardware(workers)
        assert workers.closed
