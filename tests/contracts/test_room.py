"""Too little room on disk or in memory, and Ctrl-C, end a call: never the process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvm_flash.codegen.process import run
from tvm_flash.codegen.room import compiling, require_memory, scratch_folder, written_bytes
from tvm_flash.errors import BuildError

# First calls that fail for a limit, and one more when it is gone.
LIMITED = """
import resource, sys, torch
from tvm_flash import BuildError, attention

def mapped():
    fields = [line.split() for line in open("/proc/self/status")]
    return next(int(f[1]) << 10 for f in fields if f[0] == "VmSize:")

q = torch.randn(1, 16, 2, 64)

def refused(limit, value):
    resource.setrlimit(limit, (value, resource.RLIM_INFINITY))
    try:
        attention(q, q, q)
    except BuildError as error:
        print(error)
    resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2)

refused(resource.RLIMIT_AS, mapped() + (100 << 20))
refused(resource.RLIMIT_FSIZE, 8192)
assert "tvm" in sys.modules
refused(resource.RLIMIT_AS, mapped() + (100 << 20))
expected = torch.nn.functional.scaled_dot_product_attention(*[q.double().transpose(1, 2)] * 3)
torch.testing.assert_close(attention(q, q, q).double(), expected.transpose(1, 2), atol=1e-5, rtol=0)
print("served")
"""


def process(code, tmp_path):
    """What a process printed that ran ``code`` with an empty cache, and survived."""
    environment = {**os.environ, "TVM_FLASH_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and limits of Linux")
def test_a_process_outlives_too_little_room(tmp_path):
    """Memory for tvm, a file for the object, memory for LLVM: errors, and then a right result."""
    no_tvm, no_file, no_memory, served = process(LIMITED, tmp_path).splitlines()
    assert "importing apache-tvm needs" in no_tvm
    assert "8192 bytes" in no_file
    assert "MiB of memory" in no_memory
    assert served == "served"


def test_an_interrupted_import_of_tvm_is_completed(tmp_path):
    """SIGINT while tvm is half imported: KeyboardInterrupt when it is whole, and calls go on."""
    printed = process(
        """
        import importlib.abc, os, signal, sys, torch
        from tvm_flash import attention

        class Interrupt(importlib.abc.MetaPathFinder):
            def find_spec(self, name, *_):
                if name in ("tvm.runtime", "tvm.ir", "tvm.s_tir"):
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupt())
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a shell
        q = torch.randn(1, 16, 2, 64)
        try:
            attention(q, q, q)
        except KeyboardInterrupt:
            print("interrupted", "tvm.s_tir" in sys.modules)
        print(attention(q, q, q).isfinite().all().item())
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """,
        tmp_path,
    )
    assert printed.split() == ["interrupted", "True", "True", "True"]


def test_the_output_of_llvm_goes_to_disk_where_memory_holds_no_file(monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    assert written_bytes(lambda path: Path(path).write_bytes(b"code")) == b"code"


def test_the_output_of_llvm_needs_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))

    def write(path):
        with open(path, "wb") as file:
            file.write(b"code")

    if sys.platform == "linux":
        assert written_bytes(write) == b"code"
    with pytest.raises(BuildError, match="assembling k failed"), scratch_folder("assembling k"):
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_cannot_be_written_is_a_build_error(error):
    with pytest.raises(BuildError, match="packing failed"), scratch_folder("packing"):
        raise error


def test_a_tool_that_is_out_of_room_is_a_build_error():
    command = [sys.executable, "-c", "open('/dev/full', 'w').write('x' * 100000)"]
    with pytest.raises(BuildError, match="No space left"):
        run(command, what="linking", choose="$CC")


def test_a_compilation_without_room_leaves_no_lock(monkeypatch):
    refused = BuildError("no memory")

    def refuse(*_):
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr("tvm_flash.codegen.room.require_memory", refuse)
        with pytest.raises(BuildError), compiling("k"):
            pass
    with compiling("k"), compiling("k"):
        pass
    with pytest.raises(BuildError, match="ulimit -v"):
        require_memory(1 << 62, "this")
