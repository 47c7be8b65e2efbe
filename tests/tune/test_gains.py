"""What searches gained, read back from the logs that they wrote."""

import json

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format
from tvm_flash.schedules.select import space_of
from tvm_flash.schedules.target import cpu_target
from tvm_flash.tune.gains import gains, table
from tvm_flash.tune.sizes import SIZES
from tvm_flash.tune.trial import SearchTask, Trial
from tvm_flash.tune.trial_log import Step, TrialLog

ORIGIN = {"cpu": "a CPU", "machine": {}, "versions": {"tvm": "1"}}
TENTHS = (0.1, 0.1, 0.1)


def task_of(dtype):
    spec, target = AttentionSpec(dtype=dtype, head_dim=64), cpu_target("x86-64-v3")
    few = {"group": [24], "lanes": [24], "rows_s": [4], "rows_o": [4], "exp2_degree": [5]}
    space = space_of(spec, "forward", target).restricted(few)
    return SearchTask(space, spec, "forward", target.name, SIZES["long"])


def search(folder, task, seed, final, wins=(), failed=()):
    """A log of five trials; ``final`` is the best's time over the default's."""
    log = TrialLog(folder, task, ORIGIN, "coordinate", seed)
    start = task.space.start
    points = [p for p in task.space.points if p != task.space.point(start)][:5]
    ok = Trial("ok", 0.0, 1.0, TENTHS, TENTHS)
    for number, config in enumerate(map(task.space.config, points), 1):
        trial = Trial("crash") if number in failed else ok
        log.write(Step("trial", number, config, start), trial, False)
        if number in wins:
            log.write(Step("confirm", number, config, start), ok, True)
    if final is not None:
        times = tuple(final * t for t in TENTHS)
        last = Trial("ok", 0.0, 1.0, times, TENTHS)
        log.write(Step("final", max(wins, default=0), config, start), last, True)


def test_gains_are_those_of_the_last_measurement(tmp_path):
    search(tmp_path, task_of("float32"), 0, 0.8, wins=(2, 4), failed=(3,))
    search(tmp_path, task_of("bfloat16"), 0, 1.01)
    search(tmp_path, task_of("float16"), 0, None)
    second, first = gains(tmp_path)
    assert (first.spec.dtype, first.text) == ("float32", "1.250 ± 0.000")
    assert (first.trials, first.failures, first.last_win) == (5, 1, 4)
    assert (second.spec.dtype, second.text, second.last_win) == ("bfloat16", "none", 0)
    lines = table([first, second]).markdown()
    assert lines[2] == "| f32_d64 | forward | long | 100 | 1.250 ± 0.000 | 5 | 1 | trial 4 |"
    assert lines[3].endswith("| none | 5 | 0 | - |")


def test_the_latest_search_of_a_kernel_counts(tmp_path):
    search(tmp_path, task_of("float32"), 0, 0.8)
    search(tmp_path, task_of("float32"), 1, 0.5)
    path = next(tmp_path.rglob("*.jsonl"))
    lines = list(record_format.read(path))
    for line in lines:
        line["date"] = f"2026-01-0{1 + line['seed']}T00:00:00+00:00"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not a line\n")
    (gain,) = gains(tmp_path)
    assert gain.final.ratio == 0.5 and gain.spec == AttentionSpec(dtype="float32", head_dim=64)
    assert not [p for _, _, p in record_format.checked(path) if p][1:], "only the last is corrupt"


def test_the_order_of_lines_means_nothing(tmp_path):
    """The winner was slower than the default after all: the end's second line is the answer."""
    task = task_of("float32")
    search(tmp_path, task, 0, 1.2, wins=(2,))
    path = next(tmp_path.rglob("*.jsonl"))
    lines = list(record_format.read(path))
    default = {**lines[-1], "config": task.space.start.to_json(), "seconds": list(TENTHS)}
    lines.append({**default, "trial": 0})
    for second, line in enumerate(lines):
        line["date"] = f"2026-01-01T00:00:{second:02}+00:00"
    for ordered in (lines, lines[::-1]):
        path.write_text("".join(json.dumps(line) + "\n" for line in ordered))
        (gain,) = gains(tmp_path)
        assert gain.final.ratio == 1.0 and gain.text == "none"
