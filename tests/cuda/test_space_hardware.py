"""GPU hardware of a search, with the PTX interpreter in the GPU's place: it did not run on one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime.loader import opened
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.space import cuda_space
from tvm_flash.tune import cuda_device
from tvm_flash.tune.cuda_device import judged_and_timed
from tvm_flash.tune.cuda_hardware import Built, CudaHardware, built
from tvm_flash.tune.hardware import HardwareFailure
from tvm_flash.tune.trial import SearchTask, Sizes, Trial
from tvm_flash.tune.workers import Failure
from tvm_flash.verify.hook import InterpretedDevice
from tvm_flash.verify.trial import Candidate

SPEC = AttentionSpec(dtype="float16", head_dim=64)
SPACE = cuda_space(SPEC, "forward", ARCHS["sm_90"])
SMALL = replace(SPACE.start, block_q=32, block_k=32, num_warps=2, q_in_registers=False)
SIZES = Sizes(1, 1, 1, 40, 40)
TASK = SearchTask(SPACE, SPEC, "forward", "sm_90", SIZES)


class Interpreter:
    """A ``Device`` on host tensors. clock: seconds by artifact; spoil: damages results."""

    capability = (9, 0)

    def __init__(self, clock, spoil=lambda tensors: None):
        self.clock, self.spoil = clock, spoil
        self.paths = {id(cuda_device._kernel(path)): path for path in clock}
        self.called = []

    def place(self, tensor):
        return tensor

    def call(self, kernel, given, outputs):
        path = self.paths[id(kernel)]
        self.called.append(path)
        with InterpretedDevice(opened(path), self.capability) as device:
            device.call(kernel, given, outputs=outputs)
        self.spoil(given)

    def wait(self):
        pass

    def seconds(self, call, repeats):
        if len(self.called) < 100:
            call()
        return self.clock[self.called[-1]]


@pytest.fixture(autouse=True)
def one_problem(monkeypatch):
    """Interpreted, the problems of a tile take seconds each: the telling one is enough here."""
    listed = Candidate.listed
    monkeypatch.setattr(Candidate, "listed", lambda candidate, quick: listed(candidate, True))


@pytest.fixture(scope="module")
def small():
    found = built(SPEC, "forward", "sm_90", SMALL.to_json())
    assert isinstance(found, Built), found
    return found


@pytest.fixture(scope="module")
def smaller():
    config = replace(SMALL, block_k=16)
    return built(SPEC, "forward", "sm_90", config.to_json())


def test_an_artifact_of_one_config(small):
    (kernel,) = opened(small.path).kernels
    (variant,) = kernel.config["variants"]
    assert variant["block_q"] == 32 and variant["archs"] == ["sm_90"]
    assert small.resources["registers"] > 40 and small.resources["stack"] == 0
    assert built(SPEC, "forward", "sm_90", SMALL.to_json()) == small, "from the cache"


def test_a_config_that_spills_is_not_run():
    wide = replace(SPACE.start, block_q=256, block_k=64, q_in_registers=False)
    found = built(SPEC, "forward", "sm_90", wide.to_json())
    assert isinstance(found, Failure) and found.outcome == "spill"
    assert "of the main loop" in found.note


def test_what_a_build_lets_spill_is_measured(monkeypatch):
    wide = replace(SPACE.start, block_q=256, block_k=64, q_in_registers=False)
    monkeypatch.setattr("tvm_flash.codegen.cuda_variants.spill_reasons", lambda *_: [])
    monkeypatch.setattr("tvm_flash.tune.cuda_hardware.source_digest", lambda: "lenient")
    found = built(SPEC, "forward", "sm_90", wide.to_json())
    assert isinstance(found, Built) and found.resources["stack"] > 0


def test_a_config_that_does_not_fit_is_invalid():
    wide = {**SMALL.to_json(), "block_k": 4096}
    found = built(SPEC, "forward", "sm_90", wide)
    assert isinstance(found, Failure) and found.outcome == "invalid"


@pytest.mark.slow
def test_right_results_are_timed_in_turns(small, smaller):
    device = Interpreter({small.path: 2e-3, smaller.path: 1e-3})
    trial = judged_and_timed(device, small.path, smaller.path, SIZES, 0.02)
    assert trial.outcome == "ok" and trial.error <= trial.allowed
    assert len(trial.seconds) == len(trial.incumbent_seconds) >= 2
    assert {small.path, smaller.path} == set(device.called)


@pytest.mark.slow
def test_wrong_results_are_not_timed(small, smaller):
    def spoil(tensors):
        tensors["out"][0, 0, 0, 0] += 1

    device = Interpreter({small.path: 1e-6, smaller.path: 1e-3}, spoil)
    trial = judged_and_timed(device, small.path, smaller.path, SIZES, 0.02)
    assert trial.outcome == "wrong" and trial.error > trial.allowed and not trial.seconds
    assert smaller.path not in device.called


@pytest.mark.slow
@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA launch: too many resources requested for launch",
    ],
)
def test_a_broken_context_is_a_crash(small, smaller, message):
    def spoil(tensors):
        raise RuntimeError(message)

    device = Interpreter({small.path: 1e-6, smaller.path: 1e-3}, spoil)
    trial = judged_and_timed(device, small.path, smaller.path, SIZES, 0.02)
    assert trial.outcome == "crash" and message in trial.note


@pytest.mark.slow
def test_a_backward_has_its_workspaces():
    space = cuda_space(SPEC, "backward", ARCHS["sm_90"])
    config = replace(space.start, block_q=32, block_k=32, num_warps=2)
    found = built(SPEC, "backward", "sm_90", config.to_json())
    kernel = cuda_device._kernel(found.path)
    call = cuda_device.timed_call(Interpreter({found.path: 1e-3}), kernel, SIZES)
    call()
    call()


class Answers:
    """Instead of worker processes: what each item is answered by."""

    def __init__(self, answer):
        self.answer, self.renewed, self.jobs = answer, 0, 1

    def map(self, items, timeout):
        yield from ((n, self.answer(*item)) for n, item in enumerate(items))

    def renew(self):
        self.renewed += 1

    def close(self):
        pass


def hardware(build, measure):
    made = CudaHardware(jobs=1, timeout=60)
    made._builders, made._measurer = Answers(build), Answers(measure)
    return made


def test_evaluate_gives_each_config_its_trial():
    configs = [replace(SMALL, block_k=k) for k in (16, 32, 48, 64)]

    def build(spec, direction, arch, config):
        if config["block_k"] == 16:
            return Failure("spill", "8 bytes")
        return Built(config["block_k"], {"registers": config["block_k"]})

    def measure(ours, best, sizes, seconds):
        if ours == 32:
            return Failure("timeout", "60 s")
        if ours == 48:
            return Trial("crash", note="CUDA error")
        return Trial("ok", 1e-4, 1e-3, (1e-3, 2e-3), (2e-3, 2e-3))

    with hardware(build, measure) as made:
        trials = dict(made.evaluate(TASK, configs, configs[3], 0.1))
        assert [trials[n].outcome for n in range(4)] == ["spill", "timeout", "crash", "ok"]
        assert trials[3].resources == {"registers": 64} and made._measurer.renewed == 1
        with pytest.raises(HardwareFailure, match="8 bytes"):
            list(made.evaluate(TASK, configs, configs[0], 0.1))


def test_what_is_this_machines_fault_ends_the_search():
    made = hardware(lambda *_: Failure("machine", "disk full"), None)
    with pytest.raises(HardwareFailure, match="disk full"):
        list(made.evaluate(TASK, [SMALL], SMALL, 0.1))


def test_origin_names_the_gpu_and_the_compiler():
    with CudaHardware(jobs=1, timeout=60) as made:
        origin = made.origin(TASK)
    assert origin["machine"]["arch"] == "sm_90" and origin["versions"]["nvcc"]
    if not torch.cuda.is_available():
        assert origin["cpu"] == "no GPU"
