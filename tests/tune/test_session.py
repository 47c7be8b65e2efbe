"""A search with times made up: what wins, what remains, and that it goes on where it stopped."""

import errno
import itertools
import json

import pytest
from tune_search import Made, Sensitive, Toy, session, toy_task

from tvm_flash.errors import HardwareFailure
from tvm_flash.schedules import record_format
from tvm_flash.tune import trial_log
from tvm_flash.tune.strategy import ProposalRefused, strategy_class
from tvm_flash.tune.trial import Trial
from tvm_flash.tune.trial_log import NotRecorded


def valley(config):
    """Seconds; the best is (3, 2): 0.375 of the start's. Some fail."""
    if config.x == 4:
        return Trial(("wrong", "crash", "timeout", "invalid")[config.y % 4], note="why")
    return (1 + abs(config.x - 3) + abs(config.y - 2)) / 6 * 1e-3 + 1e-3 / 3


def lines_of(folder):
    (path,) = folder.rglob("*.jsonl")
    return list(record_format.read(path))


def told(folder):
    """The log without what depends on the clock."""
    clock = ("date", "wall")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines_of(folder)]


def test_the_whole_space(tmp_path):
    search = session(tmp_path, Made(valley), trials=100)
    final = search.run()
    state = search.state
    assert state.best == Toy(3, 2) and state.exhausted and state.gained
    assert state.done == len(toy_task().space.points) == 35
    assert final.ratio == state.ratio == pytest.approx(0.375, rel=0.05)
    lines = lines_of(tmp_path)
    assert [line["stage"] for line in lines][:1] == ["start"] and lines[-1]["stage"] == "final"
    assert [x["trial"] for x in lines if x["stage"] == "trial"] != []
    assert lines[-1]["best"] and lines[-1]["config"] == Toy(3, 2).to_json()
    assert lines[-1]["incumbent"] == Toy().to_json(), "the gain is over the default"
    assert sum(state.failures.values()) == 6
    assert {x["outcome"] for x in lines} == {"ok", "wrong", "crash", "timeout", "invalid"}
    assert {x["note"] for x in lines if x["outcome"] != "ok"} == {"why"}


def test_what_fails_is_never_fast(tmp_path):
    search = session(tmp_path, Made(valley), trials=100)
    search.run()
    seconds = dict(search.strategy.told)
    assert all((seconds[x, y] is None) == (x == 4) for x, y in seconds)
    assert min(filter(None, seconds.values())) == seconds[3, 2]
    assert all(not line["best"] for line in lines_of(tmp_path) if line["outcome"] != "ok")


def test_a_config_must_win_twice(tmp_path):
    class Lucky(Made):
        """Everything but the start is fast when it is measured shortly."""

        def _trial(self, config, incumbent, seconds):
            factor = 0.5 if seconds == 0.5 and config != Toy() else 1.0
            times = (1e-3, 1.1e-3, 0.9e-3, 1.05e-3)
            return Trial("ok", 0.0, 1.0, tuple(t * factor for t in times), times)

    hardware = Lucky(None)
    search = session(tmp_path, hardware, trials=16)
    search.run()
    assert search.state.best == Toy() and not search.state.gained
    confirmed = [x for x in lines_of(tmp_path) if x["stage"] == "confirm"]
    assert confirmed and not any(x["best"] for x in confirmed)
    assert {seconds for *_, seconds in hardware.asked} == {0.5, 2.0}, "longer the second time"


def test_gains_of_noise_are_taken_back(tmp_path):
    """Promotions that were luck: beside the start the last of them is slower."""

    class Drifting(Made):
        def _trial(self, config, incumbent, seconds):
            against_start = incumbent == Toy() and config != Toy() and len(self.asked) > 12
            ratio = 1.2 if against_start else 0.9 if config != Toy() else 1.0
            return Trial("ok", 0.0, 1.0, (ratio, ratio), (1.0, 1.0))

    search = session(tmp_path, Drifting(None), trials=16)
    search.run()
    *_, chained, last = lines_of(tmp_path)
    assert chained["stage"] == last["stage"] == "final"
    assert not chained["best"] and chained["config"] != Toy().to_json()
    assert last["best"] and last["config"] == Toy().to_json() and search.state.number == 0


