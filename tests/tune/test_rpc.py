"""Tuning over TVM's RPC, on loopback: a tracker, servers, and what goes wrong with them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tvm_flash.artifact.library import sha256_of, verify, write_manifest
from tvm_flash.bench.host import cpu_name
from tvm_flash.cases import CASES
from tvm_flash.codegen.linker import find_compiler
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.target import cpu_target, host_target
from tvm_flash.tune.rpc.build import RemoteTask, build_kernel, entry_name
from tvm_flash.tune.rpc.hardware import RpcHardware, check_features
from tvm_flash.tune.rpc.servers import Servers, Stopped
from tvm_flash.tune.rpc.session import RemoteCpu
from tvm_flash.tune.rpc.tracker import Tracker
from tvm_flash.tune.rpc.trial import Attempt, Lost
from tvm_flash.tune.trial import SearchTask, Sizes, Trial

pytest.importorskip("tornado")
pytestmark = pytest.mark.slow

KEY = "here"
SPEC = AttentionSpec(dtype="float32", head_dim=32)
# Seconds that a session may last on a machine that is busy with other tests.
AMPLE = 300.0

CRASHES = "*(volatile int *)0 = 1;"
HANGS = "for (;;) sleep(1);"
WRITES_NOTHING = ""


def port_range(count=1):
    """Options for a free port, or the next of ``count`` where somebody takes it meanwhile."""
    port = free_port()
    return ["--port", str(port), "--port-end", str(port + count)]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def program(module, *options):
    """`python -m tvm.exec.MODULE` in a process group of its own, which ends with the block."""
    command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = subprocess.DEVNULL
    process = subprocess.Popen(
        command, start_new_session=True, stdout=log, stderr=log, env=environment
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    """The program and all processes it has started, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def server(tracker):
    return program("rpc_server", *port_range(20), "--tracker", str(tracker), "--key", KEY)


def eventually(holds):
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.1)
    pytest.fail("it did not become true")


def registered(tracker, count):
    def holds():
        try:
            return tracker.servers(KEY) == count
        except ValueError:
            return False

    return holds


@pytest.fixture(scope="module")
def servers():
    """Two servers of KEY as processes, by their tracker."""
    ports = port_range()
    found = Tracker("127.0.0.1", int(ports[1]))
    # All at once: a server waits for its tracker.
    with program("rpc_tracker", *ports), server(found) as one, server(found) as other:
        eventually(registered(found, 2))
        yield found, (one, other)


@pytest.fixture
def tracker(servers):
    return servers[0]


@pytest.fixture(scope="module")
def task():
    from tvm_flash.schedules.select import space_of

    target = host_target()
    space = space_of(SPEC, "forward", target, "tiny")
    return SearchTask(space, SPEC, "forward", target.name, Sizes(1, 2, 1, 30, 31))


@pytest.fixture(scope="module")
def candidates(task):
    """Configs other than the start."""
    points = (p for p in task.space.points if task.space.config(p) != task.space.start)
    return [task.space.config(point) for point, _ in zip(points, range(10), strict=False)]


# After ``fakes``: processes inherit the cache that is set when they start.
@pytest.fixture(scope="module")
def hardware(fakes, servers, task):
    tracker, _ = servers
    with RpcHardware(tracker.host, tracker.port, KEY, task.target, limit=AMPLE, jobs=2) as made:
        yield made


