"""Numbers of configs that no schedule takes: records are skipped, callers are told."""

import json
import logging
import os
from dataclasses import fields, replace

import pytest
from record_lines import SPEC, config_of, line

from tvm_flash.codegen import jit
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.problem.text import COMPUTED
from tvm_flash.schedules import record_format, records, select
from tvm_flash.schedules.config_fields import LIMITS, config_problems
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.forward import FORWARD_KNOBS as CUDA_KNOBS
from tvm_flash.schedules.cuda.forward import ForwardConfig
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.schedules.table import Candidate
from tvm_flash.schedules.target import host_target

# A spec with a learned table, which alone has the direction "tables".
LEARNED = replace(SPEC, alibi=True, learned=(0,))
HALF = AttentionSpec(dtype="float16", head_dim=64)
SM_90 = ARCHS["sm_90"]
HOSTILE = [-64, 0, 10**9, 10**400, 32.5, float("nan"), float("inf"), True, "64", None, [64], {}]
CPU = {
    name: schedule.config
    for name, schedule in select.SCHEDULES.rows.items()
    if fields(schedule.config)
}


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """A folder of logs instead of the package's own, and a function that adds any lines to it."""
    monkeypatch.setattr(records, "log_folders", lambda: (tmp_path,))
    record_format.warn_once.cache_clear()

    def add(*lines):
        for one in lines:
            spec = AttentionSpec.from_json(one["spec"])
            path = tmp_path / one["target"] / record_format.log_name(spec)
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as log:
                log.write(json.dumps(one) + "\n")

    return add


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def hostile_knobs(config):
    """Every field with a value that it cannot have, and one with each hostile value."""
    for number, field in enumerate(fields(config)):
        yield field.name, "much" if LIMITS[field.name] == (False, True) else -1 - number
    yield from ((fields(config)[0].name, value) for value in HOSTILE)


@pytest.mark.parametrize("name", CPU)
def test_a_hostile_cpu_record_is_skipped_with_one_warning(logs, caplog, name):
    direction = select.SCHEDULES.rows[name].directions[0]
    computes = direction.partition("_")[0]
    spec = LEARNED if direction == "tables" else SPEC
    if computes in COMPUTED:
        spec = AttentionSpec(dtype="float32", head_dim=64, computes=computes)
    for day, (knob, value) in enumerate(hostile_knobs(CPU[name]), 1):
        config = {**CPU[name]().to_json(), knob: value}
        logs(line(spec, direction=direction, day=day, config=config))
    choices = [select.choose(spec, direction, host_target(), "long") for _ in range(2)]
    assert [chosen.source for chosen in choices] == ["default"] * 2
    (warning,) = warnings(caplog)
    assert f"{day} lines are skipped (line 1: {fields(CPU[name])[0].name}=-1 must be" in warning


def test_a_hostile_cuda_record_is_skipped_with_one_warning(logs, caplog):
    for day, (knob, value) in enumerate(hostile_knobs(ForwardConfig), 1):
        config = {**ForwardConfig().to_json(), knob: value}
        logs({**line(HALF, day=day, config=config), "target": "sm_90"})
    assert SCHEDULES.measured(HALF, "forward", SM_90) == Candidate(None, "default")
    (warning,) = warnings(caplog)
    assert f"{day} lines are skipped (line 1: block_q=-1 must be" in warning


def test_a_hostile_record_does_not_hide_an_older_good_one(logs):
    logs(line(config=config_of(96), day=1), line(config=config_of(-64), day=2))
    chosen = select.choose(SPEC, "forward", host_target(), "long")
    assert chosen.config.block_k == 96 and chosen.source.endswith(":exact")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"schedule": "cpu.invented"}, "schedule='cpu.invented' must be one of cpu.forward"),
        (config_of(64, invented=1), "invented is no knob: there are block_k, block_q"),
    ],
)
def test_a_record_of_another_release_is_skipped_with_its_reason(logs, caplog, config, reason):
    logs(line(config=config))
    assert select.choose(SPEC, "forward", host_target(), "long").source == "default"
    (warning,) = warnings(caplog)
    assert reason in warning