def test_a_default_that_fails_ends_the_search(tmp_path):
    search = session(tmp_path, Made(lambda config: Trial("crash", note="SIGILL")))
    with pytest.raises(HardwareFailure, match=r"Toy.*SIGILL"):
        search.run()


@pytest.mark.parametrize(
    ("stop", "strategy"),
    [
        *((stop, Sensitive) for stop in (0, 1, 5, 8, 9, 12, 17, 22, 30)),
        *((13, strategy_class(name)) for name in ("coordinate", "xgb")),
    ],
)
def test_a_stopped_search_goes_on_where_it_was(tmp_path, stop, strategy):
    """Same proposals, same log, nothing measured twice, wherever it is stopped, twice."""
    whole = session(tmp_path / "whole", Made(valley), strategy)
    whole.run()
    hardware = Made(valley)
    for after in (stop, 3, None):
        hardware.left = after
        parts = session(tmp_path / "parts", hardware, strategy)
        try:
            parts.run()
        except KeyboardInterrupt:
            continue
        break
    assert sorted(map(str, told(tmp_path / "parts"))) == sorted(map(str, told(tmp_path / "whole")))
    assert parts.state.failures == whole.state.failures
    assert (parts.state.best, parts.state.ratio) == (whole.state.best, whole.state.ratio)
    assert len(hardware.asked) == len(lines_of(tmp_path / "whole"))


def test_a_finished_search_measures_nothing(tmp_path):
    session(tmp_path, Made(valley)).run()
    again = session(tmp_path, Made(valley, stop_after=0))
    assert again.run().ratio < 1 and again.state.replayed == again.state.done == 20
    more = session(tmp_path, hardware := Made(valley), trials=30)
    more.run()
    assert more.state.done == 30 and len(hardware.asked) < 20
    other = session(tmp_path, hardware := Made(valley), seed=1)
    other.run()
    assert other.state.replayed == 0 and len(hardware.asked) > 20


def test_other_lines_are_not_of_this_search(tmp_path):
    session(tmp_path, Made(valley)).run()
    (path,) = tmp_path.rglob("*.jsonl")
    lines = lines_of(tmp_path)
    for changed, replayed in (
        ({}, 20),
        ({"cpu": "another CPU"}, 0),
        ({"versions": {"tvm": "1"}}, 0),
        ({"seed": 9}, 0),
        ({"sources": "others"}, 0),
    ):
        path.write_text("".join(json.dumps({**line, **changed}) + "\n" for line in lines))
        search = session(tmp_path, Made(valley))
        search.run()
        assert search.state.replayed == replayed, changed


def test_a_verdict_ends_with_the_sources_that_it_is_of(tmp_path, monkeypatch):
    """What was wrong is measured anew when the kernels' code has changed."""
    session(tmp_path, Made(lambda config: 1e-3 if config == Toy() else Trial("wrong"))).run()
    monkeypatch.setattr(trial_log, "source_digest", lambda: "mended")
    search = session(tmp_path, Made(valley), trials=35)
    search.run()
    assert search.state.best == Toy(3, 2) and search.state.replayed == 0


def test_what_is_recorded_must_be_beaten(tmp_path):
    """A record of an earlier search is faster than anything but the very best."""
    fast = Toy(2, 2)
    search = session(tmp_path, Made(valley), trials=8, recorded=lambda: fast)
    search.run()
    lines = lines_of(tmp_path)
    assert [x["stage"] for x in lines][:2] == ["start", "recorded"]
    assert all(x["incumbent"] == fast.to_json() for x in lines if x["stage"] == "trial")
    assert search.state.best in (fast, Toy(3, 2)) and lines[-1]["best"]
    found = search.state.best
    own = session(tmp_path, Made(valley, stop_after=0), trials=8, recorded=lambda: found)
    assert own.run().ratio < 1, "on resuming, the record of that time"


