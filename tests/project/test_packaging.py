"""A wheel holds the package and nothing else, and works from where pip puts it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tvm_flash.schedules.record_format import read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "tvm_flash": ROOT / "tvm_flash",
    "tvm_flash.schedules": ROOT / "schedules",
    "tvm_flash.codegen": ROOT / "codegen",
    "tvm_flash.tuning_logs": ROOT / "tuning_logs",
}


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments, **options):
    return run(sys.executable, "-m", "pip", "--quiet", *arguments, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built without a network, from a copy: building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for source in FOLDERS.values():
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.o")
        shutil.copytree(source, tree / source.name, ignore=ignore)
    (tree / "tuning_logs" / "a-target").mkdir()
    (tree / "tuning_logs" / "a-target" / "a_record.jsonl").write_text("{}\n")
    options = ("--no-build-isolation", "--no-deps", "--no-index")
    pip("wheel", *options, "--wheel-dir", str(folder), str(tree))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed, its requirements left out."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def test_the_list_of_packages_is_complete():
    found = {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for path in folder.rglob("__init__.py")
    }
    assert sorted(SETTINGS["tool"]["setuptools"]["packages"]) == sorted(found)


def test_every_folder_with_python_in_it_is_a_package():
    bare = {
        path.parent
        for folder in FOLDERS.values()
        for path in folder.rglob("*.py")
        if not (path.parent / "__init__.py").is_file()
    }
    assert not bare


def test_a_wheel_holds_only_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"tvm_flash", next(top for top in tops if top.endswith(".dist-info"))}
    assert not [name for name in names if "test" in name or name.endswith((".so", ".o"))]


def test_a_wheel_holds_every_source_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        "/".join([*package.split("."), *path.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for suffix in ("*.py", "*.c", "*.h", "*.jsonl", "*.jsonl.gz", "py.typed")
        for path in folder.rglob(suffix)
    }
    assert not sources - names
    assert {"tvm_flash/py.typed", "tvm_flash/tuning_logs/__init__.py"} <= names
    assert "tvm_flash/tuning_logs/a-target/a_record.jsonl" in names
    assert any(name.startswith("tvm_flash/codegen/runtime/") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_a_wheel_holds_the_best_lines_of_the_logs(wheel, installed):
    """Builds choose from it what they choose in a checkout, at a twentieth of the size."""
    logs = [info for info in zipfile.ZipFile(wheel).infolist() if "tuning_logs" in info.filename]
    assert sum(info.file_size for info in logs) < 500_000
    for path in sorted((ROOT / "tuning_logs").rglob("*.jsonl")):
        shipped = installed / "tvm_flash" / "tuning_logs" / path.parent.name / path.name
        best = [line for line in read(path) if line.get("best") is True]
        assert list(read(shipped)) == best, path
    assert (installed / "tvm_flash/tuning_logs/a-target/a_record.jsonl").read_text() == ""


def test_the_installed_package_imports_from_where_it_is(installed, tmp_path):
    modules = "schedules tuning_logs definition.plain frontend.functional cli codegen.build".split()
    code = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(installed)!r})\n"
        f"for name in {modules}:\n"
        "    print(importlib.import_module('tvm_flash.' + name).__file__)"
    )
    files = run(sys.executable, "-c", code, cwd=tmp_path).split()
    assert len(files) == len(modules)
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} <= {
        "tvm_flash",
        "bin",  # the script
    }


def test_the_script_and_the_module_are_the_command_line(installed, tmp_path):
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    text = run(sys.executable, "-m", "tvm_flash", "--help", cwd=tmp_path, env=environment)
    assert "doctor" in text
    assert SETTINGS["project"]["scripts"] == {"tvm-flash": "tvm_flash.cli:main"}


def test_constraints_pin_what_must_match():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    exact = [r for r in SETTINGS["project"]["optional-dependencies"]["compile"] if "==" in r]
    assert exact and set(exact) <= set(pins)
