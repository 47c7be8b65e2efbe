"""This machine as hardware: kernels that are right are timed, the others say why not."""

import json
import shutil
from dataclasses import replace

import pytest

from tvm_flash.artifact.library import MANIFEST
from tvm_flash.codegen import jit
from tvm_flash.errors import HardwareFailure
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.select import space_of
from tvm_flash.schedules.target import host_target
from tvm_flash.tune import local
from tvm_flash.tune.local import LocalHardware, built
from tvm_flash.tune.measure import judged_and_timed
from tvm_flash.tune.sizes import sizes_of
from tvm_flash.tune.trial import SearchTask, Trial
from tvm_flash.workers import Failure

SPEC = AttentionSpec(dtype="float32", head_dim=16, alibi=True)


def task_of(direction):
    target = host_target()
    space = space_of(SPEC, direction, target, "tiny")
    return SearchTask(space, SPEC, direction, target.name, sizes_of(direction, "tiny"))


@pytest.mark.slow
def test_right_and_invalid():
    task = task_of("forward")
    start = task.space.start
    configs = [start, replace(start, block_k=61)]
    with LocalHardware(jobs=1, timeout=300) as hardware:
        trials = dict(hardware.evaluate(task, configs, start, 0.1))
        origin = hardware.origin(task)
    right, invalid = trials[0], trials[1]
    assert (right.outcome, invalid.outcome) == ("ok", "invalid")
    assert len(right.seconds) == len(right.incumbent_seconds) >= 2
    assert 0 <= right.error <= right.allowed
    assert not invalid.seconds and "block_k=61" in invalid.note
    assert right.resources == {} or right.resources["products"] > 0
    assert origin["machine"]["threads"] == 1 and {"tvm", "torch"} <= origin["versions"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_wrong_kernel_is_not_timed(tmp_path, direction):
    """The code of a causal kernel, under a manifest that promises full attention."""
    sizes = sizes_of(direction, "tiny")
    causal = jit.artifact_for(replace(SPEC, causal=True), direction)
    assert judged_and_timed(causal, causal, sizes, 1, 0.01).outcome == "ok"
    liar = tmp_path / "liar"
    shutil.copytree(causal, liar)
    manifest = json.loads((liar / MANIFEST).read_text())
    manifest["kernels"][0]["spec"] = SPEC.to_json()
    (liar / MANIFEST).write_text(json.dumps(manifest))
    trial = judged_and_timed(liar, causal, sizes, 1, 0.01)
    assert trial.outcome == "wrong" and not trial.seconds and not trial.incumbent_seconds
    assert trial.error > trial.allowed and trial.note


def test_a_machine_that_cannot_build_is_no_fault_of_a_config(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "file" / "cache"))
    answer = built(SPEC, "forward", task_of("forward").space.start.to_json())
    assert answer.outcome == "machine" and "TVM_FLASH_CACHE_DIR" in answer.note


class Answers:
    """Workers that answer as they are told."""

    def __init__(self, answer):
        self.answer, self.renewed, self.started = answer, 0, 0

    def map(self, items, timeout):
        yield from ((index, self.answer) for index, _ in enumerate(items))

    def renew(self):
        self.renewed += 1

    def start(self):
        self.started += 1

    def close(self):
        """Nothing runs."""


@pytest.fixture
def hardware():
    with LocalHardware(jobs=1, timeout=1) as made:
        yield made


def test_trouble_of_the_machine_ends_the_search(hardware):
    hardware._builders = Answers(Failure("machine", "no space left"))
    task = task_of("forward")
    with pytest.raises(HardwareFailure, match="no space left"):
        list(hardware.evaluate(task, [task.space.start], task.space.start, 0.1))


def test_after_a_wrong_kernel_another_process_measures(hardware, tmp_path):
    """It may have written anywhere."""
    task = task_of("forward")
    hardware._builders = Answers(local.Built(tmp_path, {}))
    for outcome, renewed in (("ok", 0), ("wrong", 1)):
        hardware._measurer = Answers(Trial(outcome))
        list(hardware.evaluate(task, [task.space.start], task.space.start, 0.1))
        assert hardware._measurer.renewed == renewed


def test_a_crash_while_measuring_is_the_candidates(hardware, tmp_path):
    hardware._builders = Answers(local.Built(tmp_path, {"products": 5}))
    hardware._measurer = Answers(Failure("crash", "SIGSEGV"))
    task = task_of("forward")
    ((_, trial),) = hardware.evaluate(task, [task.space.start], task.space.start, 0.1)
    assert (trial.outcome, trial.note, trial.resources) == ("crash", "SIGSEGV", {"products": 5})
