"""Imports go one way, tvm stays behind few doors, and `import tvm_flash` costs nothing."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from layers import LAYERS, TOP, as_table

ROOT = Path(__file__).resolve().parents[2]

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.names}

# Where tvm may be imported at all, and where only inside a function.
TVM_FOLDERS = {"definition", "schedules", "codegen"}
TVM_LAZILY = {"cli", "tune", "study"}
STUDIED_KERNELS = ("tvm_flash", "study", "kernels")

SOURCES = {
    ("tvm_flash", *path.relative_to(root).with_suffix("").parts): path
    for root in (ROOT / "tvm_flash", ROOT)
    for folder in (".", *TOP)
    if (root == ROOT) == (folder != ".")
    for path in (root / folder).rglob("*.py")
}


def imports_of(name, path):
    """(line, module parts, whether at module level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {id(node) for part in ast.walk(tree) if _is_lazy(part) for node in ast.walk(part)}
    package = name if path.name == "__init__.py" else name[:-1]
    package = package[:-1] if path.name == "__init__.py" else package
    for node in ast.walk(tree):
        for target in imported_names(node, package):
            yield node.lineno, target, id(node) not in lazy


def _is_lazy(node) -> bool:
    """Whether imports inside do not run with the module: in a function, or for type checkers."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name):
        return node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef)


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
    assert layers <= set(RANK), f"add to LAYERS: {sorted(layers - set(RANK))}"


def test_the_documented_table_is_this_order(update_golden):
    """docs/layout.md shows LAYERS; `make golden` writes it."""
    path = ROOT / "docs" / "layout.md"
    text = path.read_text(encoding="utf-8")
    head, _, rest = text.partition("| step |")
    expected = head + as_table(ROOT) + rest[rest.index("\n\n") :]
    if update_golden:
        path.write_text(expected, encoding="utf-8")
    assert text == expected or update_golden


@pytest.mark.parametrize("name", SOURCES, ids=".".join)
def test_imports_lead_somewhere(name):
    """Those inside functions too, which nothing runs when a module is imported."""
    modules = {known[: -(known[-1] == "__init__") or None] for known in SOURCES}
    wrong = [
        f"{SOURCES[name].name}:{line} imports {'.'.join(target)}"
        for line, target, _ in imports_of(name, SOURCES[name])
        if target[0] == "tvm_flash" and not {target, target[:-1]} & modules
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    """At module level; a lazy import may close a circle."""
    graph = {name: set() for name in SOURCES}
    for name, path in SOURCES.items():
        for _, target, at_module_level in imports_of(name, path):
            found = next((t for t in (target, target[:-1]) if t in graph), None)
            if at_module_level and found is not None:
                graph[name].add(found)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


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
        and name[:3] != STUDIED_KERNELS
        and (layer not in TVM_LAZILY or at_module_level)
    ]
    assert not wrong


def test_the_reader_of_imports_sees_relative_ones():
    path = ROOT / "schedules" / "__init__.py"
    node = ast.parse("from ..definition.scores import Scores").body[0]
    assert imported_names(node, ("tvm_flash", "schedules", "cpu")) == [
        ("tvm_flash", "schedules", "definition", "scores", "Scores")
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
    modules = "runtime.loader runtime.kernels frontend.functional cases reference bench".split()
    run_python(
        "import sys; sys.modules['tvm'] = None\n"
        f"import importlib\nfor m in {modules}: importlib.import_module('tvm_flash.' + m)"
    )