@pytest.mark.parametrize(("ratio", "stays"), [(1.005, True), (1.2, False)])
def test_a_record_stays_unless_it_is_clearly_slower(tmp_path, ratio, stays):
    class Equal(Made):
        def _trial(self, config, incumbent, seconds):
            own = 1.0 if config == incumbent else ratio
            times = (1e-3, 1.02e-3, 0.98e-3, 1.01e-3, 0.99e-3)
            return Trial("ok", 0.0, 1.0, tuple(t * own for t in times[::-1]), times)

    search = session(tmp_path, Equal(None), trials=8, recorded=lambda: Toy(2, 2))
    search.run()
    assert (search.state.best == Toy(2, 2)) == stays and search.state.number == 0


@pytest.mark.parametrize("points", [[(9, 9)], [(5, 5)], [(0, 1)] * 9, None, [1]])
def test_a_strategy_that_proposes_what_it_must_not(tmp_path, points):
    class Wild(Sensitive):
        def propose(self, count):
            return points

    with pytest.raises(ProposalRefused, match=r"Wild.propose\(8\)"):
        session(tmp_path, Made(valley), Wild).run()


def test_what_another_search_recorded_meanwhile_must_be_beaten(tmp_path):
    found = itertools.chain([None], itertools.repeat(Toy(3, 2)))
    search = session(tmp_path, Made(valley), trials=1, recorded=lambda: next(found))
    search.run()
    assert search.state.best == Toy(3, 2)
    assert [x["stage"] for x in lines_of(tmp_path)][-2:] == ["recorded", "final"]


def test_a_promotion_does_not_hide_what_another_search_recorded_meanwhile(tmp_path):
    """The latest line marked best counts: a slower one must not come after a faster."""
    found = itertools.chain([None], itertools.repeat(Toy(3, 2)))

    def slower(config):
        return 0.9e-3 if config.y == 1 else 0.5e-3 if config == Toy(3, 2) else 1e-3

    class Grid(strategy_class("grid")):
        """Without what the other search has found."""

        def propose(self, count):
            return [point for point in super().propose(count) if point != (3, 2)]

    search = session(tmp_path, Made(slower), Grid, trials=24, recorded=lambda: next(found))
    search.run()
    lines = lines_of(tmp_path)
    assert any(x["stage"] == "confirm" and x["config"]["y"] == 1 for x in lines)
    assert [x["config"] for x in lines if x["best"]] == [Toy(3, 2).to_json()]
    assert search.state.best == Toy(3, 2)


def test_a_finished_search_whose_record_was_replaced_measures_its_end_again(tmp_path):
    """Its config beats the other one, so it must be the latest that is marked."""
    session(tmp_path, Made(valley), trials=100).run()
    slower = Toy(3, 3)
    search = session(tmp_path, Made(valley), trials=100, recorded=lambda: slower)
    before = len(lines_of(tmp_path))
    search.run()
    new = lines_of(tmp_path)[before:]
    assert [x["stage"] for x in new] == ["recorded", "final"]
    assert new[-1]["config"] == Toy(3, 2).to_json() and new[-1]["best"]


def test_what_was_measured_beside_another_config_is_measured_again(tmp_path):
    """As of two searches that share all that identifies them."""
    session(tmp_path, Made(valley)).run()
    (path,) = tmp_path.rglob("*.jsonl")
    lines = lines_of(tmp_path)
    for line in lines:
        if line["stage"] == "trial":
            line["incumbent"] = Toy(5, 0).to_json()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    search = session(tmp_path, Made(valley))
    search.run()
    assert search.state.replayed == 0 and search.state.done == 20


