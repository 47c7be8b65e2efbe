"""One session with a TVM RPC server: kernels uploaded and opened there, called and timed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...bench.host import cpu_name
from ...problem.arguments import arguments
from .build import Built, caller
from .tracker import Grant

# A tensor and a module on a server: types of TVM, which this module imports in functions only.
RemoteTensor = Any
RemoteModule = Any


@dataclass(frozen=True)
class RemoteCpu:
    """The CPU of a server: its name, its features as in /proc/cpuinfo, and its cores."""

    name: str
    features: frozenset[str]
    cores: int


class RemoteMachine:
    """A session on the server of ``grant``, which ends it after ``seconds``."""

    def __init__(self, grant: Grant, seconds: float):
        from tvm import rpc

        self._session = rpc.connect(grant.host, grant.port, grant.word, seconds)
        self._device = self._session.cpu()
        self._callers = 0
        self._tools = self._caller()

    def alive(self) -> bool:
        """Whether the server still answers in this session."""
        try:
            self._path("")
        except Exception:
            return False
        return True

    def cpu(self) -> RemoteCpu:
        """What the server's /proc/cpuinfo says."""
        self._tools["copy_cpuinfo"](self._path("cpuinfo.txt"))
        with TemporaryDirectory() as folder:
            path = Path(folder, "cpuinfo.txt")
            path.write_bytes(self._session.download("cpuinfo.txt"))
            return _parsed(path)

    def kernel(self, built: Built, direction: str, threads: int, amx: bool) -> RemoteKernel:
        """``built``, uploaded and opened for a team of ``threads``."""
        module = self._caller()
        file = f"kernels{self._callers}.so"
        self._session.upload(bytearray(built.library.read_bytes()), file)
        table = enumerate(arguments(built.spec, direction))
        zeroed = next((place for place, argument in table if argument.zeroed), -1)
        symbol = f"__tvm_ffi_{built.symbol}"
        module["open_kernel"](self._path(file), symbol, threads, zeroed, int(amx))
        return RemoteKernel(module, self._device)

    def upload(self, tensor: torch.Tensor) -> RemoteTensor:
        """A contiguous copy of ``tensor`` on the server."""
        import tvm

        local = tvm.runtime.from_dlpack(_aligned(tensor))
        return self._empty(tensor.shape, tensor.dtype).copyfrom(local)

    def filled(self, shape: Sequence[int], pattern: torch.Tensor) -> RemoteTensor:
        """A tensor on the server that holds ``pattern`` (one axis) over and over."""
        there = self._empty(shape, pattern.dtype)
        self._tools["fill"](there, self.upload(pattern))
        return there

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> RemoteTensor:
        import tvm

        return tvm.runtime.empty(tuple(shape), str(dtype).removeprefix("torch."), self._device)

    def _caller(self) -> RemoteModule:
        """Another copy of caller.c's library: each knows one kernel."""
        self._callers += 1
        file = f"caller{self._callers}.so"
        self._session.upload(bytearray(_caller_library()), file)
        return self._session.load_module(file)

    def _path(self, file: str) -> str:
        """Where ``file`` of the session lies on the server."""
        return self._session.get_function("tvm.rpc.server.workpath")(file)


class RemoteKernel:
    """A kernel that a server has opened."""

    def __init__(self, module: RemoteModule, device: Any):
        self._module, self._device = module, device
        self._call = module["call"]

    def __call__(self, arguments: Sequence[Any]) -> None:
        self._call(*arguments)

    def seconds(self, arguments: Sequence[Any], calls: int) -> float:
        """Per call, of ``calls`` by the server's clock, after one that is not counted."""
        timed = self._module.time_evaluator("call", self._device, number=calls, repeat=1)
        return timed(*arguments).results[0]


def download(there: RemoteTensor, here: torch.Tensor) -> None:
    """Copy ``there`` into ``here``, of the same shape and dtype."""
    import tvm

    local = tvm.runtime.empty(tuple(there.shape), there.dtype)
    there.copyto(local)
    here.copy_(torch.from_dlpack(local))


@lru_cache(maxsize=1)
def _caller_library() -> bytes:
    return caller()


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous and at a multiple of 64 bytes, as TVM takes it."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def _parsed(cpuinfo: Path) -> RemoteCpu:
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    cores = re.findall(r"^processor\s*:", text, re.M)
    # Features that every core has: cores of one machine may differ on ARM.
    flags = [set(words.split()) for words in re.findall(r"^(?:flags|Features)\s*:(.*)", text, re.M)]
    common = set.intersection(*flags) if flags else set()
    features = frozenset("neon" if name == "asimd" else name for name in common)
    return RemoteCpu(cpu_name(cpuinfo), features, len(cores))
