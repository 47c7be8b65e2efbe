"""Asking an RPC tracker: every way it can be wrong has its message, no wait is for ever."""

import json
import socket
import struct
import threading
import time

import pytest

from tvm_flash.errors import HardwareFailure
from tvm_flash.tune.rpc.tracker import Grant, Tracker

MAGIC = struct.pack("<i", 0x2F271)
REQUEST, SUMMARY = 4, 6


class FakeTracker:
    """Speaks TVM's protocol: ``grants`` are lent one after another, ``keys`` are registered."""

    def __init__(self, keys=(), grants=(), greeting=MAGIC):
        self.keys, self.grants, self.greeting = list(keys), list(grants), greeting
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(line,), daemon=True).start()

    def _answer(self, line):
        line.recv(4)
        line.sendall(self.greeting)
        (size,) = struct.unpack("<i", line.recv(4) or bytes(4))
        code, *_ = json.loads(line.recv(size) or "[0]")
        if code == SUMMARY:
            self._say(line, [0, {"server_info": [{"key": f"server:{k}"} for k in self.keys]}])
        elif code == REQUEST and self.grants:
            self._say(line, [0, self.grants.pop(0)])
        else:
            line.recv(1)  # nothing is free: until the client goes

    def _say(self, line, value):
        text = json.dumps(value).encode()
        for part in (struct.pack("<i", len(text)), text[:3], text[3:]):
            line.sendall(part)
            time.sleep(0.01)


@pytest.fixture
def tracker():
    made = []

    def make(**options):
        made.append(FakeTracker(**options))
        return Tracker("127.0.0.1", made[-1].port)

    yield make
    for each in made:
        each.listener.close()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_servers_are_counted_by_key(tracker):
    asked = tracker(keys=["a", "b:c", "a"])
    assert [asked.servers(key) for key in ("a", "b:c", "d")] == [2, 1, 0]
    asked.check("b:c")


def test_a_key_without_servers_names_the_others(tracker):
    with pytest.raises(ValueError, match=r"no server with key 'd': its keys are a, b; .*--key d"):
        tracker(keys=["b", "a", "a"]).check("d")
    with pytest.raises(ValueError, match="it has no servers"):
        tracker().check("a")


def test_nothing_listens():
    port = closed_port()
    with pytest.raises(ValueError, match=rf"127.0.0.1:{port} .*refused.*rpc_tracker --port {port}"):
        Tracker("127.0.0.1", port).check("a")


@pytest.mark.parametrize("port", [70000, 10**30])
def test_a_port_that_does_not_exist(port):
    with pytest.raises(ValueError, match="no RPC tracker answers at"):
        Tracker("127.0.0.1", port).check("a")


def test_something_else_listens(tracker):
    with pytest.raises(ValueError, match=r"is no RPC tracker .*greets with 0x50545448"):
        tracker(greeting=b"HTTP").check("a")


def test_a_free_server_is_lent(tracker):
    grant = tracker(keys=["a"], grants=[["10.0.0.7", 9090, "a:0.5"]]).request("a", 600, 600)
    assert grant == Grant("10.0.0.7", 9090, "a:0.5") and grant.address == "10.0.0.7:9090"


def test_another_server_than_the_one_to_avoid(tracker):
    grants = [["10.0.0.7", 9090, "a:1"], ["10.0.0.8", 9090, "a:2"]]
    asked = tracker(keys=["a", "a"], grants=grants)
    assert asked.request("a", 600, 600, avoid="10.0.0.7:9090").host == "10.0.0.8"


def test_waiting_ends(tracker):
    with pytest.raises(HardwareFailure, match=r"none has been registered for 0.5 s; start servers"):
        tracker().request("a", 0.5, 60)
    with pytest.raises(HardwareFailure, match=r"all have been in use for 0.5 s"):
        tracker(keys=["a"]).request("a", 60, 0.5)
    with pytest.raises(HardwareFailure, match="refused"):
        Tracker("127.0.0.1", closed_port()).request("a", 0.5, 60)
