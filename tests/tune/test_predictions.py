"""What models said of carried candidates, and how well it orders what was measured."""

import json
from types import SimpleNamespace

import pytest

from tvm_flash.errors import ArtifactError
from tvm_flash.tune import predictions
from tvm_flash.tune.agreement import rank_correlation
from tvm_flash.tune.carried_cell import Told, agreement
from tvm_flash.tune.trial import Trial


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 200, 3000, 4000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: by Pearson's formula of ranks.
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1, 2], [1, 2]) is None and rank_correlation([1] * 3, [1, 2, 3]) is None
    with pytest.raises(ValueError, match="2 predictions of 3"):
        rank_correlation([1, 2], [1, 2, 3])


def test_they_are_kept_beside_the_library(tmp_path):
    assert predictions.read_predictions(tmp_path) == {}
    known = {"analytical": {"attn_000": 1e-3}, "simulation": {}}
    predictions.write_predictions(tmp_path, known)
    assert predictions.read_predictions(tmp_path) == known
    text = (tmp_path / predictions.FILE).read_text()
    assert json.loads(text)["kind"] == "predicted, not measured"
    for wrong in ("[]", "{", '{"seconds": {"analytical": 3}}', '{"seconds": {"a": {"b": "x"}}}'):
        (tmp_path / predictions.FILE).write_text(wrong)
        with pytest.raises(ArtifactError, match="holds no predictions"):
            predictions.read_predictions(tmp_path)


def event(stage, candidate, beside, seconds, incumbent, outcome="ok"):
    step = SimpleNamespace(
        stage=stage,
        config=SimpleNamespace(candidate=candidate),
        incumbent=SimpleNamespace(candidate=beside),
    )
    trial = Trial(outcome, 0.0, 1.0, (seconds,) * 5, (incumbent,) * 5)
    return SimpleNamespace(step=step, trial=trial)


def test_times_are_told_in_the_clock_of_the_default():
    told = Told()
    told.tell(None, None)
    told.tell(None, event("start", 0, 0, 2.0, 2.0))
    told.tell(None, event("trial", 1, 0, 1.0, 2.0))
    told.tell(None, event("confirm", 1, 0, 1.5, 2.0))
    # The clock is half as fast now: the best takes 2 s, and this one 4.
    told.tell(None, event("trial", 2, 1, 4.0, 2.0))
    told.tell(None, event("trial", 3, 1, 0.0, 0.0, "crash"))
    known = {"analytical": {"attn_000": 3e-3, "attn_001": 1e-3, "attn_002": 2e-3, "attn_003": 1.0}}
    found = told.candidates("attn", known)
    assert [one["seconds"] for one in found] == [2.0, 1.0, 2.0, None]
    assert [one["outcome"] for one in found] == ["ok"] * 3 + ["crash"]
    assert agreement(found) == {"analytical": pytest.approx(0.866)}
    assert agreement(found[:2]) == {}
