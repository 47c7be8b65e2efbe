"""What commands print on terminals of 80 and 120 columns, as recorded: `--update-golden` renews."""

import json
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from golden_text import compare
from typer.testing import CliRunner

from tvm_flash.cases import CORRECTNESS
from tvm_flash.cli import answer, demo, doctor, show_table, verify
from tvm_flash.cli.app import app
from tvm_flash.cli.console import Output
from tvm_flash.verify.problems import problems
from tvm_flash.verify.rule import Deviation
from tvm_flash.verify.verdict import Counts, KernelVerdict, Outcome, Verification

FOLDER = Path(__file__).parent / "golden"
DAY = 24 * 3600
DEVIATIONS = (Deviation("out", 1.5e-3, 2.5e-2), Deviation("lse", 1e-5, 2e-4))
GRADIENTS = tuple(Deviation(name, 8e-3, 3.2e-2) for name in ("dq", "dk", "dv"))

FACTS = {
    "versions": {"python": "3.12.1", "tvm-flash": "0.1.0", "torch": "2.13.0", "xgboost": None},
    "host": {
        "cpu": "A CPU of 2 cores", "cores": 2, "threads": 2, "memory_gib": 15.4, "system": "Linux",
        "features": ["avx2", "fma", "avx512f", "avx512_bf16"], "python": "3.12.1",
    },
    "compilers": {"cc": "cc (Distribution 13.2.0-23) 13.2.0"},
    "findings": [
        {
            "name": "OpenMP runtime", "needed_for": "run", "ok": True, "remedy": "",
            "detail": "/home/user/environments/attention/lib/python3.12/site-packages/torch/lib/"
            "libgomp-a34b3233.so.1",
        },
        {
            "name": "linker", "needed_for": "compile", "ok": False, "detail": "no C compiler",
            "remedy": "install gcc or clang, set $CC, or `pip install ziglang`",
        },
    ],
    "verdicts": {"run": "yes", "compile": "no: linker", "gpu": "no: linker"},
}  # fmt: skip


def a_cache(folder):
    now = os.stat(folder).st_mtime
    names = ("attn_bf16_d128_causal_softcap_alibi_bwd", "attn_f32_d16_fwd")
    for number, name in enumerate(names):
        kernel = folder / f"{name}-{number:032}"
        kernel.mkdir()
        for file in (kernel / "manifest.json", kernel / "kernels.so"):
            file.write_bytes(bytes(2**16 * (number + 1)))
            os.utime(file, (now - (number + 1) * DAY,) * 2)
    folder.chmod(0o700)


def a_verification():
    counts = Counts(123456789, 123456, 987654321, 1234)
    found = [Outcome(problem, DEVIATIONS, counts, 1.5) for problem in problems(64, 64)]
    wrong = Deviation("out", 1.0, 2.5e-2)
    found[1] = Outcome(found[1].problem, (wrong,), counts, 1.5, failure=str(wrong))
    names = {"attn_bf16_d64_causal_fwd": "forward", "attn_bf16_d64_causal_bwd_det": "backward"}
    archs = ("sm_80", "sm_90")
    kernels = [KernelVerdict(x, d, archs, (64, 64), tuple(found)) for x, d in names.items()]
    return Verification("kernels", "cuda", 0, tuple(kernels))


@pytest.fixture
def terminal(request, monkeypatch, tmp_path):
    """What the commands print on a terminal of so many columns, and the machine they run on."""
    screen = Output(file=StringIO(), width=request.param, force_terminal=True, color_system=None)
    for module in (show_table, answer, doctor, demo):
        monkeypatch.setattr(module, "console", screen)
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "_examine", lambda: FACTS)
    monkeypatch.setattr(verify, "_verify", lambda *_: [a_verification()])
    a_cache(tmp_path)
    return screen


@pytest.mark.parametrize("terminal", [80, 120], indirect=True, ids=str)
def test_tables(terminal, update_golden):
    said = []
    calls = {"cache list": 0, "doctor": 0, "verify kernels": 1, "verify kernels --verbose": 1}
    for words, status in calls.items():
        terminal.file = StringIO()
        with redirect_stdout(terminal.file):
            done = CliRunner().invoke(app, words.split())
        assert done.exit_code == status, done.output
        said.append(f"$ tvm-flash {words}\n{terminal.file.getvalue()}{done.stderr}")
    checked = [case for case in CORRECTNESS if case.name in demo.CHECKED]
    terminal.file = StringIO()
    show_table.show(demo.check_table({case: DEVIATIONS + GRADIENTS for case in checked}))
    said.append(f"demo\n{terminal.file.getvalue()}")
    text = "\n".join(line.rstrip() for line in "\n".join(said).splitlines()) + "\n"
    compare(FOLDER / f"tables-{terminal.width}.txt", text, update_golden)
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert max(map(len, tables)) <= terminal.width and "…" not in text


@pytest.mark.parametrize("terminal", [80], indirect=True, ids=str)
def test_json_is_all_that_is_printed(terminal):
    """One document of every command that needs no search and no kernel, and no table beside it."""
    documents = {}
    calls = {
        "cache path": 0, "cache size": 0, "cache list": 0, "cache prune --dry-run": 0, "doctor": 0,
        "verify kernels": 1, "show fp32,d=16 --stage recurrence": 0,
        "tune --check-logs tuning_logs/x86-64-v4": 0,
    }  # fmt: skip
    for words, status in calls.items():
        done = CliRunner().invoke(app, [*words.split(), "--json"])
        assert done.exit_code == status, done.output
        documents[words.partition(" -")[0]] = json.loads(done.stdout)
    assert terminal.file.getvalue() == ""
    assert documents["doctor"] == FACTS
    assert documents["verify kernels"]["ok"] is False
    assert set(documents["show fp32,d=16"]) == {"spec", "stage", "direction", "target", "text"}
    assert set(documents["cache prune"]) == {"kernels", "entries", "bytes", "dry_run"}
    assert documents["tune"]["problems"] == [] and documents["tune"]["logs"][0]["lines"] > 0


def test_a_demo_calls_the_kernels_it_names():
    cases = [case for case in CORRECTNESS if case.name == "f32_dim_59"]
    assert [found[1:] for found in demo.kernels_of(cases, demo._problems(True))] == [
        ("forward", "short"), ("backward", "short"), ("forward", "medium"), ("backward", "medium"),
    ]  # fmt: skip
