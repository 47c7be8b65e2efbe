"""A process that has no torch: kernels of a library, JAX, and a team of threads."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("jax")
pytest.importorskip("jax_tvm_ffi")

from tvm_flash.codegen.build import build
from tvm_flash.problem.spec import AttentionSpec

pytestmark = [
    pytest.mark.sweep,
    pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc"),
]

PROGRAM = """
    import json, os, sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "tvm"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hidden())
    import jax
    import numpy as np
    import tvm_flash
    from tvm_flash.integrations.jax import attention

    tvm_flash.load(sys.argv[1])
    x = [np.random.RandomState(n).randn(2, 300, 4, 32).astype("float32") for n in range(3)]
    jax.block_until_ready(jax.jit(lambda x: x @ x.T)(np.ones((500, 500), "float32")))

    def grads(function):
        found = jax.jit(jax.grad(lambda *x: (function(*x) ** 2).sum(), (0, 1, 2)))(*x)
        return jax.block_until_ready(found)

    theirs = grads(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
    before = len(os.listdir("/proc/self/task"))
    ours = grads(lambda q, k, v: attention(q, k, v, causal=True))
    mapped = open("/proc/self/maps").read()
    print(json.dumps({
        "errors": [float(abs(a - b).max()) for a, b in zip(ours, theirs)],
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
        "new threads": len(os.listdir("/proc/self/task")) - before,
        "openmp": "libgomp" in mapped or "libomp" in mapped,
    }))
"""


def test_gradients_without_torch_or_tvm_on_several_threads(tmp_path):
    spec = AttentionSpec(dtype="float32", head_dim=32, causal=True)
    path = build([spec], "llvm", tmp_path / "kernels", buckets=["medium"])
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path)]
    threads = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=threads)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["errors"]) < 1e-4
    assert not {"torch", "tvm"} & set(found["modules"])
    if not found["openmp"]:
        pytest.skip("this system has no OpenMP library")
    assert found["new threads"] >= 2
