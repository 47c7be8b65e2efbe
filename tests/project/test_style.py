"""The house format, so that `make test` alone says whether a change is ready."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "tvm_flash schedules codegen tuning_logs tests examples benchmarks docs release".split()
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, *FOLDERS], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long_to_read():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in SOURCES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_docstrings_begin_with_what_they_name():
    """Not with "Of", which leaves to the reader what it is that is described."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, nodes) and (ast.get_docstring(node) or "").startswith("Of ")
    ]
    assert not found


def test_no_test_asserts_a_time():
    """A busy machine is no fault of the code: what is about time belongs to benchmarks."""
    found = [
        f"{path.relative_to(ROOT)}:{statement.lineno}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "tests")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for statement in asserted_times(function)
    ]
    assert not found


@pytest.mark.parametrize(
    "body",
    [
        "assert time.monotonic() < 5",
        "begun = time.time()\n    took = time.time() - begun\n    assert 2 * took < 5",
        "best = min(timeit.repeat(call)) / 20\n    assert best < 1e-3",
        "spent.append(time.perf_counter() - begun)\n    assert min(spent) < 1",
    ],
)
def test_asserted_times_are_found(body):
    (function,) = ast.parse(f"def test():\n    {body}").body
    assert len(asserted_times(function)) == 1


def asserted_times(function):
    """The asserts of ``function`` on what a clock said, or on what was computed from that."""
    times = set()

    def about_time(node):
        return any(
            (isinstance(part, ast.Name) and part.id in times)
            or (isinstance(part, ast.Attribute) and ast.unparse(part.value) in ("time", "timeit"))
            for part in ast.walk(node)
            if not (isinstance(part, ast.Attribute) and part.attr == "sleep")
        )

    for node in ast.walk(function):  # breadth first: a later line of a block comes later
        if isinstance(node, ast.Assign) and about_time(node.value):
            times |= {ast.unparse(target) for target in node.targets}
        method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if method and any(map(about_time, node.args)):
            times.add(ast.unparse(node.func.value))
    return [n for n in ast.walk(function) if isinstance(n, ast.Assert) and about_time(n.test)]
