"""GPU hardware of a search, with the PTX interpreter in the GPU's place: it did not run on one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rehearsed_gpu import SIZES, Interpreter, one_problem

from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from tvm_flash.errors import HardwareFailure
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime.loader import opened
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.space import cuda_space
from tvm_flash.tune import cuda_device
from tvm_flash.tune.cuda_device import judged_and_timed
from tvm_flash.tune.cuda_hardware import Built, CudaHardware, built
from tvm_flash.tune.trial import SearchTask, Trial
from tvm_flash.workers import Failure

SPEC = AttentionSpec(dtype="float16", head_dim=64)
SPACE = cuda_space(SPEC, "forward", ARCHS["sm_90"])
SMALL = replace(SPACE.start, block_q=32, block_k=32, num_warps=2, q_in_registers=False)
TASK = SearchTask(SPACE, SPEC, "forward", "sm_90", SIZES)


@pytest.fixture
def interpreter(monkeypatch):
    """A function that gives a device; clock: seconds by artifact; spoil: damages results."""
    one_problem(monkeypatch)

    def use(clock, spoil=lambda tensors: None):
        device = Interpreter(lambda place, numbers: clock[place], spoil)
        monkeypatch.setattr(cuda_device, "_kernel", device.kernel)
        return device

    return use


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
    monkeypatch.setattr("tvm_flash.codegen.cuda_variants.refused_spills", lambda *_: [])
    monkeypatch.setattr("tvm_flash.tune.cuda_hardware.source_digest", lambda: "lenient")
    found = built(SPEC, "forward", "sm_90", wide.to_json())
    assert isinstance(found, Built) and found.resources["stack"] > 0


def test_a_config_that_does_not_fit_is_invalid():
    wide = {**SMALL.to_json(), "block_k": 4096}
    found = built(SPEC, "forward", "sm_90", wide)
    assert isinstance(found, Failure) and found.outcome == "invalid"


@pytest.mark.slow
def test_right_results_are_timed_in_turns(interpreter, small, smaller):
    device = interpreter({small.path: 2e-3, smaller.path: 1e-3})
    trial = judged_and_timed(device, small.path, smaller.path, SIZES, 0.02)
    assert trial.outcome == "ok" and trial.error <= trial.allowed
    assert len(trial.seconds) == len(trial.incumbent_seconds) >= 2
    assert {small.path, smaller.path} == set(device.called)


@pytest.mark.slow
def test_wrong_results_are_not_timed(interpreter, small, smaller):
    def spoil(tensors):
        tensors["out"][0, 0, 0, 0] += 1

    device = interpreter({small.path: 1e-6, smaller.path: 1e-3}, spoil)
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
def test_a_broken_context_is_a_crash(interpreter, small, smaller, message):
    def spoil(tensors):
        raise RuntimeError(message)

    device = interpreter({small.path: 1e-6, smaller.path: 1e-3}, spoil)
    trial = judged_and_timed(device, small.path, smaller.path, SIZES, 0.02)
    assert trial.outcome == "crash" and message in trial.note


@pytest.mark.slow
def test_a_backward_has_its_workspaces(interpreter):
    space = cuda_space(SPEC, "backward", ARCHS["sm_90"])
    config = replace(space.start, block_q=32, block_k=32, num_warps=2)
    found = built(SPEC, "backward", "sm_90", config.to_json())
    device = interpreter({})
    call = cuda_device.timed_call(device, device.kernel(found.path), SIZES)
    call()
    call()


class Answers:
    """Instead of worker processes: what each item is answered by."""

    def __init__(self, answer):
        self.answer, self.renewed, self.started, self.jobs = answer, 0, 0, 1

    def map(self, items, timeout):
        yield from ((n, self.answer(*item)) for n, item in enumerate(items))

    def renew(self):
        self.renewed += 1

    def start(self):
        self.started += 1

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
        assert trials[3].resources == {"registers": 64}
        assert (made._measurer.renewed, made._measurer.started) == (1, 2)
        with pytest.raises(HardwareFailure, match="8 bytes"):
            list(made.evaluate(TASK, configs, configs[0], 0.1))


def test_what_is_this_machines_fault_ends_the_search():
    made = hardware(lambda *_: Failure("machine", "disk full"), None)
    with pytest.raises(HardwareFailure, match="disk full"):
        list(made.evaluate(TASK, [SMALL], SMALL, 0.1))


def test_a_device_that_is_lost_is_no_configs_crash():
    class Lost(Answers):
        def start(self):
            raise HardwareFailure("a worker process did not start: no CUDA GPUs are available")

    made = hardware(lambda *_: Built("path", {}), None)
    made._measurer = Lost(lambda *_: Failure("crash", "CUDA error: unspecified launch failure"))
    with pytest.raises(HardwareFailure, match="no CUDA GPUs"):
        list(made.evaluate(TASK, [SMALL], SMALL, 0.1))


def test_origin_names_the_gpu_and_the_compiler():
    with CudaHardware(jobs=1, timeout=60) as made:
        origin = made.origin(TASK)
    assert origin["machine"]["arch"] == "sm_90" and origin["versions"]["nvcc"]
    if not torch.cuda.is_available():
        assert origin["cpu"] == "no GPU"
