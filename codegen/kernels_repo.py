"""Libraries and the part of this package that calls them, as Hugging Face's `kernels` loads both.

A repository holds build/{variant}/, which is a Python package that imports nothing of its own by
an absolute name, since it is loaded under the name that metadata.json says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm_ffi

import tvm_flash

from .. import __version__
from ..artifact.library import read_manifest
from ..errors import BuildError
from ..machine import architecture
from .shipped import shipped_files
from .toolkit import find_toolkit

# What runs built kernels, and the functions that call them: the layers up to "PyTorch", without
# those that build (tests/artifacts/test_kernels_repo.py).
_MODULES = ("errors", "machine", "json_fields", "import_lock", "reference")
_DOORS = ("bert_padding", "feature_maps", "flash_attn_interface")
_PACKAGES = ("score", "problem", "artifact", "runtime", "frontend", "masks")

_KERNELS = "kernels"
_INIT = f'''"""FlashAttention's functions on the kernels that lie in {_KERNELS}/."""

from pathlib import Path

__version__ = "{__version__}"

from .flash_attn_interface import *
from .flash_attn_interface import __all__ as _functions
from .runtime.installed import use as _use
from .runtime.loader import load

__all__ = [*_functions, "load"]

_use("this repository", Path(__file__).with_name("{_KERNELS}"))
'''
_CARD = """---
license: apache-2.0
tags: [kernel, attention]
---
# tvm-flash

FlashAttention's functions on kernels that tvm-flash {version} generated from one definition:

```python
from pathlib import Path

from kernels import get_local_kernel

attention = get_local_kernel(Path("{folder}"))
out = attention.flash_attn_func(q, k, v, causal=True)
```

Needs torch, numpy and apache-tvm-ffi {ffi}. A call without a kernel here says which is missing.
"""


def write_kernels_repo(artifacts: Sequence[Path], folder: Path, version: int = 1) -> list[Path]:
    """Write the variants of a kernels repository, with the libraries at ``artifacts``.

    One for CPUs, where there is a library for them, and one for CUDA, with all. Gives their folders
    in ``folder``/build. version: of the repository, whose owner counts. Raises BuildError for a
    library that is not manylinux_2_28, and where a variant is already.
    """
    cpu = [path for path in artifacts if read_manifest(path).device == "cpu"]
    cuda = [path for path in artifacts if path not in cpu]
    made, given = [], {"version": version}
    if cpu:
        made.append(_write_variant(folder, "cpu", {**given, "backend": {"type": "cpu"}}, cpu))
    if cuda:
        archs = read_manifest(cuda[0]).target["archs"]
        backend = {"type": "cuda", "archs": [*dict.fromkeys(map(_capability, archs))]}
        made.append(
            _write_variant(folder, _cuda_name(), {**given, "backend": backend}, [*cpu, *cuda])
        )
    if not made:
        raise BuildError("no libraries to ship: name targets")
    card = {"version": __version__, "folder": folder.name, "ffi": tvm_ffi.__version__}
    (folder / "README.md").write_text(_CARD.format(**card), encoding="utf-8")
    return made


def _write_variant(
    folder: Path, device: str, given: Mapping[str, Any], artifacts: Sequence[Path]
) -> Path:
    """given: what metadata.json says besides what follows from the files."""
    major, minor = tvm_ffi.__version__.split(".")[:2]
    path = folder / "build" / f"tvm-ffi{major}{minor}-{device}-{architecture()}-linux"
    libraries = shipped_files(artifacts)
    files = {f"{_KERNELS}/{name}": data for name, data in libraries.items()}
    files |= {name: file.read_bytes() for name, file in runtime_sources().items()}
    files["__init__.py"] = _INIT.encode()
    files["metadata.json"] = _metadata(device, given, files)
    try:
        path.mkdir(parents=True)
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    except FileExistsError as error:
        raise BuildError(f"{path} exists: remove it, or choose another folder") from error
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise BuildError(f"{path} cannot be written ({error}); choose another folder") from error
    return path


def runtime_sources() -> dict[str, Path]:
    """The Python files of this package that run built kernels, by their path inside it."""
    root = Path(tvm_flash.__file__).parent
    single = [root / f"{name}.py" for name in (*_MODULES, *_DOORS)]
    inside = [path for name in _PACKAGES for path in sorted((root / name).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path for path in (*single, *inside)}


def _metadata(device: str, given: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """metadata.json. Its id is the name that the package, and its torch operators, are known by."""
    digests = {name: hashlib.sha256(data).digest() for name, data in sorted(files.items())}
    whole = hashlib.sha256(b"".join(digests.values())).hexdigest()
    encoded = {name: base64.b64encode(digest).decode() for name, digest in digests.items()}
    fields = {
        "id": f"_tvm_flash_{device}_{whole[:12]}",
        "name": "tvm-flash",
        "license": "Apache-2.0",
        "python-depends": ["tvm-ffi"],  # torch goes without saying, numpy cannot be said
        **given,
        "digest": {"algorithm": "sha256", "files": encoded},
    }
    return (json.dumps(fields, indent=2) + "\n").encode()


def _cuda_name() -> str:
    """cu130, for the release of CUDA whose runtime the library carries."""
    return "cu" + "".join(find_toolkit().version.split(".")[:2])


def _capability(arch: str) -> str:
    """8.0, of sm_80; 9.0 of sm_90 and of sm_90a."""
    number = int(arch.removeprefix("sm_").removesuffix("a"))
    return f"{number // 10}.{number % 10}"
