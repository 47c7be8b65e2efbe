"""The committed scores of cost models: every row of the document's tables is theirs."""

import json
import re
from itertools import groupby
from pathlib import Path

import pytest

from tvm_flash.study.models.scores import MODELS

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "search-study.md").read_text(encoding="utf-8").split("## Cost models")[1]
KNOBS, STORES = SECTION.split("**TVM's features of stores**")


def rows(file):
    """A row of the document for each pair of tables, in the order of the file."""
    scores = json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))
    for (train, test), own in groupby(scores, lambda score: (score["train"], score["test"])):
        by_model = {score["model"]: score for score in own}
        assert tuple(by_model) == MODELS
        names = [f"`{name}`" for name in dict.fromkeys((train, test))]
        cells = [f"{s['spearman']:.2f}, {100 * s['recall']:.0f} %" for s in by_model.values()]
        yield f"| {' | '.join([*names, *cells])} |"


@pytest.mark.parametrize(
    ("file", "text"),
    [("cost-models.json", KNOBS), ("cost-models-stores.json", STORES)],
)
def test_the_document_prints_the_scores(file, text):
    assert re.findall(r"^\| `.*$", text, re.MULTILINE) == list(rows(file))
