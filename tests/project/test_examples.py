"""The examples run, shortened."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

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
