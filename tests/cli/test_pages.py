"""Pages of help and what is said of wrong command lines, as recorded: `--update-golden` renews."""

import difflib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from golden_text import compare
from typer.testing import CliRunner

from tvm_flash.cli import console
from tvm_flash.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent / "golden"


def commands(command, words=()):
    """Every command, with the words that call it."""
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
LEAVES = {words: each for words, each in COMMANDS.items() if not hasattr(each, "commands")}


def call(*words, width=80):
    return CliRunner().invoke(app, list(words), terminal_width=width, prog_name="tvm-flash")


@pytest.mark.parametrize("width", [80, 120])
def test_help(width, update_golden):
    pages = [call(*words, "--help", width=width).stdout for words in COMMANDS]
    text = "\n".join(pages)
    compare(FOLDER / f"help-{width}.txt", text, update_golden)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert len(pages) == text.count("Usage: tvm-flash") > 15


def test_a_narrow_page_has_the_same_words():
    for words in ((), ("verify",), ("study", "search")):
        wide, narrow = (call(*words, "-h", width=width).stdout.split() for width in (100, 40))
        assert wide == narrow


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_options_are_described_in_one_style(words):
    for option in LEAVES[words].get_params(typer.Context(LEAVES[words])):
        assert option.help and option.help[-1] in ".)", option.name
        assert option.metavar or getattr(option, "is_flag", False), f"{option.name}: no metavar"
        assert not getattr(option, "secondary_opts", ()), f"{option.name}: --no-..."
    names = {name for option in LEAVES[words].params for name in option.opts}
    assert "--json" in names and "--output" not in names


# What typer says differs between its versions: the words that it must hold.
USAGE = {
    "no such command": (["verfy", "kernels"], "'verify'"),
    "no such option": (["demo", "--quik"], "--quick"),
    "no argument": (["verify"], "LIB|SPEC"),
    "a number out of range": (["tune", "fp32,d=64", "--trials", "0"], "--trials"),
    "no number": (["study", "search", "--trials", "many"], "--trials"),
    "a value too many": (["cache", "size", "now"], "(now)"),
    "no required option": (["study", "export"], "--out"),
    "an option for a value": (
        ["tune", "--check-logs", "--json"],
        "--check-logs needs DIR behind it",
    ),
    "no such stage": (
        ["show", "fp32,d=64", "--stage", "elf"],
        "error: invalid value for '--stage': 'elf'",
    ),
}


@pytest.mark.parametrize(("words", "part"), USAGE.values(), ids=USAGE)
def test_usage_errors_are_a_line_and_a_hint(words, part):
    done = call(*words)
    assert done.exit_code == 2 and not done.stdout
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and part in error
    assert hint.startswith("see: tvm-flash") and hint.endswith(" --help")


def test_no_command_is_help_and_2():
    done = call()
    assert done.exit_code == 2 and done.stderr.startswith("Usage:") and "Commands:" in done.stderr


WRONG = {
    "a word misspelt": ["show", "bf16,d=64,casual"],
    "no library": ["verify", "no/where"],
    "no library, one word": ["verify", "kernels"],
    "a file": ["verify", "setup.cfg"],
    "a spec that is wrong": ["verify", "fp32,d=64,hexagonal"],
    "no folder": ["bench", "--quick", "--match", "S=512", "--plot", "no/where/a.png"],
    "an output that is a folder": ["bench", "--quick", "--out", "kernel"],
    "nothing to build": ["build"],
}


def test_wrong_command_lines(tmp_path, monkeypatch, update_golden):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernel").mkdir()
    for name in ("kernel/manifest.json", "setup.cfg"):
        (tmp_path / name).touch()
    said = []
    for words in WRONG.values():
        done = call(*words)
        assert done.exit_code == 2 and not done.stdout, words
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
        said.append(f"$ tvm-flash {shlex.join(words)}\n{done.stderr}")
    text = "\n".join(said).replace(str(tmp_path), "FOLDER")
    compare(FOLDER / "wrong-command-lines.txt", text, update_golden)


def test_ctrl_c_is_130(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("tvm_flash.codegen.cache.cache_dir", interrupted)
    done = call("cache", "path")
    assert done.exit_code == 130 and done.stderr == "stopped\n" and not done.stdout


def test_help_waits_for_no_library():
    """Shells ask for completions at each key: torch alone takes seconds."""
    code = "import sys; from tvm_flash.cli import app; print({'torch', 'tvm'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell, monkeypatch):
    environment = {
        "_TVM_FLASH_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "tvm-flash ver",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "tvm-flash ver",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = CliRunner().invoke(app, [], env=environment, prog_name="tvm-flash")
    assert "verify" in done.output and "build" not in done.output


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.progress("build", 4) as advance:
        for name in "abcd":
            clock.now += 3
            advance(name)
    assert capsys.readouterr().err == "build: 2 of 4 in 6 s, b\nbuild: 4 of 4 in 12 s, d\n"


def documented():
    """Command lines in the documents, without what a shell makes of them."""
    for path in [ROOT / "README.md", ROOT / "benchmarks/README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"```(?:sh|console|)\n(.*?)```", text, re.DOTALL):
            for line in re.findall(
                r"^(?:\$ )?(?:python -m tvm_flash|tvm-flash) (.*)$", block, re.M
            ):
                yield path.name, re.split(r" [>|;&]|\s+#", line)[0]


@pytest.mark.parametrize("name", sorted({name for name, _ in documented()}))
def test_documented_commands_exist(name):
    for document, line in documented():
        words = shlex.split(line)
        if document != name or "..." in line:
            continue
        known = max((own for own in COMMANDS if tuple(words[: len(own)]) == own), key=len)
        assert known, line
        names = {opt for option in COMMANDS[known].params for opt in option.opts} | {"-h", "--help"}
        given = {word.partition("=")[0] for word in words if word.startswith("-")}
        near = {word: difflib.get_close_matches(word, names) for word in given - names}
        assert not near, f"{line}: {near}"
