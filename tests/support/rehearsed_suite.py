"""`tvm-flash bench --suite gpu` without a GPU: kernels run in the PTX interpreter, times made up.

Nothing that it prints was measured; it says so in place of a GPU's name.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

from interpreted import aligned_rows
from rehearsed_gpu import NOISE, one_problem, pose, rehearse

from tvm_flash import bench
from tvm_flash.bench import device, measuring, run
from tvm_flash.frontend import ops, placement
from tvm_flash.problem.arguments import WRITTEN, names
from tvm_flash.runtime import loader
from tvm_flash.verify import library as verify_library
from tvm_flash.verify.hook import InterpretedDevice

GPU = {
    "gpu": "no GPU: the PTX interpreter, times made up",
    "capability": "9.0",
    "driver": "none",
    "versions": {},
}
FLOORS = bench.Floors(1, "cuda", {"float32": 1e3, "float16": 1e4}, 1e3, 0.0)
HASTE = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0)
PROBLEM = bench.Problem("float16", 16, 40, False, heads=2)


class RehearsedDevice:
    """A ``bench.device.Device`` of CPU tensors; each call runs once, in a made-up time."""

    tensors, drifts = "cpu", False

    def __init__(self):
        self.timed = []
        self._noise = itertools.cycle(NOISE)

    def stopwatch(self, call, repeats=1):
        call()
        self.timed.append(call)
        return 1e-3 * (1 + next(self._noise))

    def wait(self):
        pass

    release = wait

    def fields(self):
        return GPU

    def state(self):
        return {"clocks": {}}


class Interpreted:
    """The kernels of the library at ``folder`` on CPU tensors; spoil: damages what they write."""

    def __init__(self, folder, spoil=lambda tensors: None):
        self.library, self.spoil = loader.load(folder), spoil
        self.called = []

    def run(self, kernel, placed):
        """``kernel`` on the arguments ``placed``, which are named."""
        self.called.append(kernel.direction)
        with InterpretedDevice(self.library, (9, 0)) as gpu:
            gpu.call(kernel, placed, outputs=names(kernel.arguments, *WRITTEN))
        self.spoil(placed)

    def resolve(self, spec, direction, *where):
        """To stand for ``ops.resolve``: what is called with CPU tensors runs as on a GPU."""
        kernel = loader.registered[spec.name, direction, "cuda", "long"]
        return replace(kernel, function=partial(self._call, kernel))

    def _call(self, kernel, *arguments):
        own = (argument.name for argument in kernel.arguments)
        self.run(kernel, dict(zip(own, arguments, strict=True)))


def lengths(threads):
    yield bench.Cell(
        "lengths", PROBLEM, "forward", threads, names=("tvm_flash", "sdpa_flash", "sdpa_cudnn")
    )


def rehearse_suite(monkeypatch, folder, spoil=lambda tensors: None):
    """A GPU suite of small cells on an sm_90 that is the interpreter: (device, kernels)."""
    rehearse(monkeypatch, lambda place, numbers: 1e-5 * numbers["block_k"])
    pose(monkeypatch, GPU["gpu"])
    one_problem(monkeypatch)
    there, kernels = RehearsedDevice(), Interpreted(folder, spoil)
    monkeypatch.setitem(device.DEVICES, "cuda", there)
    monkeypatch.setattr(run, "Apart", measuring.Here)
    monkeypatch.setattr(measuring, "load", lambda path: kernels.library)
    monkeypatch.setattr(measuring, "measure_floors", lambda *given, **known: FLOORS)
    monkeypatch.setattr(verify_library, "_run_on_gpu", kernels.run)
    monkeypatch.setattr(verify_library, "_to_gpu", lambda tensor: tensor)
    monkeypatch.setattr(ops, "resolve", kernels.resolve)
    monkeypatch.setattr(placement, "processors_of", lambda x: 132)
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(ops, "place_of", lambda x: ("cuda", (9, 0)))
    whole = bench.SUITES["gpu"]
    own = {section.name: section for section in whole.sections}
    own["lengths"] = bench.Section("lengths", "a cell", lengths)
    small = tuple(own[name] for name in ("kernels", "lengths", "candidates"))
    monkeypatch.setitem(bench.SUITES, "gpu", replace(whole, sections=small, patience=HASTE))
    return there, kernels
