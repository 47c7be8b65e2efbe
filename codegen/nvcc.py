"""CUDA C++ to PTX to machine code, each text once: compiled results are kept by content."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

from ..errors import BuildError
from .cache import content, digest
from .process import run
from .room import scratch_folder
from .toolkit import find_toolkit

if TYPE_CHECKING:
    from .cuda import KernelSource

# No --use_fast_math: it would make every expf and division approximate, a user's score_mod's too.
# Denormal results are flushed and divisions and roots may err in the last bit, as ex2 does.
PTX_FLAGS = ("-std=c++17", "-w", "-ftz=true", "-prec-div=false", "-prec-sqrt=false")

# C7510 to C7514: of wgmma whose registers ptxas cannot tell apart, or that are in flight at a jump.
_SERIALISED = "Potential Performance Loss"

_SIGNATURE = "// tvm_flash parameters: "


@dataclass(frozen=True)
class Resources:
    """What ptxas gave one kernel on one architecture: registers a thread, bytes a thread or block.

    serialised: notes that products of warp groups wait for each other, whatever the code says.
    seconds: of ptxas.
    """

    registers: int
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0
    shared: int = 0
    barriers: int = 0
    serialised: int = 0
    seconds: float = 0.0

    @property
    def in_local_memory(self) -> int:
        """Bytes a thread that should be registers and are memory."""
        return max(self.spill_stores, self.spill_loads, self.stack)

    def to_json(self) -> dict[str, int | float]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Resources:
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})


@dataclass(frozen=True)
class Cubin:
    """Machine code of one kernel for one architecture ("sm_90")."""

    arch: str
    code: bytes
    resources: Resources


def compile_ptx(source: KernelSource) -> str:
    """The PTX of ``source``, its first line naming the parameters in order."""
    command = ["-ptx", f"-arch=compute_{source.version}", *PTX_FLAGS]
    key = {"device": source.device, "flags": command, "nvcc": find_toolkit().version}
    key["parameters"] = source.parameters
    make = partial(_run_nvcc, source, command)
    return content(f"{digest(key)}.ptx", make, read=bytes.decode)


def parameters_of(ptx: str) -> tuple[str, ...]:
    """Declarations of the kernel's parameters, from the first line that ``compile_ptx`` wrote."""
    line = ptx.partition("\n")[0]
    if not line.startswith(_SIGNATURE):
        raise ValueError(f"not PTX that tvm_flash compiled: it begins with {line[:60]!r}")
    return tuple(line.removeprefix(_SIGNATURE).split(", "))


def assemble(ptx: str, name: str, arch: str) -> Cubin:
    """Machine code of the kernel ``name`` for ``arch``."""
    key = {"ptx": ptx, "arch": arch, "nvcc": find_toolkit().version}

    def read(kept: bytes) -> Cubin:
        made = json.loads(kept)
        return Cubin(arch, base64.b64decode(made["code"]), Resources.from_json(made["resources"]))

    return content(f"{digest(key)}.cubin", partial(_run_ptxas, ptx, name, arch), read=read)


def fat_binary(ptx: str, compute: int, cubins: Iterable[Cubin]) -> bytes:
    """One image with every cubin, and the PTX for devices that none of them serves.

    compute: of the PTX; 0 leaves it out.
    """
    with scratch_folder("packing machine code") as folder:
        (folder / "k.ptx").write_text(ptx)
        images = [f"--image3=kind=ptx,sm={compute},file=k.ptx"] if compute else []
        for cubin in cubins:
            (folder / f"{cubin.arch}.cubin").write_bytes(cubin.code)
            number = cubin.arch.removeprefix("sm_")
            images.append(f"--image3=kind=elf,sm={number},file={cubin.arch}.cubin")
        tool = find_toolkit().tool("fatbinary")
        command = [tool, "-64", "--compress-all", "--create=k.fatbin", *images]
        run(command, what="packing machine code", choose="CUDA_HOME", folder=folder)
        return (folder / "k.fatbin").read_bytes()


def _run_nvcc(source: KernelSource, command: list[str]) -> bytes:
    with scratch_folder(f"compiling {source.name}") as folder:
        # A fixed name: nvcc derives names inside the PTX from it.
        (folder / "kernel.cu").write_text(source.device)
        nvcc = [find_toolkit().tool("nvcc"), *command, "kernel.cu", "-o", "kernel.ptx"]
        run(nvcc, what=f"compiling {source.name}", choose="CUDA_HOME", folder=folder)
        signature = _SIGNATURE + ", ".join(source.parameters)
        return f"{signature}\n{(folder / 'kernel.ptx').read_text()}".encode()


def _run_ptxas(ptx: str, name: str, arch: str) -> bytes:
    start = time.perf_counter()
    with scratch_folder(f"assembling {name}") as folder:
        (folder / "kernel.ptx").write_text(ptx)
        options = ["-v", f"-arch={arch}", "kernel.ptx", "-o", "kernel.cubin"]
        ptxas = [find_toolkit().tool("ptxas"), *options]
        log = run(ptxas, what=f"assembling {name}", choose="CUDA_HOME", folder=folder)
        code = base64.b64encode((folder / "kernel.cubin").read_bytes()).decode()
    resources = read_resources(log, name, time.perf_counter() - start)
    return json.dumps({"code": code, "resources": resources.to_json()}).encode()


def read_resources(log: str, name: str, seconds: float) -> Resources:
    """The numbers in what `ptxas -v` printed about the kernel ``name``."""

    def number(pattern: str) -> int:
        found = re.search(pattern, log)
        return int(found[1]) if found else 0

    if "registers" not in log:
        raise BuildError(f"{name}: ptxas -v printed no registers: {log.strip()[-300:]!r}")
    return Resources(
        registers=number(r"Used (\d+) registers"),
        spill_stores=number(r"(\d+) bytes spill stores"),
        spill_loads=number(r"(\d+) bytes spill loads"),
        stack=number(r"(\d+) bytes stack frame"),
        shared=number(r"(\d+) bytes smem"),
        barriers=number(r"used (\d+) barriers"),
        serialised=log.count(_SERIALISED),
        seconds=round(seconds, 2),
    )
