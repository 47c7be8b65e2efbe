"""The command line writes to whatever is there: encodings, pipes, terminals of any width."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from tvm_flash.cli.console import console, progress
from tvm_flash.cli.streams import any_encoding
from tvm_flash.cli.tune_view import changes, ratio_text

ROOT = Path(__file__).resolve().parents[2]
ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# All commands in one process: importing torch takes seconds.
ALL_HELP = """
import sys
from typer.main import get_command
from tvm_flash.cli import main
from tvm_flash.cli.app import app

names = sorted(get_command(app).commands)
groups = {n: c.commands for n, c in get_command(app).commands.items() if hasattr(c, "commands")}
below = [[name, word] for name, commands in groups.items() for word in commands]
for words in [[], *([name] for name in names), *below]:
    sys.argv = ["tvm-flash", *words, "--help"]
    try:
        main()
    except SystemExit as leaving:
        assert leaving.code == 0, words
print(names, sorted(map(" ".join, below)))
"""


def python(code, *, environment, **options):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        **options,
    )


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE], ids=["ascii", "C locale"])
def test_all_help_prints_in_any_encoding(environment):
    done = python(ALL_HELP, environment={**environment, "COLUMNS": "40"})
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    assert "'tune', 'verify']" in text and "'study search', 'study table']" in text
    assert text.count("Usage:") == 19 and "Traceback" not in text


@pytest.mark.parametrize(
    ("encoding", "last"), [("ascii", "-> +- e ?"), ("latin-1", "-> ± é ?"), ("utf-8", "→ ± é ?")]
)
def test_tables_and_bars_print_in_any_encoding(monkeypatch, encoding, last):
    """A file name that is no UTF-8 reaches Python as a lone surrogate: no encoding has that."""
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    any_encoding()
    table = Table("±", title="→ é \udcff")
    table.add_row(f"{changes({'a': 2}, {'a': 1})}, {ratio_text(1.5, 0.25)}")
    console.print(table)
    console.print("→ ± é \udcff")
    with progress("é", 1) as advance:
        advance("→")
    for stream in streams.values():
        stream.flush()
    text = streams["stdout"].buffer.getvalue().decode(encoding)
    assert text.splitlines()[-1] == last
    expected = "a 1→2, 1.500 ± 0.250"
    assert (expected if encoding == "utf-8" else "a 1->2, 1.500 ") in text
    assert ("┃" in text) == (encoding == "utf-8")


@pytest.mark.parametrize(
    ("arguments", "stream"),
    [(["tune", "--check-logs", "tuning_logs"], "stdout"), (["show", "nonsense"], "stderr")],
    ids=str,
)
def test_output_that_nobody_reads_ends_silently(arguments, stream):
    reading, writing = os.pipe()
    os.close(reading)
    done = run(arguments, **{stream: writing})
    os.close(writing)
    assert done.returncode == 141 and not done.stdout and not done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_does_not_fit_is_an_error():
    with open("/dev/full", "w") as full:
        done = run(["--help"], stdout=full)
    assert done.returncode == 2 and b"No space" in done.stderr
    assert b"Traceback" not in done.stderr


def run(arguments, **streams):
    command = [sys.executable, "-m", "tvm_flash", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(command, cwd=ROOT, **{**pipes, **streams})


VERIFY_HELP = (
    "import sys; from tvm_flash.cli import main; sys.argv[1:] = ['verify', '--help']; main()"
)


def test_a_terminal_without_columns_loses_no_words():
    ours, theirs = pty.openpty()  # 0 columns, until somebody sets them
    process = subprocess.Popen(
        [sys.executable, "-c", VERIFY_HELP], stdin=theirs, stdout=theirs, cwd=ROOT
    )
    os.close(theirs)
    parts = []
    while part := _read(ours):
        parts.append(part)
    os.close(ours)
    assert process.wait() == 0
    assert_whole(b"".join(parts))


def test_one_column_loses_no_words():
    done = python(VERIFY_HELP, environment={"COLUMNS": "1"})
    assert done.returncode == 0
    assert_whole(done.stdout)


def assert_whole(text):
    words = re.sub(rb"\x1b\[[0-9;]*m", b"", text)
    assert b"--direction" in words and b"architectures" in words


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how a pty says that nobody writes any more
        return b""
