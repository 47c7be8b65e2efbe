"""`tvm-flash tune` from the outside: what it refuses, how it ends, that it really searches."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tune_search import Made, Toy, toy_task
from typer.testing import CliRunner

from tvm_flash.cli import tune as command
from tvm_flash.cli import tune_search
from tvm_flash.cli.app import app
from tvm_flash.errors import HardwareFailure, UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format, select
from tvm_flash.schedules.records import best_config
from tvm_flash.schedules.space import Space
from tvm_flash.schedules.target import TARGETS, host_target
from tvm_flash.tune import plan, trial_log

ROOT = Path(__file__).resolve().parents[2]
SPEC = "fp32,d=16"
FOREIGN = next(t.name for t in TARGETS if t.name != host_target().name)


def call(*arguments, status=0):
    result = CliRunner().invoke(app, ["tune", *map(str, arguments)], terminal_width=160)
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture
def hardware(monkeypatch):
    """Whatever is asked, the toy space is searched on made-up hardware; gives how to set that."""

    def use(cost=lambda config: 1e-3 / (1 + config.x), **options):
        made = Made(cost, **options)
        monkeypatch.setattr(command, "_hardware", lambda *_: made)
        return made

    monkeypatch.setattr(plan, "tasks", lambda *_, **__: [toy_task()])
    return use


REFUSED = {
    "no specs": ([], "no specs"),
    "a word": (["fp32,d=16,hexagonal"], "hexagonal"),
    "no file": (["--specs", "missing.txt"], "missing.txt is not a file"),
    "a target": ([SPEC, "--target", "abacus"], "'abacus' is unknown"),
    "another CPU": ([SPEC, "--target", FOREIGN], "cannot be measured here"),
    "an arch": ([SPEC, "--target", "cuda:sm_1"], "sm_1"),
    "a strategy": ([SPEC, "--strategy", "tea-leaves"], "random"),
    "a module": ([SPEC, "--strategy", "nowhere:Leaves"], "No module named 'nowhere'"),
    "no class": ([SPEC, "--strategy", "json:dumps"], "not a class"),
    "a cost model": ([SPEC, "--cost-model", "oracle"], "oracle"),
    "no model needed": ([SPEC, "--strategy", "grid", "--cost-model", "xgb"], "no cost model"),
    "no trials": ([SPEC, "--trials", "0"], "trials"),
    "no time": ([SPEC, "--seconds", "0"], "seconds"),
    "no jobs": ([SPEC, "--jobs", "0"], "jobs"),
    "a direction": ([SPEC, "--directions", "sideways"], "forward, backward"),
    "parts": ([SPEC, "--directions", "forward_split"], "no call with few queries is timed"),
    "rows": ([SPEC, "--directions", "forward,append"], "'append' is not searched: it has no"),
    "a bucket": ([SPEC, "--buckets", "vast"], "tiny, decode"),
    "no kernel": ([SPEC, "--buckets", "decode", "--directions", "backward"], "in common"),
    "a length": ([SPEC, "--buckets", "long", "--seqlen", "64"], "in bucket short"),
    "a tracker": ([SPEC, "--rpc", "nowhere"], "HOST:PORT"),
    "a remote GPU": ([SPEC, "--target", "cuda", "--rpc", "a:1"], "--rpc is for CPU targets"),
    "no folder": (["--check-logs", "nowhere"], "no folder"),
    "specs beside candidates": (
        [SPEC, "--preset", "serving", "-o", "k", "--carried", "candidates"],
        "--carried reads no SPEC, --preset, --out",
    ),
    "a library beside candidates": (
        [SPEC, "--target", "cuda:sm_90", "--out", "k", "--carry", "candidates"],
        "--carry reads no --logs, --out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_anything_is_compiled(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "search", None)
    arguments, part = REFUSED[what]
    result = call(*arguments, "--logs", tmp_path / "logs", status=2)
    assert part in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize(
    "content", [b"\xff\x00\xfe", b"{", b'{"dtype": 5}', b"[5]", b"[]", b"# \n"]
)
@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_corrupt_files_of_specs(tmp_path, content, suffix):
    path = tmp_path / f"specs.{suffix}"
    path.write_bytes(content)
    result = call("--specs", path, "--logs", tmp_path, status=2)
    assert result.stderr.startswith("error:")


def test_logs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = call(SPEC, "--logs", tmp_path / "file" / "logs", "--strategy", "grid", status=2)
    assert "cannot be written" in result.stderr and "--logs DIR" in result.stderr
    searched = ("--logs", tmp_path, "--work-dir", tmp_path / "file", "--strategy", "grid")
    assert "--work-dir DIR" in call(SPEC, *searched, status=2).stderr


def test_a_spec_that_no_schedule_serves(monkeypatch):
    def space_of(spec, direction, target, bucket):
        known = toy_task().space
        return Space(known.name, known.knobs, known.start, lambda _: [f"no {bucket} of it"])

    monkeypatch.setattr(select, "space_of", space_of)
    with pytest.raises(UnsupportedSpec) as error:
        plan.tasks(
            [AttentionSpec(dtype="float32", head_dim=16)], host_target(), buckets=["tiny", "long"]
        )
    assert error.value.reasons == [
        f"attn_f32_d16 {direction}: no {bucket} of it"
        for direction in ("forward", "backward")
        for bucket in ("tiny", "long")
    ]


def test_a_search_ends_with_a_table_and_a_record(hardware, tmp_path):
    hardware()
    result = call(SPEC, "--logs", tmp_path, "--strategy", "grid", "--trials", "100")
    assert "attn_f32_d64" in result.stdout and "6.0" in result.stdout, "six times faster"
    assert "x 0→5" in result.stdout
    assert "confirm" in result.stderr and "BEST" in result.stderr
    (path,) = tmp_path.rglob("*.jsonl")
    lines = list(record_format.read(path))
    assert lines[-1]["best"] and lines[-1]["config"]["x"] == 5 and lines[-1]["strategy"] == "grid"


@pytest.mark.parametrize(
    ("given", "name", "model"),
    [
        ([], "mlp", None),  # no analytical model knows the toy space
        (["--cost-model", "xgb"], "xgb", "xgb"),
        (["--cost-model", "mlp"], "mlp", "mlp"),
        (["--strategy", "evolutionary"], "evolutionary", None),
    ],
)
def test_which_strategy_is_meant(hardware, tmp_path, given, name, model):
    hardware()
    call(SPEC, "--logs", tmp_path, "--trials", "1", *given)
    (path,) = tmp_path.rglob("*.jsonl")
    (line, *_) = record_format.read(path)
    assert (line["strategy"], line.get("cost_model")) == (name, model)


def test_ctrl_c_says_how_to_go_on(hardware, tmp_path):
    hardware(stop_after=7)
    options = [SPEC, "--logs", tmp_path, "--strategy", "random", "--trials", "12"]
    result = call(*options, status=130)
    assert "To go on: tvm-flash" in result.stderr and "of 12" in result.stdout
    rest = hardware()
    assert "6 trials were in the log" in call(*options).stderr
    trials = [config for config, _, seconds in rest.asked if seconds == 1.0]
    assert len(trials) == 12 - 6, "the first of seven was the default's"


@pytest.mark.parametrize("stop_after", [None, 3])
def test_what_was_tuned_is_built_unless_stopped(hardware, tmp_path, monkeypatch, stop_after):
    built = []
    monkeypatch.setattr(tune_search, "rebuild", lambda request, out: built.append(out) or out)
    monkeypatch.setattr(tune_search, "built_lines", lambda path: [f"built: {path}"])
    hardware(stop_after=stop_after)
    options = [SPEC, "--logs", tmp_path, "--strategy", "grid", "--trials", "4"]
    done = call(*options, "-o", tmp_path / "kernels", status=130 if stop_after else 0)
    assert built == ([] if stop_after else [tmp_path / "kernels"])
    assert (f"built: {tmp_path / 'kernels'}" in done.stdout) == (not stop_after)
    assert "--target x86-64-v4 --logs LOGS" in done.stderr


def test_sigterm_stops_as_ctrl_c_does(hardware, tmp_path):
    def cost(config):
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    hardware(cost)
    assert "To go on" in call(SPEC, "--logs", tmp_path, "--strategy", "grid", status=130).stderr
    assert signal.getsignal(signal.SIGTERM) == before


def test_hardware_that_fails(hardware, tmp_path):
    hardware(stop_after=3, error=HardwareFailure("no server is left"))
    result = call(SPEC, "--logs", tmp_path, "--strategy", "grid", status=1)
    assert "no server is left" in result.stderr and "attn_f32_d64" in result.stdout


def test_a_full_disk_is_status_1_and_nothing_is_lost(hardware, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    options = [SPEC, "--logs", tmp_path / "logs", "--strategy", "grid", "--trials", "4"]
    hardware()
    monkeypatch.setattr(record_format, "append", full)
    assert "No space left" in call(*options, status=1).stderr
    rescue = tmp_path / "work"
    monkeypatch.setattr("tvm_flash.tune.request.Request._keepers", lambda *_: ())
    result = call(*options, "--work-dir", rescue)
    assert trial_log.UNWRITTEN in result.stderr
    monkeypatch.setattr(record_format, "append", _append)
    assert "could not write" in call(*options, "--work-dir", rescue).stderr
    assert len([*record_format.read(next((tmp_path / "logs").rglob("*.jsonl")))]) >= 6


_append = record_format.append


def test_check_logs(tmp_path):
    assert "float32_d64.jsonl" in call("--check-logs", ROOT / "tuning_logs").stdout
    path = tmp_path / "x86-64-v4" / "float32_d64.jsonl"
    path.parent.mkdir()
    path.write_text('{"format": 99}\nnonsense\n')
    result = call("--check-logs", tmp_path, status=1)
    assert "float32_d64.jsonl:1: format=99" in result.stdout
    assert "float32_d64.jsonl:2: it is not JSON" in result.stdout
    assert "2 lines are skipped" in result.stderr


@pytest.mark.slow
def test_a_real_search_killed_and_resumed(tmp_path):
    path = tmp_path / host_target().name / "float32_d16.jsonl"
    options = [
        SPEC, "--buckets", "tiny", "--directions", "forward", "--seconds", "0.05", "--jobs", "1",
        "--strategy", "grid", "--trials", "1", "--logs", str(tmp_path),
    ]  # fmt: skip
    command = [sys.executable, "-m", "tvm_flash", "tune", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    while not path.exists() and first.poll() is None:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    output = first.communicate(timeout=600)
    assert first.returncode == -signal.SIGKILL, output
    before = path.read_text().splitlines()
    table = call(*options).stdout
    texts = path.read_text().splitlines()
    lines = [line for line in map(json.loads, texts) if "stage" in line]  # not the search's header
    assert texts[: len(before)] == before
    assert [x["trial"] for x in lines if x["stage"] == "trial"] == [1]
    assert [x["stage"] for x in lines].count("start") == 1
    assert lines[-1]["best"] and {x["outcome"] for x in lines} <= {"ok", "wrong"}
    assert not [problem for *_, found in record_format.checked(path) for problem in found]
    spec = AttentionSpec(dtype="float32", head_dim=16)
    choice = best_config(spec, "forward", host_target().name, "tiny", folders=[tmp_path])
    assert choice.config == lines[-1]["config"] and choice.source.endswith(":exact")
    assert "attn_f32_d16" in table


def test_toys_stay_out_of_builds():
    """The made-up schedule is none that a build could take."""
    with pytest.raises(ValueError, match="toy"):
        select.as_config(Toy().to_json(), "forward")
