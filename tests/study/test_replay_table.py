"""Replay tables: what is written is read, what is wrong is refused, an interrupted one goes on."""

import gzip
import json
import statistics
from dataclasses import replace

import pytest
from replay_tables import made_up, write_table
from typer.testing import CliRunner

from tvm_flash.cli.app import app
from tvm_flash.study.replay import make as table_make
from tvm_flash.study.replay import table as replay_table
from tvm_flash.study.replay.format import TableError
from tvm_flash.study.replay.make import Effort, make
from tvm_flash.study.replay.timing import Pairs, in_turns

RUN = CliRunner()
SMALL = {"block_q": (64, 128), "rows_s": (2, 4)}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_a_table_is_read_as_it_was_written(tmp_path, suffix):
    head, lines = made_up(seed=3)
    path = tmp_path / f"small.{suffix}"
    replay_table.write(path, head, lines)
    table = replay_table.read(path)
    assert table.name == "small" and len(table.measured) == len(lines)
    for line, (point, one) in zip(lines, table.measured.items(), strict=True):
        assert point == tuple(line["point"]) and one.outcome == line["outcome"]
        assert one.cost == pytest.approx(line["compile_seconds"] + 0.35)
    before = path.read_bytes()
    replay_table.write(path, head, lines)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_labels_are_ratios_to_the_start_so_that_drift_cancels(tmp_path):
    table = write_table(tmp_path / "t.jsonl")
    for point, one in table.measured.items():
        if one.outcome != "ok":
            assert table.seconds[point] is None and one.ratio is None
            continue
        ratios = [a / b for a, b in zip(one.seconds, one.reference_seconds, strict=True)]
        assert table.seconds[point] == statistics.median(ratios) * table.reference
        assert 0 < one.spread < 0.05  # drift is 5 % of each time, and of no ratio
    assert table.seconds[table.best] == min(s for s in table.seconds.values() if s is not None)


def test_the_task_of_a_table_holds_its_points_and_no_others(tmp_path):
    table = write_table(tmp_path / "t.jsonl", knobs=SMALL)
    space = table.task.space
    assert set(space.points) == set(table.measured)
    assert space.point(space.start) == table.start and table.start in space
    assert all(space.point(space.config(point)) == point for point in space.points)
    assert "not in the table" in space.reasons((64, 8))[0]


HEAD_FAULTS = {
    "another version": (lambda head: head.update(format=2), "format=2, this version reads 1"),
    "no table": (lambda head: head.clear(), "it is no replay table"),
    "no knobs": (lambda head: head.update(knobs={}), "knobs="),
    "a field less": (lambda head: head.pop("clock"), "clock missing"),
    "a foreign spec": (lambda head: head.update(spec={"dtype": "int4"}), "spec="),
    "too few points": (lambda head: head.update(points=99), "cut off"),
    "another start": (lambda head: head["start"].update(block_q=7), "its start"),
}
LINE_FAULTS = {
    "a value that no knob has": (lambda line: line["point"].__setitem__(0, 7), "=7 is none of"),
    "a value too many": (lambda line: line["point"].append(2), "3 values"),
    "a negative time": (
        lambda line: line["seconds"].__setitem__(0, -1.0),
        "is not a list of times",
    ),
    "a lone repeat": (lambda line: line.update(seconds=[1.0]), "differ in number"),
    "too wrong": (lambda line: line.update(error=1.0), "above"),
    "times of a failure": (lambda line: line.update(outcome="crash"), "with seconds"),
    "an outcome of its own": (lambda line: line.update(outcome="meh"), "outcome="),
}


@pytest.mark.parametrize("fault, message", HEAD_FAULTS.values(), ids=HEAD_FAULTS)
def test_a_foreign_head_is_refused_with_its_reason(tmp_path, fault, message):
    head, lines = made_up(knobs=SMALL, failing=0)
    fault(head)
    replay_table.write(tmp_path / "t.jsonl", head, lines)
    with pytest.raises(TableError, match=message):
        replay_table.read(tmp_path / "t.jsonl")


