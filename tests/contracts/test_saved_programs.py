"""Programs that torch saved, in another process: the right values, or who is missing."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tvm_flash import attention, capture
from tvm_flash.reference import attention_reference

ROOT = Path(__file__).resolve().parent.parent.parent
B, S, H, D = 2, 16, 2, 16
BIAS = torch.linspace(-1, 1, H)
BIASED = capture(lambda score, b, h, q_idx, k_idx: score + BIAS[h] * (q_idx - k_idx))


class Layer(torch.nn.Module):
    """Both operators' arguments in both forms: without tables and with one."""

    def forward(self, q, k, v):
        return attention(attention(q, k, v, causal=True), k, v, score_mod=BIASED)


def exported(folder, example):
    length = torch.export.Dim("length", min=2, max=1024)
    return torch.export.export(Layer(), example, dynamic_shapes=[{1: length}] * 3)


def save_export(folder, example):
    torch.export.save(exported(folder, example), folder / "program.pt2")


def save_trace(folder, example):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Layer(), example), folder / "program.pt2")


def save_compiled(folder, example):
    path = str(folder / "program.pt2")
    # The C++ compiler is most of this test's time, and what it optimises is torch's wrapper.
    quick = {"compile_wrapper_opt_level": "O0", "precompile_headers": False}
    with torch._inductor.config.patch({f"aot_inductor.{name}": v for name, v in quick.items()}):
        torch._inductor.aoti_compile_and_package(exported(folder, example), package_path=path)


PROGRAMS = {
    "torch.export": (save_export, "torch.export.load(path).module()"),
    "torch.jit": (save_trace, "torch.jit.load(path)"),
    "AOTInductor": (save_compiled, "torch._inductor.aoti_load_package(path)"),
}
# Without the operators, then with them: importing torch once.
RUN = """
import torch, traceback
path, inputs, results = {path!r}, {inputs!r}, {results!r}

def run():
    return {load}(*torch.load(inputs))

try:
    run()
except Exception:
    traceback.print_exc()
else:
    raise SystemExit("it ran without the operators")
import tvm_flash.frontend.ops
torch.save(run(), results)
"""


def run_elsewhere(folder, load):
    names = {name: str(folder / f"{name}.pt") for name in ("inputs", "results")}
    code = RUN.format(load=load, path=str(folder / "program.pt2"), **names)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "name",
    [
        "torch.jit",
        pytest.param("AOTInductor", marks=pytest.mark.slow),
        pytest.param("torch.export", marks=pytest.mark.sweep),  # which AOTInductor begins with
    ],
)
def test_a_program_runs_in_another_process_that_imports_the_operators(name, tmp_path):
    save, load = PROGRAMS[name]
    torch.manual_seed(0)
    save(tmp_path, tuple(torch.randn(3, B, S, H, D)))
    q, k, v = torch.randn(3, B, S + 7, H, D)
    torch.save((q, k, v), tmp_path / "inputs.pt")

    done = run_elsewhere(tmp_path, load)
    assert done.returncode == 0, done.stderr
    # torch's words: none of ours run there.
    assert "tvm_flash" in done.stderr and "attention_forward" in done.stderr
    inner, _ = attention_reference(q, k, v, causal=True, upcast=torch.float64)
    want, _ = attention_reference(inner, k.double(), v.double(), score_mod=biased)
    got = torch.load(tmp_path / "results.pt").double()
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def biased(score, b, h, q_idx, k_idx):
    return score + BIAS[h] * (q_idx - k_idx)
