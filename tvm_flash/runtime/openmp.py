"""The OpenMP runtime that torch uses in this process, found by its symbols."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# at::get_num_threads(): like omp_get_max_threads, but true in a thread that torch has not seen yet.
_TORCH_THREADS = "_ZN2at15get_num_threadsEv"


@dataclass(frozen=True)
class OpenMP:
    """Addresses of the three functions kernels need, and the file they come from."""

    run_team: int
    threads: int
    in_parallel: int
    library: str


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = [
        ("library", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


@lru_cache(maxsize=1)
def torch_openmp() -> OpenMP | None:
    """torch's OpenMP (libgomp, or libomp and libiomp5, which export libgomp's entry points too).

    None where torch has no OpenMP: kernels then run on the calling thread alone.
    """
    run_team, in_parallel = _find("GOMP_parallel"), _find("omp_in_parallel")
    threads = _find(_TORCH_THREADS) or _find("omp_get_max_threads")
    if not (run_team and in_parallel and threads):
        return None
    return OpenMP(run_team, threads, in_parallel, _file_of(run_team))


def _find(symbol: str) -> int | None:
    """Address of ``symbol``, looked up as the dynamic linker does for torch: globally first."""
    for scope in _scopes():
        if hasattr(scope, symbol):
            return ctypes.cast(getattr(scope, symbol), ctypes.c_void_p).value
    return None


def _scopes() -> list[ctypes.CDLL]:
    import torch

    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cpu.dylib")
    return [
        ctypes.CDLL(None),
        *(ctypes.CDLL(str(folder / n)) for n in names if (folder / n).is_file()),
    ]


def _file_of(address: int) -> str:
    info = _SymbolInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info))
    return info.library.decode() if found and info.library else "unknown"
