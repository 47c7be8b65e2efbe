"""What this installation can do, and why not: facts for ``tvm-flash doctor``, nothing printed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import tvm_flash

PACKAGES = (
    "tvm-flash",
    "torch",
    "numpy",
    "apache-tvm-ffi",
    "apache-tvm",
    "scikit-learn",
    "xgboost",
    "cloudpickle",
    "psutil",
)


_STAGES = {"run": ("run",), "compile": ("run", "compile"), "gpu": ("run", "compile", "gpu")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``needed_for``: "run" kernels, "compile" them, "gpu" for both.

    ``remedy`` says what to do when it is not ok.
    """

    name: str
    needed_for: str
    ok: bool
    detail: str
    remedy: str = ""


def versions() -> dict[str, str | None]:
    """Installed versions, None where a package is missing."""
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    # A checkout runs without being installed.
    found["tvm-flash"] = tvm_flash.__version__
    return found


def compilers() -> dict[str, str]:
    """C compilers found, by name, with the first line they say about themselves."""
    commands = {name: [path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))}
    if os.environ.get("CC"):
        commands["$CC"] = os.environ["CC"].split()
    if find_spec("ziglang") is not None:
        commands["ziglang"] = [sys.executable, "-m", "ziglang", "cc"]
    return {name: _first_line([*command, "--version"]) for name, command in commands.items()}


def findings() -> list[Finding]:
    """Everything that running, then compiling, depends on."""
    looks: list[Callable[[], Finding]] = [
        _python,
        lambda: _importable("torch", "run", "pip install torch"),
        lambda: _importable("tvm_ffi", "run", "pip install apache-tvm-ffi"),
        _openmp,
        _installed_kernels,
        lambda: _importable("tvm", "compile", "pip install 'tvm-flash[compile]'"),
        _matching_pair,
        _linker,
        _cache,
        _cpu_target,
        _gpu,
        _cuda_toolkit,
        _nvdisasm,
    ]
    return [look() for look in looks]


def verdicts(found: Iterable[Finding]) -> dict[str, str]:
    """Answers to "run", "compile" and "gpu": "yes", or why not."""
    found = list(found)
    answers = {}
    for purpose, stages in _STAGES.items():
        broken = [f.name for f in found if not f.ok and f.needed_for in stages]
        answers[purpose] = f"no: {', '.join(broken)}" if broken else "yes"
    return answers


def _python() -> Finding:
    ok = (3, 10) <= sys.version_info[:2] <= (3, 14)
    return Finding("python", "run", ok, sys.version.split()[0], "use Python 3.10 to 3.14")


def _importable(module: str, needed_for: str, remedy: str) -> Finding:
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # a broken shared library raises anything
        return Finding(module, needed_for, False, f"{type(error).__name__}: {error}", remedy)
    return Finding(module, needed_for, True, str(getattr(imported, "__version__", "imported")))


def _openmp() -> Finding:
    remedy = "kernels then use one thread: install a torch that is built with OpenMP"
    try:
        from ..runtime.openmp import torch_openmp

        found = torch_openmp()
    except Exception as error:
        return Finding("OpenMP runtime", "run", False, str(error), remedy)
    if found is None:
        return Finding("OpenMP runtime", "run", False, "torch has none", remedy)
    return Finding("OpenMP runtime", "run", True, found.library)


def _installed_kernels() -> Finding:
    """What packages bring, as `tvm-flash build --wheel` makes them, and what of it is of no use."""
    name = "installed kernels"
    try:
        from ..runtime.installed import in_use, load_installed, refusals

        for device in ("cpu", "cuda"):
            load_installed(device)
    except Exception as error:
        return Finding(name, "run", False, str(error), "uninstall the package that holds them")
    detail = "; ".join([*in_use, *refusals]) or "none"
    return Finding(name, "run", not refusals, detail, "install that of this version, or none")


