"""What is seen of a search: on a terminal, in a file, in the last table."""

from collections import Counter
from io import StringIO

import pytest
from rich.console import Console
from tune_search import Toy, toy_task

from tvm_flash.cli import show_table, tune_cuda
from tvm_flash.cli.show_table import drawn
from tvm_flash.cli.tune_tables import Found, found_lines, found_table, gain_text
from tvm_flash.cli.tune_view import LiveView, PlainView, changes, clock_text, differences
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.tune.session import Event, State
from tvm_flash.tune.trial import Trial
from tvm_flash.tune.trial_log import Step

OK = Trial("ok", 0.0, 1.0, (0.5e-3, 0.52e-3, 0.48e-3), (1e-3, 1e-3, 1e-3))


def state(**changed):
    return State(toy_task(), total=20, best=Toy(), **changed)


def event(trial=OK, stage="trial", best=False, replayed=False):
    return Event(Step(stage, 7, Toy(3, 0), Toy()), trial, best, replayed)


def screen(terminal):
    return Console(file=StringIO(), force_terminal=terminal, width=120, _environ={})


def shown(view_class, terminal, *told):
    console = screen(terminal)
    with view_class(console, 3) as view:
        view.begin(toy_task())
        for each in told:
            view.tell(*each)
    return console.file.getvalue()


def test_lines_of_a_pipe():
    failed = Trial("timeout", note="no answer within 5 s")
    text = shown(
        PlainView, False,
        (state(done=1), event()),
        (state(done=2), event(failed)),
        (state(done=3), event(replayed=True)),
        (state(done=3), event(stage="confirm", best=True)),
    )  # fmt: skip
    lines = text.splitlines()
    assert len(lines) == 4, "nothing of what the log had"
    assert "[1/3] attn_f32_d64 forward long on x86-64-v4" in lines[0]
    assert "0.5 ms" in lines[1] and "0.500 ±" in lines[1] and "x 0→3" in lines[1]
    assert "timeout: no answer within 5 s" in lines[2]
    assert "confirm" in lines[3] and "BEST" in lines[3]


def test_a_panel_on_a_terminal():
    failures = Counter(wrong=2, crash=1)
    best = state(done=8, ratio=0.5, spread=0.01, number=7, failures=failures, doing="compiling")
    best.best = Toy(3, 0)
    text = shown(LiveView, True, (best, event()), (best, event(stage="confirm", best=True)))
    for part in ("8/20 trials", "elapsed", "left", "0.500 ± 0.010", "trial 7", "x 0→3"):
        assert part in text, part
    assert "wrong 2, crash 1" in text and "now: compiling" in text
    assert "confirm" in text and "trial       7" not in text, "promotions scroll, trials do not"


def test_time_left_counts_new_trials_alone(monkeypatch):
    view, clock = PlainView(screen(False), 1), iter([0.0, 60.0])
    monkeypatch.setattr("tvm_flash.cli.tune_view.time.monotonic", lambda: next(clock))
    view.begin(toy_task())
    for done in range(1, 5):
        view.tell(state(done=done), event(replayed=True))
    view.tell(state(done=6), event())
    assert view.left() == 14 * 30.0
    assert clock_text(3725) == "1:02:05" and clock_text(float("inf")) == "-:--:--"


def table_of(*found):
    console = screen(False)
    console.print(drawn(found_table(found), 120))
    return console.file.getvalue()


def test_gains_are_honest():
    won = state(done=20, ratio=0.5, spread=0.02, number=7)
    won.best = Toy(3, 0)
    noise = state(done=20, ratio=0.99, spread=0.02, number=3)
    noise.best = Toy(1, 0)
    kept = state(done=20, ratio=1.01, spread=0.03)
    cut = state(done=5, ratio=0.8, spread=0.02, number=2)
    cut.best = Toy(2, 2)
    text = table_of(Found(won, OK), Found(noise, OK), Found(kept, OK), Found(cut, None))
    assert "2.00x ± 0.08" in text and "0.500 ± 0.020" in text
    assert gain_text(noise) == gain_text(kept) == "none"
    assert "default, ± 0.030" in text
    assert "(product)" in text and "5 of 20" in text, "not measured beside the default"
    assert len(found_lines([Found(won, OK), Found(kept, OK)])) == 1


def test_differences():
    assert differences(Toy(), Toy()) == "the default"
    assert changes({"schedule": "b", "x": 1}, {"schedule": "a", "x": 1}) == "schedule a→b"


DOCUMENT = {
    "default": {"config": {"block_k": 64}, "rank": 9},
    "ranking": [
        {
            "predicted_seconds": n * 1e-6, "registers": 128, "shared_bytes": 28672,
            "bound": "tensor", "config": {"block_k": 64 if n == 9 else 16 * n},
        }
        for n in range(1, 12)
    ],
    "unranked": [{"outcome": "spill"}, {"outcome": "spill"}],
    "problem": {"batch": 2, "seqlen_q": 512},
}  # fmt: skip


def test_a_ranking_is_labelled_as_such(monkeypatch, tmp_path):
    from tvm_flash.tune.analytical import cuda

    console, asked = screen(False), []
    monkeypatch.setattr(show_table, "console", console)
    monkeypatch.setattr(cuda, "rank_cuda", lambda *known: asked.append(known) or DOCUMENT)
    spec = AttentionSpec(dtype="float16", head_dim=64)
    tune_cuda.rank_on_cuda([spec, spec], ["forward"], "cuda:sm_80,sm_90", 5, 3, tmp_path)
    assert [(s, d, arch.name, n, seed) for s, d, arch, n, seed, *_ in asked] == [
        (spec, "forward", "sm_80", 5, 3), (spec, "forward", "sm_90", 5, 3),
    ]  # fmt: skip
    text = console.file.getvalue()
    assert "predicted, not measured" in text and "spill 2" in text and "seqlen_q=512" in text
    assert "block_k 64→16" in text and "the default" in text and "11" not in text.split()


def test_an_architecture_without_a_model(monkeypatch, tmp_path):
    from tvm_flash.tune.analytical import cuda

    asked = []
    monkeypatch.setattr(show_table, "console", screen(False))
    monkeypatch.setattr(cuda, "rank_cuda", lambda *known: asked.append(known[2].name) or DOCUMENT)
    specs = [AttentionSpec(dtype="float16", head_dim=64)]
    with pytest.raises(UnsupportedSpec, match="no analytical model of sm_100"):
        tune_cuda.rank_on_cuda(specs, ["forward"], "cuda:sm_80,sm_100", 5, 0, tmp_path)
    assert asked == [], "told before an hour of others"
    tune_cuda.rank_on_cuda(specs, ["forward"], "cuda", 5, 0, tmp_path)
    assert asked == ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]


def test_what_a_ranking_cannot_be_made_for(monkeypatch, tmp_path):
    from tvm_flash.tune.analytical import cuda

    def refuse(*_):
        raise ValueError("no config serves")

    monkeypatch.setattr(cuda, "rank_cuda", refuse)
    with pytest.raises(UnsupportedSpec, match="sm_80: no config serves"):
        tune_cuda.rank_on_cuda(
            [AttentionSpec(dtype="float16", head_dim=64)], ["forward"], "cuda:sm_80", 5, 0, tmp_path
        )
