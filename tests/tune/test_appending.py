"""Many writers and full disks: a log loses no line but one that was cut off."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from record_lines import TARGET, line

from tvm_flash.schedules.record_format import append, read

ROOT = Path(__file__).resolve().parents[2]


def test_a_line_that_is_cut_short_by_a_full_disk(tmp_path, monkeypatch):
    """A write may take what room there is and say so without an error."""
    path = append(tmp_path, line())
    open_whole = Path.open

    def open_small(self, mode="r", **options):
        file = open_whole(self, mode, **options)
        if mode != "ab+":
            return file
        write = file.write
        return Small(file, lambda data: write(data[:20]))

    class Small:
        def __init__(self, file, write):
            self.file, self.write = file, write

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(Path, "open", open_small)
    with pytest.raises(OSError, match="No space left"):
        append(tmp_path, line(trial=4))
    monkeypatch.undo()
    append(tmp_path, line(trial=5))
    assert [one["trial"] for one in read(path)] == [3, 5], "the cut line costs nothing but itself"


APPEND = """
import sys, json
from pathlib import Path
from tvm_flash.schedules.record_format import append
line = json.loads(sys.stdin.read())
for trial in range(40):
    append(Path(sys.argv[1]), {**line, "trial": trial, "seed": int(sys.argv[2])})
"""


def test_processes_append_at_once(tmp_path):
    """Lines longer than a page, so that a torn one would show."""
    text = json.dumps(line(best=False, note="x" * 9000))
    command = [sys.executable, "-c", APPEND, str(tmp_path)]
    writers = [
        subprocess.Popen([*command, str(seed)], stdin=subprocess.PIPE, text=True, cwd=ROOT)
        for seed in range(2)
    ]
    for writer in writers:
        writer.stdin.write(text)
        writer.stdin.close()
    assert [writer.wait(600) for writer in writers] == [0] * 2
    found = list(read(tmp_path / TARGET / "float32_d64.jsonl"))
    assert sorted((x["seed"], x["trial"]) for x in found) == [
        (seed, trial) for seed in range(2) for trial in range(40)
    ]
