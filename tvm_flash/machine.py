"""What this machine is: system, architecture, CPU features, and permission to use AMX."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

# Names are those of Linux's /proc/cpuinfo, except these.
_SAME_AS = {"asimd": "neon", "advsimd": "neon", "feat_bf16": "bf16", "feat_i8mm": "i8mm"}

# arch/x86/include/uapi/asm/prctl.h: AMX tile data is state feature 18, off until a process asks.
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def system() -> str:
    """Operating system, lower case: linux, darwin, windows."""
    return platform.system().lower()


def architecture() -> str:
    """Instruction set, one name each: x86_64 or aarch64 (others as the system calls them)."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Names of the CPU features this machine has, e.g. avx2, fma, avx512_bf16, amx_bf16, neon.

    Empty when the system does not tell.
    """
    names = _cpuinfo_flags() if system() == "linux" else _sysctl_flags()
    return frozenset(_SAME_AS.get(name, name) for name in names)


def _cpuinfo_flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Flags that every core has (cores of one machine may differ on ARM)."""
    lines = [
        line.partition(":")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    ]
    per_core = [
        set(flags.split()) for key, _, flags in lines if key.strip() in ("flags", "Features")
    ]
    return set.intersection(*per_core) if per_core else set()


def _sysctl_flags() -> set[str]:
    """macOS: words of the Intel feature leaves, and the Arm features that are 1."""
    try:
        text = subprocess.run(
            ["sysctl", "-a"], capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return set()
    pairs = [line.partition(": ") for line in text.lower().splitlines()]
    intel = {
        word for key, _, words in pairs if key.startswith("machdep.cpu.") for word in words.split()
    }
    arm = {
        key.rpartition(".")[2] for key, _, value in pairs if "hw.optional" in key and value == "1"
    }
    return {word.replace(".", "_") for word in intel} | arm


@lru_cache(maxsize=1)
def amx_refusal() -> str:
    """Ask the kernel, once a process, for AMX tile state; why it refused, or an empty string.

    Threads created later inherit the permission (Linux: Documentation/arch/x86/xstate.rst).
    """
    if (system(), architecture()) != ("linux", "x86_64"):
        return f"AMX needs Linux on x86_64, this is {system()} on {architecture()}"
    libc = ctypes.CDLL(None, use_errno=True)
    refused = libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return f"arch_prctl(ARCH_REQ_XCOMP_PERM): {os.strerror(ctypes.get_errno())}" if refused else ""
