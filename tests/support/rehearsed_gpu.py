"""A GPU for `tvm-flash tune`: the PTX interpreter runs its kernels, a made-up clock times them."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from typer.testing import CliRunner

from tvm_flash.bench.timing import Call
from tvm_flash.cli.app import app
from tvm_flash.runtime.loader import Kernel, opened
from tvm_flash.tune import building, cuda_device, cuda_hardware
from tvm_flash.tune.cuda_device import Place
from tvm_flash.tune.trial import Sizes
from tvm_flash.verify.hook import InterpretedDevice
from tvm_flash.verify.trial import Candidate
from tvm_flash.workers import Failure

# What is timed: small, since each kernel is interpreted once before its time is made up.
SIZES = Sizes(1, 1, 1, 40, 40)
# Parts of a time that repeats differ by.
NOISE = (0.0, 0.004, -0.003, 0.002, -0.001)


def call(*arguments, status=0):
    """What `tvm-flash` prints of ``arguments``, which it must end with ``status``."""
    result = CliRunner().invoke(app, list(map(str, arguments)), terminal_width=160)
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result


class Interpreter:
    """A ``TrialDevice`` on host tensors. spoil: damages results.

    clock(place, numbers): seconds of the kernel at a ``cuda_device.Place`` with such a config.
    """

    capability = (9, 0)

    def __init__(self, clock, spoil=lambda tensors: None):
        self.clock, self.spoil = clock, spoil
        self.kernels: dict[Place, Kernel] = {}
        self.called: list[Place] = []
        self._timed: dict[Call, Place] = {}
        self._opened = cuda_device._kernel
        self._noise = itertools.cycle(NOISE)

    def kernel(self, place):
        """The kernel at ``place``, to stand for ``cuda_device._kernel``."""
        return self.kernels.setdefault(place, self._opened(place))

    def place(self, tensor):
        return tensor

    def call(self, kernel, given, outputs):
        place = next(place for place, known in self.kernels.items() if known is kernel)
        self.called.append(place)
        path = place[0] if isinstance(place, tuple) else place
        with InterpretedDevice(opened(path), self.capability) as device:
            device.call(kernel, given, outputs=outputs)
        self.spoil(given)

    def wait(self):
        pass

    def seconds(self, call, repeats):
        """Seconds of a call that has run once."""
        if call not in self._timed:
            call()
            self._timed[call] = self.called[-1]
        place = self._timed[call]
        (variant,) = self.kernels[place].config["variants"]
        return self.clock(place, variant) * (1 + next(self._noise))


class Inline:
    """``Workers`` in this process."""

    def __init__(self, function, jobs, prepare=None):
        self.function, self.jobs, self.prepare = function, jobs, prepare or (lambda: None)
        self.started = 0

    def map(self, items, timeout):
        for number, item in enumerate(items):
            try:
                yield number, self.function(*item)
            except Exception as error:
                yield number, Failure("crash", f"{type(error).__name__}: {error}")

    def start(self):
        self.started += 1
        self.prepare()

    def renew(self):
        pass

    close = renew


def made_up(place, numbers):
    """Seconds: tiles of more queries, and of 32 keys, are faster."""
    return 1e-3 * (1 + abs(numbers["block_k"] - 32) / 64) * (128 / numbers["block_q"]) ** 0.5


def pose(monkeypatch, name="NVIDIA H100", capability=(9, 0)):
    """torch sees a GPU that there is not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


def rehearse(monkeypatch, clock=made_up, spoil=lambda tensors: None):
    """`tvm-flash tune --target cuda` on an sm_90 that is the interpreter; gives the device."""
    device = Interpreter(clock, spoil)
    pose(monkeypatch, "no GPU: the PTX interpreter, times made up")
    monkeypatch.setattr(building, "Workers", Inline)
    monkeypatch.setattr(cuda_hardware, "open_device", lambda: None)
    monkeypatch.setattr(cuda_hardware, "judged_and_timed_on_gpu", partial(_on_small_sizes, device))
    monkeypatch.setattr(cuda_device, "_kernel", device.kernel)
    one_problem(monkeypatch)
    return device


def _on_small_sizes(device, path, incumbent, sizes, seconds):
    return cuda_device.judged_and_timed(device, path, incumbent, SIZES, seconds)


def one_problem(monkeypatch):
    """Interpreted, the problems of a tile take seconds each: the telling one is enough here."""
    listed = Candidate.listed
    monkeypatch.setattr(Candidate, "listed", lambda candidate, quick: listed(candidate, True))