def test_missing_knobs_are_the_defaults(logs):
    logs(line(config={"schedule": "cpu.forward", "block_k": 32}))
    chosen = select.choose(SPEC, "forward", host_target(), "long")
    assert chosen.config == replace(CPU["cpu.forward"](), block_k=32)


@pytest.mark.parametrize("target", ["../elsewhere", "..", ".", "a/b", "/tmp", "x\n"])
def test_a_record_names_no_folder_but_its_own(target, tmp_path):
    with pytest.raises(ValueError, match="is not the name of a target"):
        record_format.append(tmp_path / "logs", line(target=target))


def test_odd_files_among_the_logs_are_passed_over(logs, tmp_path, caplog):
    folder = tmp_path / host_target().name
    for name in ("float32_d0.jsonl", f"float32_d{'9' * 200}.jsonl", "float32_d64.jsonl"):
        (folder / name).mkdir(parents=True)

    os.mkfifo(folder / "float32_d96.jsonl")
    assert select.choose(SPEC, "forward", host_target(), "long").source == "default"
    assert sorted(w.rpartition(": ")[2] for w in warnings(caplog)) == ["is no file"] * 2


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
def test_a_hostile_config_by_hand_names_knob_value_and_limit(value):
    shown = repr(value)[:40]
    limit = "must be a whole number from 1 to 4096"
    for config in ({"schedule": "cpu.forward", "block_q": value}, {"block_q": value}):
        with pytest.raises(ValueError) as caught:
            jit.artifact_for(SPEC, "forward", config)
        assert str(caught.value) == f"block_q={shown} {limit}"
    with pytest.raises(ValueError, match=limit):
        select.scheduled_module(SPEC, "forward", host_target(), CPU["cpu.forward"](block_q=value))
    with pytest.raises(ValueError, match=limit):
        cuda_programs(HALF, "forward", (SM_90,), {"schedule": "cuda.forward", "block_q": value})


def test_numbers_too_long_to_write_are_described():
    (problem,) = config_problems({"block_q": 10**5000})
    assert problem.startswith("block_q=an int of 16610 bits must be a whole number")
    (problem,) = config_problems({"block_q": [10**5000]})
    assert problem.startswith("block_q=a list must be a whole number")


def test_a_config_by_hand_that_does_not_fit_is_unsupported():
    with pytest.raises(UnsupportedSpec, match="vector registers, the limit is"):
        select.scheduled_module(SPEC, "forward", host_target(), {"rows_s": 64, "block_k": 64})
    with pytest.raises(UnsupportedSpec, match=r"sm_90: .* bytes of shared memory"):
        cuda_programs(HALF, "forward", (SM_90,), {"block_k": 2048})
    with pytest.raises(ValueError, match=r"schedule=.cpu\.forward. must be one of cuda\.forward"):
        cuda_programs(HALF, "forward", (SM_90,), {"schedule": "cpu.forward"})


def test_every_knob_has_a_limit_that_holds_what_is_tried():
    """That is tuning's own values, and the defaults."""
    from tvm_flash.schedules.cuda.backward_config import BACKWARD_KNOBS as CUDA_BACKWARD_KNOBS
    from tvm_flash.schedules.cuda.backward_config import BackwardConfig
    from tvm_flash.study.kernels.original_config import OriginalConfig
    from tvm_flash.study.kernels.standard import StandardConfig

    kinds = [*CPU.values(), ForwardConfig, BackwardConfig, OriginalConfig, StandardConfig]
    for kind in kinds:
        assert {field.name for field in fields(kind)} <= LIMITS.keys()
        assert config_problems(kind().to_json()) == []
    knobs = [*CUDA_KNOBS, *CUDA_BACKWARD_KNOBS]
    knobs += [knob for schedule in select.SCHEDULES.rows.values() for knob in schedule.knobs]
    for knob in knobs:
        assert [p for value in knob.values for p in config_problems({knob.name: value})] == []
