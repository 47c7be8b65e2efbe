"""The examples run, shortened."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvm_flash import PagedCache

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # a checkout that is not installed will do


def test_quickstart():
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "largest difference" in done.stdout


@pytest.fixture
def example(monkeypatch, capsys):
    """Runs an example as a script, in this process: importing torch and tvm takes seconds."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_score_mods(example, tmp_path):
    text = example("score_mods.py", "--seqlen", "96", "--out", str(tmp_path))
    assert "relative_position" in text
    assert (tmp_path / "masks.png").stat().st_size > 1000


def test_masks_are_drawn_as_text_without_matplotlib(example, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "██" in example("score_mods.py", "--seqlen", "96", "--out", str(tmp_path))


@pytest.mark.slow
def test_train_char_lm(example, tmp_path):
    text = example("train_char_lm.py", "--steps", "10", "--out", str(tmp_path))
    assert "largest difference at any step" in text
    assert (tmp_path / "train_char_lm.png").stat().st_size > 1000


def test_serving():
    """Tokens are those of each request alone, and no row but those of tokens is computed."""
    script = runpy.run_path(str(ROOT / "examples" / "serving.py"))
    torch.manual_seed(1)
    model, requests = script["Model"](), [script["Request"](40) for _ in range(40)]
    sizes = (script["PAGES"], script["PAGE_SIZE"], script["KV_HEADS"], script["HEAD_DIM"])
    cache = PagedCache(*sizes, num_layers=script["LAYERS"])
    counts = script["serve"](model, requests, cache)
    for request in requests:
        assert request.tokens == script["decode_alone"](model, request)
    # A prompt and each token but the last are computed once; the rest of a batch would be padding.
    assert counts["rows"] == sum(len(r.prompt) + r.wanted - 1 for r in requests)
    assert counts["padded"] > 2 * counts["rows"]
    # They came and went: at no time were all of them in the cache, and now none is.
    assert counts["pages"] < sum(request.pages for request in requests)
    assert cache.num_free_pages == script["PAGES"] and cache.sequences == ()
