"""The commands, from the outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tvm_flash
from tvm_flash.cli.app import app
from tvm_flash.problem.lengths import FORWARD_BUCKETS

ROOT = Path(__file__).resolve().parents[2]
SPEC = "fp32,d=16,causal"


def call(*arguments, status=0):
    result = CliRunner().invoke(app, list(arguments), terminal_width=120)
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result


def test_help_names_every_command():
    text = call("--help").output
    assert all(name in text for name in ("demo", "build", "bench", "show", "doctor"))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("definition", "T.sblock"),
        ("scheduled", "T.parallel"),
        ("llvm", "define"),
        ("asm", ".text"),
    ],
)
def test_show(stage, direction, words):
    text = call("show", SPEC, "--stage", stage, "--direction", direction).output
    assert words in text
    assert {"forward": "_fwd", "backward": "_bwd"}[direction] in text


def test_the_definition_of_a_deterministic_backward_is_a_backward():
    assert "_bwd" in call("show", SPEC, "--direction", "backward_deterministic").output


@pytest.mark.parametrize("stage", ["definition", "recurrence"])
@pytest.mark.parametrize("sequences", ["packed", "paged"])
def test_what_is_computed_of_a_sequence_does_not_depend_on_where_it_lies(sequences, stage):
    dense = call("show", SPEC, "--stage", stage).output
    note, _, rest = call("show", f"{SPEC},{sequences}", "--stage", stage).output.partition(".\n")
    assert dense and rest == dense
    assert note.startswith("# Of one sequence") and f"{sequences} lie" in note


def test_a_backward_over_pages_is_refused_in_a_line():
    result = call("show", f"{SPEC},paged", "--stage", "ptx", "--direction", "backward", status=2)
    assert "attention over keys in pages has no gradient" in result.output


@pytest.mark.parametrize("words", ["", ",packed"])
def test_only_pages_are_appended_to(words):
    result = call("show", f"{SPEC}{words}", "--direction", "append", status=2)
    assert "keys in pages alone are appended to" in result.output


def test_a_search_of_packed_specs_alone_is_refused(tmp_path):
    result = call("tune", f"{SPEC},packed", "--logs", str(tmp_path), status=2)
    assert "take the numbers of the dense ones: search those" in result.output


def test_a_quick_run_of_the_suite_of_sequences_is_refused():
    assert "--match" in call("bench", "--suite", "sequences", "--quick", status=2).output


def test_show_for_another_cpu():
    assert "ymm" in call("show", SPEC, "--stage", "asm", "--target", "x86-64-v3").output


@pytest.mark.parametrize("stage", ["definition", "recurrence", "scheduled", "asm", "ptx"])
@pytest.mark.parametrize("target", ["nope", "cuda:sm_12"])
def test_a_target_that_there_is_not_is_refused_at_every_stage(stage, target):
    told = call("show", SPEC, "--stage", stage, "--target", target, status=2).stderr
    assert "is unknown; known: " in told


def test_a_bad_spec_is_explained_without_a_traceback():
    result = call("show", "fp32,d=16,hexagonal", status=2)
    assert "hexagonal" in result.stderr and "tvm-flash show --help" in result.stderr
    assert "Traceback" not in result.output


def test_build_makes_an_artifact_that_loads(tmp_path):
    out = tmp_path / "kernels"
    manifest = json.loads(call("build", SPEC, "-o", str(out), "--json").stdout)
    assert {k["direction"] for k in manifest["kernels"]} == {"forward", "backward"}
    assert len(tvm_flash.load(out).kernels) == len(manifest["kernels"])
    served = [b for k in manifest["kernels"] if k["direction"] == "forward" for b in k["buckets"]]
    assert sorted(served) == sorted(FORWARD_BUCKETS)


def test_build_reads_specs_from_a_file(tmp_path):
    (tmp_path / "specs.txt").write_text("fp32,d=16\nfp32,d=24\n")
    options = ["--specs", str(tmp_path / "specs.txt"), "-o", str(tmp_path / "kernels")]
    options += ["--forward-only", "--buckets", "tiny, long"]
    assert "4 kernels" in call("build", *options).stdout


def test_build_for_lengths_that_do_not_exist():
    assert "tiny, decode" in call("build", SPEC, "--buckets", "tiny,vast", status=2).stderr


def test_build_refuses_what_a_target_does_not_read():
    told = call("build", SPEC, "--split", "--deterministic", status=2).stderr
    assert "--target llvm reads no --split, --deterministic" in told
    told = call("build", SPEC, "--target", "cuda", "--buckets", "long", status=2).stderr
    assert "--target cuda reads no --buckets" in told


def test_verify_of_a_folder_that_is_not_there():
    assert "no/such/folder does not exist" in call("verify", "no/such/folder", status=2).stderr
    text = call("verify", "fp32,d=16,score_mod=no/file.py:f", status=2).stderr
    assert "does not exist: build" not in text and "no/file.py" in text


def test_build_takes_directions_by_name(tmp_path):
    out = tmp_path / "kernels"
    options = ("--directions", "append", "-o", str(out), "--json")
    manifest = json.loads(call("build", "fp32,d=16,causal,paged", *options).stdout)
    assert [kernel["direction"] for kernel in manifest["kernels"]] == ["append"]
    told = call("build", SPEC, "--directions", "linear,sideways", status=2).stderr
    assert "'sideways' must be of forward" in told
    told = call("build", SPEC, "--directions", "forward", "--forward-only", status=2).stderr
    assert "names all" in told


def test_build_says_which_options_are_of_wheels_and_repositories():
    told = call("build", SPEC, "--target", "cpu", "--target", "cuda", status=2).stderr
    assert "one library is for one of them" in told
    assert "reads no --name" in call("build", SPEC, "--name", "x", status=2).stderr
    told = call("build", SPEC, "--wheel", "--kernels-repo", status=2).stderr
    assert "--wheel reads no --kernels-repo" in told
    told = call("build", SPEC, "--wheel", "--repo-version", "2", status=2).stderr
    assert "--wheel reads no --repo-version" in told
    told = call("build", SPEC, "--wheel", "--target", "x86-64-v3", "--split", status=2).stderr
    assert "reads no --split" in told


def test_presets_are_listed_as_lines_and_as_a_document():
    lines = call("build", "--list", "--preset", "linear").stdout.splitlines()
    (preset,) = json.loads(call("build", "--list", "--preset", "linear", "--json").stdout)
    assert preset["preset"] == "linear" and preset["directions"] == ["forward", "backward"]
    listed = [spec for use in preset["uses"] for spec in use["specs"]]
    assert listed == [line for line in lines if not line.startswith("#")]


def test_build_without_specs_says_so():
    assert "no specs" in call("build", status=2).stderr


def test_doctor_as_json():
    facts = json.loads(call("doctor", "--json").stdout)
    assert (facts["verdicts"]["run"], facts["verdicts"]["compile"]) == ("yes", "yes")
    assert ("yes" in facts["verdicts"]["gpu"]) == torch.cuda.is_available()
    assert {"nvcc", "nvdisasm"} <= {finding["name"] for finding in facts["findings"]}
    assert facts["versions"]["torch"] and facts["host"]["cpu"] and facts["compilers"]


def test_doctor_names_what_fails_and_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "file" / "folder"))
    monkeypatch.setenv("CC", "no-such-compiler")
    text = call("doctor").stdout
    assert "TVM_FLASH_CACHE_DIR" in text and "no-such-compiler" in text
    assert "linker, kernel cache" in text


def run_without(module, *arguments, stdout=subprocess.PIPE):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"sys.argv = ['tvm-flash', *{arguments!r}]\n"
        "from tvm_flash.cli import main; main()"
    )
    streams = {"stdout": stdout, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, "-c", code], **streams, text=True, cwd=ROOT)


def test_doctor_works_without_tvm():
    done = run_without("tvm", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["verdicts"]["run"] == "yes"
    assert facts["verdicts"]["compile"].startswith("no: tvm")


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_the_command_lines_libraries_it_says_what_to_install(module):
    done = run_without(module, "cache")
    assert done.returncode == 2
    assert "tvm-flash[compile]" in done.stderr and "Traceback" not in done.stderr


def test_doctor_without_them_is_silent_when_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    done = run_without("typer", "doctor", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_demo():
    assert "every kernel is within" in call("demo", "--quick").output


@pytest.mark.slow
def test_bench_writes_what_it_measured(tmp_path):
    file = tmp_path / "bench.json"
    call("bench", "--quick", "--match", "S=512 full forward", "--out", str(file))
    document = json.loads(file.read_text())
    assert {cell["kind"] for cell in document["cells"]} == {"time", "memory"}
    assert document["host"]["date"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_show_the_recurrence(dtype):
    text = call("show", f"{dtype},d=16,causal", "--stage", "recurrence").output
    assert "l = l * exp(m - m_new) + p" in text
    assert "l = sum over parts of l_part * exp(m_part - m)" in text
    assert "dx = p * (dp - delta)" in text
