"""Imports go one way, tvm stays behind few doors, and `import tvm_flash` costs nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each line may import from the lines above it, and within itself.
ORDER = [
    ["errors", "import_lock", "machine", "json_fields", "gradients"],
    [
        "program_size",
        "program",
        "tracing",
        "torch_compositions",
        "torch_operations",
        "score_mod",
        "variants",
    ],
    ["spec", "lengths"],
    ["reference"],
    ["cases"],
    ["folder"],
    ["manifest"],
    ["artifact"],
    ["definition"],
    ["schedules"],
    ["codegen"],
    ["machine_code", "openmp"],
    ["loader"],
    ["kernels"],
    ["ptx_interpreter", "verify"],
    ["arguments"],
    ["checks", "placement", "spec_names", "observers", "autograd", "vmap", "results", "ops"],
    ["broadcasting"],
    ["functional", "flash_attn"],
    ["bench"],
    ["tune"],
    ["study"],
    ["cli"],
    ["__main__"],
]
RANK = {layer: rank for rank, line in enumerate(ORDER) for layer in line}

# Where tvm may be imported at all, and where only inside a function.
TVM_FOLDERS = {"definition", "schedules", "codegen"}
TVM_LAZILY = {"cli", "tune", "study"}

SOURCES = {
    ("tvm_flash", *path.relative_to(root).with_suffix("").parts): path
    for root in (ROOT / "tvm_flash", ROOT)
    for folder in (".", "schedules", "codegen", "tuning_logs")
    if (root == ROOT) == (folder != ".")
    for path in (root / folder).rglob("*.py")
}


def imports_of(name, path):
    """(line, module parts, whether at module level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
    }
    package = name if path.name == "__init__.py" else name[:-1]
    package = package[:-1] if path.name == "__init__.py" else package
    for node in ast.walk(tree):
        for target in imported_names(node, package):
            yield node.lineno, target, id(node) not in lazy


def imported_names(node, package):
    if isinstance(node, ast.Import):
        return [tuple(alias.name.split(".")) for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package[: len(package) - node.level + 1] if node.level else ()
    module = (*base, *(node.module.split(".") if node.module else ()))
    # `from .. import cases` names modules, `from ..spec import AttentionSpec` does not.
    return [(*module, alias.name) for alias in node.names]


def layer_of(module):
    return module[1] if len(module) > 1 and module[0] == "tvm_flash" else None


def test_every_module_has_a_place_in_the_order():
    layers = {layer_of(name) for name in SOURCES} - {"__init__", "tuning_logs"}
    assert layers <= set(RANK), f"add to ORDER: {sorted(layers - set(RANK))}"


def test_the_table_of_steps_is_in_this_order():
    """docs/layout.md names every layer, each below those that it imports from."""
    table = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8").partition("\n## ")[0]
    places = [line.split("|")[2] for line in table.splitlines() if line.startswith("|")]
    named = re.findall(r"`(?:tvm_flash/)?(\w+)(?:\.py|/)`", " ".join(places))
    steps = [name for name in named if name in RANK]
    assert {*steps, "__main__"} == set(RANK)
    assert steps == sorted(steps, key=RANK.get)


@pytest.mark.parametrize("name", SOURCES, ids=".".join)
def test_imports_go_one_way(name):
    own = layer_of(name)
    if own not in RANK:
        return
    backward = [
        f"{SOURCES[name].name}:{line} imports {'.'.join(target)}"
        for line, target, _ in imports_of(name, SOURCES[name])
        if layer_of(target) in RANK and RANK[layer_of(target)] > RANK[own]
    ]
    assert not backward


@pytest.mark.parametrize("name", SOURCES, ids=".".join)
def test_tvm_is_imported_behind_few_doors(name):
    layer = layer_of(name)
    wrong = [
        f"{SOURCES[name].name}:{line}"
        for line, target, at_module_level in imports_of(name, SOURCES[name])
        if target[0] == "tvm"
        and layer not in TVM_FOLDERS
        and (layer not in TVM_LAZILY or at_module_level)
    ]
    assert not wrong


def test_the_reader_of_imports_sees_relative_ones():
    path = ROOT / "schedules" / "__init__.py"
    node = ast.parse("from ..definition.score import key_range").body[0]
    assert imported_names(node, ("tvm_flash", "schedules", "cpu")) == [
        ("tvm_flash", "schedules", "definition", "score", "key_range")
    ]
    assert ("tvm_flash", "schedules", "__init__") in SOURCES and path.is_file()


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "tvm", "tvm_ffi", "numpy", "typer", "rich"]
    code = f"import sys, tvm_flash; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_running_needs_no_tvm():
    modules = "loader kernels ops functional cases reference bench".split()
    run_python(
        "import sys; sys.modules['tvm'] = None\n"
        f"import importlib\nfor m in {modules}: importlib.import_module('tvm_flash.' + m)"
    )
