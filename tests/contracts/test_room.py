"""Too little room on disk or in memory, and Ctrl-C, end a call: never the process."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("tvm")

from tvm_flash.codegen.process import run
from tvm_flash.codegen.room import compiling, require_memory, scratch_folder, written_bytes
from tvm_flash.errors import BuildError, remedy_for

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


# Every place that opens a file fails in its turn: so many descriptors are left to it.
WITHOUT_DESCRIPTORS = """
import os, resource, sys, torch
from tvm_flash import ArtifactError, AttentionSpec, BuildError, attention, build, load
from tvm_flash.runtime.loader import registered

q = torch.randn(1, 16, 2, 16)
attention(q, q, q)
folder = os.environ["TVM_FLASH_CACHE_DIR"]
new = {"path": f"{folder}/new", "directions": ["forward"], "buckets": ["tiny"]}
kept = build([AttentionSpec(dtype="float32", head_dim=16)], **new)
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def refused(left, call, *arguments, **named):
    registered.clear()
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for descriptor in held[:left]:
        os.close(descriptor)
    try:
        call(*arguments, **named)
        print("served", left)
    except (ArtifactError, BuildError) as error:
        print(str(error).rpartition("; ")[2])
    for descriptor in held[left:]:
        os.close(descriptor)

for left in (0, 1):
    refused(left, load, kept)
for left in (0, 1):
    refused(left, attention, q, q, q)
for left in (0, 1, 2, 3):
    refused(left, build, [AttentionSpec(dtype="float32", head_dim=16)], **new)
refused(100, attention, q, q, q)
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


@pytest.mark.skipif(sys.platform != "linux", reason="counts what Linux opens")
def test_a_process_without_descriptors_is_told_of_them(tmp_path):
    """Loading, the cache, building and linking: never a remedy about disks or permissions."""
    *refused, served = process(WITHOUT_DESCRIPTORS, tmp_path).splitlines()
    assert refused == ["too many open files: raise ulimit -n"] * 8
    assert served == "served 100"


def test_a_remedy_follows_from_the_number_of_the_error():
    assert remedy_for(OSError(errno.EMFILE, "x"), "y") == "too many open files: raise ulimit -n"
    assert "fs.file-max" in remedy_for(OSError(errno.ENFILE, "x"), "y")
    assert "ulimit -n" in remedy_for(RuntimeError("a.so: Too many open files"), "y")
    assert remedy_for(OSError(errno.ENOSPC, "x"), "y") == "y"
    named = FileNotFoundError(errno.ENOENT, "No such file", "/Too many open files")
    assert remedy_for(named, "y") == "y"


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