@pytest.mark.parametrize("fault, message", LINE_FAULTS.values(), ids=LINE_FAULTS)
def test_a_corrupt_line_is_refused_with_its_number(tmp_path, fault, message):
    head, lines = made_up(knobs=SMALL, failing=0)
    fault(lines[2])
    replay_table.write(tmp_path / "t.jsonl", head, lines)
    with pytest.raises(TableError, match=rf"t\.jsonl, line 4: .*{message}"):
        replay_table.read(tmp_path / "t.jsonl")


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    write_table(path)
    whole = path.read_bytes()
    texts = gzip.decompress(whole)
    for damaged in (
        whole[: len(whole) // 2],
        gzip.compress(texts[:-200]),
        b"",
        b"\xff\xfe",
        b"[1]",
    ):
        path.write_bytes(damaged)
        with pytest.raises(TableError, match=r"t\.jsonl\.gz"):
            replay_table.read(path)


def test_a_point_that_is_there_twice_is_refused(tmp_path):
    head, lines = made_up(knobs=SMALL, failing=0)
    replay_table.write(tmp_path / "t.jsonl", head, [*lines[:-1], lines[0]])
    with pytest.raises(TableError, match="twice"):
        replay_table.read(tmp_path / "t.jsonl")


def test_an_unknown_table_names_those_of_the_package():
    with pytest.raises(TableError, match="forward_d64_s512"):
        replay_table.read("nowhere")


@pytest.mark.parametrize("path", sorted(replay_table.TABLES.glob("*.gz")), ids=lambda p: p.name)
def test_the_tables_of_the_package_are_whole(path):
    table = replay_table.read(path)
    assert set(table.task.space.points) == set(table.measured)
    good = [one for one in table.measured.values() if one.outcome == "ok"]
    assert len(good) > 0.9 * len(table.measured) > 90
    assert statistics.median(one.spread for one in good) < 0.05
    assert path.stat().st_size < 150_000


@pytest.fixture
def measuring(monkeypatch):
    """Builds and timings that cost nothing; gives the list of what was done."""
    done = []

    def build_all(task, points, cache, jobs, timeout):
        for point in points:
            done.append(("build", point))
            failed = point == (64, 2)
            numbers = (None, None) if failed else (1e-6, 1e-5)
            built = {"outcome": "wrong" if failed else "ok", "path": "somewhere"}
            named = dict(zip(("error", "allowed"), numbers, strict=True))
            yield point, {**built, **named, "compile_seconds": 1.0, "check_seconds": 0.1}

    def measured(call, reference, pairs, clock):
        done.append(("measure", clock))
        return Pairs([0.002] * pairs, [0.001] * pairs, 0.5)

    class Library:
        kernels = (None,)

    monkeypatch.setattr(table_make, "build_all", build_all)
    monkeypatch.setattr(table_make, "in_turns", measured)
    monkeypatch.setattr(table_make, "opened", lambda path: Library)
    monkeypatch.setattr(table_make, "timed_call", lambda kernel, sizes: None)
    return done


def test_making_a_table_goes_on_where_it_was_interrupted(tmp_path, measuring):
    task = write_table(tmp_path / "model.jsonl", knobs=SMALL, failing=0).task
    path, effort, steps = tmp_path / "made.jsonl.gz", Effort(passes=2, pairs=3), []

    def interrupt(text):
        steps.append(text)
        if len(steps) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(task, path, effort, interrupt)
    journal = tmp_path / "made.jsonl.gz.work" / "events.jsonl"
    journal.write_text(journal.read_text() + '{"point": [64,')  # cut off by the interruption
    assert not path.exists() and len(measuring) == 6
    make(task, path, effort, steps.append)
    assert steps.count("done before") == 6 and len(measuring) == 4 + 2 * 3
    assert sum(kind == "build" for kind, _ in measuring) == 4
    made = replay_table.read(path)
    assert {one.outcome for one in made.measured.values()} == {"ok", "wrong"}
    assert all(len(one.seconds) in (0, 6) for one in made.measured.values())
    assert made.measured[made.start].cost == pytest.approx(1.1 + 2 * 0.5)
    assert {file.name for file in tmp_path.iterdir()} == {"model.jsonl", "made.jsonl.gz"}


def test_a_kernel_that_nobody_wrote_down_is_compiled_again(tmp_path, measuring):
    """One made as a run was interrupted: from the cache it would seem to cost nothing."""
    task = write_table(tmp_path / "model.jsonl", knobs=SMALL, failing=0).task
    kernels = tmp_path / "made.jsonl.work" / "kernels"

    def interrupt(text):
        for name in ("somewhere", "elsewhere"):
            (kernels / name).mkdir(parents=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(task, tmp_path / "made.jsonl", Effort(), interrupt)
    seen = []
    make(task, tmp_path / "made.jsonl", Effort(), lambda _: seen.append(sorted(kernels.iterdir())))
    assert seen[1] == [kernels / "somewhere"]


def test_parts_of_another_table_are_not_gone_on_with(tmp_path, measuring):
    task = write_table(tmp_path / "model.jsonl", knobs=SMALL, failing=0).task
    folder = tmp_path / "made.jsonl.work"
    folder.mkdir()
    head = {"kind": "replay table", "format": 1, "direction": "backward"}
    (folder / "events.jsonl").write_text(json.dumps(head) + "\n")
    with pytest.raises(TableError, match="delete it, or write to another file"):
        make(task, tmp_path / "made.jsonl", Effort(), lambda text: None)


def test_two_runs_do_not_make_the_same_table(tmp_path, measuring):
    task = write_table(tmp_path / "model.jsonl", knobs=SMALL, failing=0).task
    path = tmp_path / "made.jsonl"

    def meanwhile(text):
        with pytest.raises(TableError, match=r"another run is making .*made\.jsonl"):
            make(task, path, Effort(), lambda text: None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(task, path, Effort(), meanwhile)
    make(task, path, Effort(), lambda text: None)
    assert len(replay_table.read(path).measured) == 4


def test_repeats_are_taken_in_turns():
    order = []
    pairs = in_turns(lambda: order.append(0), lambda: order.append(1), 4, "perf_counter")
    assert len(pairs.seconds) == len(pairs.reference_seconds) == 4
    assert order.count(0) == order.count(1) and pairs.measure_seconds > 0
    runs = [value for n, value in enumerate(order) if n == 0 or order[n - 1] != value]
    assert len(runs) >= 4


@pytest.mark.parametrize("field", ["passes", "pairs", "workers", "timeout"])
def test_no_effort_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0 must be positive"):
        replace(Effort(), **{field: 0})


@pytest.mark.parametrize(
    "options, message",
    [
        (["--knob", "block_q"], "must be a name and distinct"),
        (["--knob", "block_q=64,64"], "must be a name and distinct"),
        (["--knob", "depth=64"], "has knobs"),
        (["--knob", "block_q=50"], "the start"),
        (["--knob", "block_q=64", "--passes", "0"], "'--passes'"),
        (["--knob", "block_q=64", "-o", "no/where.jsonl"], "cannot be written"),
    ],
)
def test_the_command_refuses_with_reasons(tmp_path, options, message):
    output = ["-o", str(tmp_path / "t.jsonl")]
    done = RUN.invoke(app, ["study", "table", "--spec", "f32,d=64", *output, *options])
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


@pytest.mark.slow
def test_the_command_measures_a_table_that_searches_can_use(tmp_path):
    output = tmp_path / "real.jsonl.gz"
    knobs = ["--knob", "rows_s=2,4"]
    sizes = ["--seqlen", "64", "--heads", "1", "--passes", "1", "--pairs", "2", "--workers", "1"]
    command = ["study", "table", "--spec", "f32,d=32", *knobs, *sizes, "-o", str(output)]
    done = RUN.invoke(app, command)
    assert done.exit_code == 0, done.output
    table = replay_table.read(output)
    assert len(table.measured) == 2 and table.head["direction"] == "forward"
    assert all(one.compile_seconds > 0 for one in table.measured.values())
    again = RUN.invoke(
        app, ["study", "search", "--table", str(output), "--trials", "2", "--seeds", "1",
              "--strategies", "random"]
    )  # fmt: skip
    assert again.exit_code == 0, again.output
