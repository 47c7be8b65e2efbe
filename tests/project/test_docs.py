"""What the documents say is true: links lead somewhere, code runs, tables are the measured ones."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import update_readme

from tvm_flash.cases import CORRECTNESS
from tvm_flash.problem.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def text_of(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(document))
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_paths_exist(document):
    named = re.findall(
        r"`((?:tvm_flash|tests|examples|benchmarks|docs|schedules)/[\w./-]*)`", text_of(document)
    )
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_code_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", text_of(ROOT / "README.md"), re.DOTALL)
    loading = [block for block in blocks if "tvm_flash.load(" in block]
    assert len(blocks) == 3 and len(loading) == 1
    names = {}
    for block in blocks:
        if block not in loading:  # its artifact does not exist here; test_cli builds and loads one
            exec(compile(block, "README.md", "exec"), names)
    assert names["q"].grad.shape == names["q"].shape
    assert names["out"].isfinite().all()


def test_the_code_of_serving_runs():
    blocks = re.findall(r"```python\n(.*?)```", text_of(ROOT / "docs/serving.md"), re.DOTALL)
    names = {}
    for block in blocks:
        if "tvm_flash.load(" not in block:
            exec(compile(block, "serving.md", "exec"), names)
    # What the last of them says: a prefix that is shared is merged with the rest of the keys.
    whole = names["attention"](names["q"], names["k"], names["v"], causal=True)
    torch.testing.assert_close(names["out"], whole, atol=1e-5, rtol=1e-5)
    assert names["cache"].seqlens.tolist()[:3] == [102, 40, 102]


def test_the_code_of_integrations_runs():
    text, names = text_of(ROOT / "docs/integrations.md"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        others = re.findall(r"^(?:from|import) (transformers|jax|xformers)\b", block, re.MULTILINE)
        # Models of transformers, tests/integrations has.
        if "transformers" not in others and all(map(find_spec, others)):
            exec(compile(block, "integrations.md", "exec"), {} if others else names)
    assert not names["tvm_flash"].sdpa.enabled
    assert names["q"].grad.isfinite().all()


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["first-steps", "training"])
def test_the_code_of_a_page_runs(name):
    text, names = text_of(ROOT / "docs" / f"{name}.md"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "tvm_flash.load(" not in block:
            exec(compile(block, f"{name}.md", "exec"), names)
    assert names["k"].grad.isfinite().all() and names["out"].isfinite().all()


def test_the_code_of_distributed_imports_what_there_is():
    text, names = text_of(ROOT / "docs/distributed.md"), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        imports = [x for x in ast.parse(block).body if isinstance(x, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), "distributed.md", "exec"), names)
    assert "ring_attention" in names


def test_the_measured_figures_are_those_of_the_results():
    for document, text in update_readme.renewed().items():
        assert text_of(document) == text, f"{document.name}: run update_readme.py"


def test_the_cases_that_a_training_library_serves_are_counted():
    served = sum(case.spec in PRESETS["training"].specs for case in CORRECTNESS)
    said = re.findall(r"(\d+) of (\d+) for `training`", text_of(ROOT / "docs/cuda.md"))
    assert said == [(str(served), str(len(CORRECTNESS)))]
