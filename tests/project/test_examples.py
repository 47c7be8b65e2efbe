"""The examples run, shortened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}  # a checkout that is not installed will do


def example(name, *arguments):
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quickstart():
    assert "largest difference" in example("quickstart.py")


def test_score_mods(tmp_path):
    text = example("score_mods.py", "--seqlen", "96", "--out", str(tmp_path))
    assert "relative_position" in text
    assert (tmp_path / "masks.png").stat().st_size > 1000


def test_masks_are_drawn_as_text_without_matplotlib(tmp_path):
    code = (
        "import runpy, sys; sys.modules['matplotlib'] = None\n"
        f"sys.argv = ['score_mods.py', '--seqlen', '96', '--out', {str(tmp_path)!r}]\n"
        "runpy.run_path('examples/score_mods.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "██" in done.stdout


@pytest.mark.slow
def test_train_char_lm(tmp_path):
    text = example("train_char_lm.py", "--steps", "30", "--out", str(tmp_path))
    assert "largest difference at any step" in text
    assert (tmp_path / "train_char_lm.png").stat().st_size > 1000