def _matching_pair() -> Finding:
    """TVM and tvm-ffi only work in pairs: compare with what this package asks for."""
    name, remedy = "tvm and tvm-ffi match", "pip install 'tvm-flash[compile]'"
    wanted = dict(_exact_pins())
    wrong = [
        f"{package} {installed}, not {wanted[package]}"
        for package, installed in versions().items()
        if package in wanted and installed != wanted[package]
    ]
    detail = "; ".join(wrong) or ", ".join(f"{p} {v}" for p, v in wanted.items())
    return Finding(name, "compile", not wrong, detail or "this package is not installed", remedy)


def _exact_pins() -> Iterable[tuple[str, str]]:
    try:
        lines = requires("tvm-flash") or []
    except PackageNotFoundError:
        return
    for line in lines:
        package, pinned, pin = line.split(";")[0].strip().partition("==")
        if pinned and package in PACKAGES:
            yield package, pin


def _linker() -> Finding:
    """Links the runtime shim alone: the same command that a kernel takes."""
    try:
        from ..codegen.linker import find_compiler, link

        with tempfile.TemporaryDirectory() as folder:
            link([], [], Path(folder, "empty.so"))
        return Finding("linker", "compile", True, " ".join(find_compiler()))
    except Exception as error:
        remedy = "install gcc or clang, set $CC, or `pip install ziglang`"
        return Finding("linker", "compile", False, str(error), remedy)


def _cache() -> Finding:
    remedy = "set TVM_FLASH_CACHE_DIR to a directory of yours that can be written"
    try:
        from ..codegen.cache import make_private, trusted_cache_dir

        folder = trusted_cache_dir()
        make_private(folder)
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except Exception as error:
        return Finding("kernel cache", "compile", False, str(error), remedy)
    entries = sum(1 for path in folder.iterdir() if path.is_dir())
    kernels = f"{entries} kernel{'s' * (entries != 1)}"
    detail = f"{folder} ({kernels}, {free / 2**30:.1f} GiB free)"
    return Finding("kernel cache", "compile", free > 2**26, detail, "make room on that disk")


def _cpu_target() -> Finding:
    try:
        from ..machine import amx_refusal, cpu_features
        from ..schedules.target import host_target

        target = host_target()
    except Exception as error:
        return Finding("CPU target", "compile", False, str(error), "report this machine's features")
    refused = "amx_bf16" in cpu_features() and amx_refusal()
    note = f"; AMX is not used: {refused}" if refused else ""
    return Finding("CPU target", "compile", True, f"{target.name} (mcpu {target.mcpu}){note}")


def _gpu() -> Finding:
    try:
        import torch
    except Exception as error:  # as for _importable
        return Finding("CUDA GPU", "gpu", False, f"not looked for: {error}", "pip install torch")
    if not torch.cuda.is_available():
        remedy = "kernels can be built and proven here (tvm-flash verify); run them on a GPU"
        return Finding("CUDA GPU", "gpu", False, "torch sees none", remedy)
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    detail = f"{torch.cuda.get_device_name()}, compute capability {capability}"
    return Finding("CUDA GPU", "gpu", True, detail)


def _cuda_toolkit() -> Finding:
    try:
        from ..codegen.toolkit import find_toolkit

        toolkit = find_toolkit()
    except Exception as error:
        remedy = "install CUDA, set $CUDA_HOME, or pip install 'tvm-flash[cuda]'; or load a library"
        return Finding("nvcc", "gpu", False, str(error), remedy)
    return Finding("nvcc", "gpu", True, f"{toolkit.root} ({toolkit.version})")


def _nvdisasm() -> Finding:
    """Builds read the machine code of kernels that spill, as some default ones do."""
    try:
        from ..codegen.toolkit import find_nvdisasm

        return Finding("nvdisasm", "gpu", True, find_nvdisasm())
    except Exception as error:
        remedy = "install CUDA's nvdisasm, or pip install 'tvm-flash[cuda]'; or load a library"
        return Finding("nvdisasm", "gpu", False, str(error), remedy)


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    return (done.stdout or done.stderr).strip().splitlines()[0] if done.returncode == 0 else "fails"
