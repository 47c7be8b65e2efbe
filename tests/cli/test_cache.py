"""``tvm-flash cache``, on a cache of its own, and ``--version``."""

import json
import os

import pytest
from typer.testing import CliRunner

import tvm_flash
from tvm_flash.cli.app import app
from tvm_flash.codegen.file_lock import locked

DAY = 24 * 3600
FORWARD, BACKWARD = (f"attn_f32_d16_{x}-{n * 32}" for x, n in (("fwd", "1"), ("bwd", "2")))
PLAN, CODE = f"plans/{'a' * 64}", f"cuda/{'b' * 64}.cubin"
# Names of entries and for how many days nobody used them.
AGES = {FORWARD: 2, BACKWARD: 40, PLAN: 1, CODE: 90}


def call(*arguments, status=0):
    result = CliRunner().invoke(app, list(arguments), terminal_width=80)
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result.output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    now = os.stat(tmp_path).st_mtime
    for name, days in AGES.items():
        path = tmp_path / name
        files = [path]
        if name.startswith("attn"):
            files = [path / "manifest.json", path / "kernels.so"]
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(bytes(2**20))
            os.utime(file, (now - days * DAY,) * 2)
        path.with_name(f"{path.name}.lock").touch()
    (tmp_path / ".scratch").mkdir()
    return tmp_path


def held(folder):
    return {name for name in AGES if (folder / name).exists()}


def test_what_is_there(folder):
    assert call("cache", "path").strip() == str(folder)
    assert call("cache", "size") == "2 kernels, 6.0 MiB with their parts\n"
    assert json.loads(call("cache", "size", "--json")) == {
        "kernels": 2, "entries": 4, "bytes": 6 * 2**20,
    }  # fmt: skip
    rows = json.loads(call("cache", "list", "--json"))
    assert [row["name"] for row in rows] == [FORWARD, BACKWARD]
    text = call("cache", "list")
    assert all(word in text for word in ("attn_f32_d16_bwd ", "2048", "40.0", "days ago"))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ((), {FORWARD, PLAN}),
        (("--older", "50"), AGES.keys() - {CODE}),
        (("--keep", "3M"), {FORWARD, PLAN}),
        (("--keep", "1 MiB"), {PLAN}),
        (("--all", "--dry-run"), set()),
        (("--all",), set()),
    ],
)
def test_prune(folder, options, kept):
    said = call("cache", "prune", *options)
    assert held(folder) == (set(AGES) if "--dry-run" in options else kept)
    kernels = sum(name.startswith("attn") for name in AGES.keys() - kept)
    verb = "would take" if "--dry-run" in options else "took"
    assert said.startswith(f"{verb} out {kernels} kernel")
    assert (folder / ".scratch").exists()


def test_what_is_somebody_elses_stays(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("mine")
    (other / "thesis.txt").write_text("all of it")
    own = folder / "notes" / "deep"
    own.mkdir(parents=True)
    for path in (own / "n.txt", folder / "notes" / "n.txt", folder / "n.txt"):
        path.write_text("notes")
    (folder / "link").symlink_to(other)
    (folder / "loop").symlink_to(folder)
    (folder / f"kernel-{'3' * 32}").symlink_to(folder / FORWARD)
    assert json.loads(call("cache", "size", "--json"))["entries"] == 4
    call("cache", "prune", "--all")
    assert not held(folder)
    assert (other / "thesis.txt").exists() and len(list(other.iterdir())) == 1
    assert len(list(folder.rglob("n.txt"))) == 3


def test_what_is_made_just_now_stays(folder):
    with locked(folder / f"{CODE}.lock"):
        call("cache", "prune", "--all")
    assert held(folder) == {CODE}


def test_no_cache_and_bad_input(folder, monkeypatch):
    for options, part in (
        (("--keep", "much"), "as 500M or 2G"),
        (("--older", "-1"), "0 or more"),
        (("--older", "nan"), "0 or more"),
        (("--all", "--keep", "1M"), "leaves nothing"),
    ):
        assert part in call("cache", "prune", *options, status=2)
    folder.chmod(0o777)
    assert "not safe" in call("cache", "size", status=2)
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(folder / "none"))
    assert call("cache", "size").startswith("0 kernels")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option):
    assert call(option) == f"tvm-flash {tvm_flash.__version__}\n"