def test_dates_tell_the_order_of_quick_steps(tmp_path):
    session(tmp_path, Made(valley)).run()
    dates = [record_format.moment(line["date"]) for line in lines_of(tmp_path)]
    assert dates == sorted(dates) and any(date.microsecond for date in dates)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_and_costs_one_trial(tmp_path, monkeypatch):
    append = record_format.append
    room = iter(range(5))
    monkeypatch.setattr(
        record_format, "append", lambda *x: append(*x) if next(room, None) is not None else full()
    )
    with pytest.raises(NotRecorded, match=r"No space left.*same command goes on"):
        session(tmp_path, Made(valley)).run()
    assert len(lines_of(tmp_path)) == 5
    monkeypatch.undo()
    search = session(tmp_path, Made(valley))
    search.run()
    assert search.state.replayed == 4, "the first line is the start's"


def test_lines_that_do_not_fit_wait_in_the_work_folder(tmp_path, monkeypatch):
    logs, rescue = tmp_path / "logs", tmp_path / "work"
    monkeypatch.setattr(record_format, "append", full)
    search = session(logs, Made(valley), rescue=rescue)
    search.run()
    waiting = (rescue / trial_log.UNWRITTEN).read_text().splitlines()
    with pytest.raises(NotRecorded, match=f"{len(waiting)} records wait"):
        trial_log.restore(rescue, logs)
    monkeypatch.undo()
    assert trial_log.restore(rescue, logs) == len(waiting) > 20
    assert trial_log.restore(rescue, logs) == 0
    assert lines_of(logs) == [json.loads(line) for line in waiting]
    assert session(logs, Made(valley, stop_after=0)).run().ratio < 1


def test_waiting_lines_that_cannot_be_read_are_kept(tmp_path, caplog):
    session(tmp_path / "made", Made(valley)).run()
    good = json.dumps(lines_of(tmp_path / "made")[0])
    bad = '{"format": 2, "of": "a later version"}'
    (tmp_path / trial_log.UNWRITTEN).write_text(f"{good}\n{bad}\n{good[:40]}")
    assert trial_log.restore(tmp_path, tmp_path / "logs") == 1
    (kept,) = tmp_path.glob("unreadable-*.jsonl")
    assert bad in kept.read_text() and "2 lines" in caplog.text and kept.name in caplog.text
    assert trial_log.restore(tmp_path, tmp_path / "logs") == 0


def test_a_work_folder_that_is_full_too(tmp_path, monkeypatch):
    monkeypatch.setattr(record_format, "append", full)
    (tmp_path / "file").touch()
    with pytest.raises(NotRecorded, match="neither can"):
        session(tmp_path, Made(valley), rescue=tmp_path / "file").run()


def test_keepers_get_new_trials_of_the_space(tmp_path):
    kept = []
    session(tmp_path, Made(valley), keepers=[lambda *x: kept.append(x)]).run()
    assert len(kept) == 21 and {trial.outcome for _, trial in kept} > {"ok"}
    session(tmp_path, Made(valley), keepers=[lambda *x: kept.append(x)]).run()
    assert len(kept) == 21


def test_hardware_that_is_gone_keeps_what_was_measured(tmp_path):
    gone = Made(valley, stop_after=6, error=HardwareFailure("no server is left"))
    with pytest.raises(HardwareFailure, match="no server"):
        session(tmp_path, gone).run()
    assert len(lines_of(tmp_path)) == 6


def test_two_searches_at_once_share_a_log(tmp_path):
    """Turn by turn on one file: both end, every line is valid, the latest best is one of theirs."""
    one = session(tmp_path, Made(valley), seed=1)
    two = session(tmp_path, Made(valley), Sensitive, seed=1, tell=lambda *_: None)
    two.run()
    one.run()
    (path,) = tmp_path.rglob("*.jsonl")
    assert not [x for x in record_format.checked(path) if x[2]]
    third = session(tmp_path, Made(valley, stop_after=0), seed=1)
    assert third.run().ratio < 1