class Fakes:
    """A kernel cache that holds, for a config, another one's kernel or none at all."""

    def __init__(self, folder, task):
        self.folder, self.task = folder, task
        self.target = host_target()
        known = (task.direction, task.space.start, self.target)
        self.right = build_kernel(task.spec, *known)
        self.causal = build_kernel(replace(task.spec, causal=True), *known)

    def kernel(self, config, library, **record):
        """Let ``library`` be the kernel of ``config``."""
        task = self.task
        name = entry_name(task.spec, task.direction, config, self.target)
        place = shutil.copytree(self.right.library.parent, self.folder / "cache" / name)
        _, manifest = verify(place)
        shutil.copy(library, place / manifest.library)
        kernels = (replace(manifest.kernels[0], **record),)
        digest = sha256_of(place / manifest.library)
        write_manifest(place, replace(manifest, sha256=digest, kernels=kernels))

    def statements(self, config, body):
        """Let the kernel of ``config`` do what the C statements ``body`` say."""
        source, library = self.folder / "fake.c", self.folder / "fake.so"
        source.write_text(
            "#include <unistd.h>\nvoid tvm_flash_bind_threads(void *a, void *b, void *c) {}\n"
            f"int __tvm_ffi_{self.right.symbol}(void *s, void *a, int n, void *r)"
            f"{{ {body} return 0; }}\n"
        )
        command = [*find_compiler(), "-shared", "-fPIC", "-w", "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        self.kernel(config, library)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory, task):
    """Its kernels are of the cache that all tests share; what follows sees the fakes' alone."""
    made = Fakes(tmp_path_factory.mktemp("fakes"), task)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVM_FLASH_CACHE_DIR", str(made.folder / "cache"))
        made.kernel(task.space.start, made.right.library)
        yield made


def attempt(tracker, task, config, *, wait=AMPLE, limit=AMPLE, key=KEY, cpu=None):
    servers = Servers(tracker, key, wait, limit)
    known = (RemoteTask.of(task), config, task.space.start, 0.02, cpu or cpu_name())
    return Attempt(servers, *known)()


def test_candidates_are_measured_and_fakes_found(fakes, hardware, tracker, task, candidates):
    good, deadly, causal, silent = candidates[:4]
    fakes.kernel(good, fakes.right.library)
    fakes.statements(deadly, CRASHES)
    fakes.kernel(causal, fakes.causal.library, symbol=fakes.causal.symbol)
    fakes.statements(silent, WRITES_NOTHING)
    before = tracker.servers(KEY)
    trials = dict(hardware.evaluate(task, candidates[:4], task.space.start, 0.02))
    assert [trials[n].outcome for n in range(4)] == ["ok", "crash", "wrong", "wrong"]
    ok = trials[0]
    assert ok.error <= ok.allowed and ok.resources["server"].startswith("127.0.0.1:")
    assert len(ok.seconds) == len(ok.incumbent_seconds) >= 2
    assert "twice" in trials[1].note
    assert trials[2].error > trials[2].allowed and "exceeds" in trials[2].note
    assert trials[3].error is None and trials[3].seconds == ()
    # The servers outlive what crashes in them.
    assert tracker.servers(KEY) == before
    origin = hardware.origin(task)
    assert origin["cpu"] == cpu_name() and origin["machine"]["cores"] == os.cpu_count()
    assert {"tvm", "tvm_ffi", "tvm_flash", "torch"} <= set(origin["versions"])


def test_a_backward_in_two_threads(tracker):
    from tvm_flash.schedules.select import space_of

    spec, target = AttentionSpec(dtype="bfloat16", head_dim=32, causal=True), host_target()
    space = space_of(spec, "backward", target, "tiny")
    task = SearchTask(space, spec, "backward", target.name, Sizes(2, 2, 1, 20, 31), threads=2)
    trial = attempt(tracker, task, task.space.start)
    assert isinstance(trial, Trial), trial
    assert trial.outcome == "ok" and trial.error <= trial.allowed
    assert len(trial.seconds) == len(trial.incumbent_seconds) >= 2


def test_a_forward_with_a_score_function(tracker):
    """It writes two arrays of statistics: both come back."""
    from tvm_flash.schedules.select import space_of

    (spec,) = {case.spec for case in CASES if case.name == "relative_bias"}
    target = host_target()
    space = space_of(spec, "forward", target, "tiny")
    task = SearchTask(space, spec, "forward", target.name, Sizes(1, 2, 1, 20, 31))
    trial = attempt(tracker, task, task.space.start)
    assert isinstance(trial, Trial) and trial.outcome == "ok", trial


def test_a_hang_ends_with_its_session(tracker, task, candidates, fakes):
    fakes.statements(candidates[4], HANGS)
    # Enough to connect on a busy machine; a session that ends before that is no candidate's.
    lost = attempt(tracker, task, candidates[4], limit=10.0)
    assert isinstance(lost, Lost) and lost.outcome == "timeout", lost
    assert lost.address in lost.note


def test_what_stops_a_run(tracker, task):
    stopped = attempt(tracker, task, task.space.start, key="nobody", wait=0.5)
    assert isinstance(stopped, Stopped)
    assert "'nobody'" in stopped.reason and "start servers" in stopped.reason
    stopped = attempt(tracker, task, task.space.start, cpu="Z80")
    assert isinstance(stopped, Stopped) and "Z80; give each kind of machine" in stopped.reason


def test_bad_requests(tracker):
    target = host_target().name
    with pytest.raises(ValueError, match="no server with key 'nokey': its keys are here"):
        RpcHardware(tracker.host, tracker.port, "nokey", target)
    with pytest.raises(ValueError, match="no RPC tracker answers"):
        RpcHardware("127.0.0.1", free_port(), KEY, target)
    with pytest.raises(UnsupportedSpec, match="z80"):
        RpcHardware(tracker.host, tracker.port, KEY, "z80")
    with pytest.raises(ValueError, match=r"'x86-64-v3' needs .*fma.* which .* Z80 lacks"):
        check_features(cpu_target("x86-64-v3"), RemoteCpu("Z80", frozenset({"avx2"}), 1))


def test_a_server_that_dies_costs_nothing(fakes, hardware, servers, task, candidates):
    tracker, (doomed, _) = servers
    assert tracker.servers(KEY) == 2
    for config in candidates[5:]:
        fakes.kernel(config, fakes.right.library)
    trials = {}
    for index, trial in hardware.evaluate(task, candidates[5:], task.space.start, 0.2):
        trials[index] = trial
        kill(doomed)
    assert {n: t.outcome for n, t in trials.items()} == dict.fromkeys(range(5), "ok")
    assert tracker.servers(KEY) == 1
