"""Write the measured figures of README.md and of the pages in docs/ that have the markers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from before_after import table as before_and_after
from divided_keys import table as divided_keys
from language_model import start_table
from language_model import table as language_model
from main_loops import table as main_loops
from presets import table as presets
from ring_attention import table as ring_attention
from variants import table as variants

from tvm_flash.bench.document import holds
from tvm_flash.bench.markdown import complete, short
from tvm_flash.bench.table import Table, words
from tvm_flash.schedules.select import SCHEDULES
from tvm_flash.tune import gains

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "performance-cpu.md"
PICTURE = ROOT / "docs" / "performance-cpu.png"
RESULTS = ROOT / "benchmarks" / "results"
CUDA = ROOT / "docs" / "cuda.md"
DISTRIBUTED = ROOT / "docs" / "distributed.md"
SERVING = ROOT / "docs" / "serving.md"
TUNING = ROOT / "docs" / "tuning.md"
VARIANTS = ROOT / "docs" / "variants.md"
LOGS = ROOT / "tuning_logs"

MEASURED = ("<!-- measured:begin -->", "<!-- measured:end -->")
CELLS = ("<!-- cells:begin -->", "<!-- cells:end -->")
GAINS = ("<!-- gains:begin -->", "<!-- gains:end -->")
CHANGE = ("<!-- change:begin -->", "<!-- change:end -->")
LOOP_TABLE = ("<!-- loops:begin -->", "<!-- loops:end -->")
PRESETS = ("<!-- presets:begin -->", "<!-- presets:end -->")
DIVIDED = ("<!-- divided:begin -->", "<!-- divided:end -->")
MODEL = ("<!-- model:begin -->", "<!-- model:end -->")
START = ("<!-- start:begin -->", "<!-- start:end -->")
RING = ("<!-- ring:begin -->", "<!-- ring:end -->")
VARIANT_TABLE = ("<!-- variants:begin -->", "<!-- variants:end -->")
SPACES = ("<!-- spaces:begin -->", "<!-- spaces:end -->")


def main() -> None:
    """Rewrite them; with --check, only say whether they would change."""
    behind = []
    for path, text in renewed().items():
        if path.read_text(encoding="utf-8") == text:
            continue
        behind.append(path.name)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
    if behind and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(behind)}: behind what was measured, run update_readme.py")


def renewed() -> dict[Path, str]:
    """What the files should say, where they have the markers and something was measured."""
    parts = [(TUNING, SPACES, spaces())]
    documents = measured_documents(RESULTS)
    if sequences := [document for document in documents if document["suite"] == "sequences"]:
        parts.append((SERVING, CELLS, "\n\n".join(map(complete, sequences))))
    if dense := [document for document in documents if document not in sequences]:
        parts.append((README, MEASURED, "\n\n".join(map(_short, dense))))
        parts.append((PAGE, CELLS, "\n\n".join(map(complete, dense))))
    kept = (
        ("before-after.json", PAGE, CHANGE, lambda found: before_and_after(found["rows"])),
        ("language-model.json", PAGE, MODEL, language_model),
        ("language-model.json", PAGE, START, start_table),
        ("main-loops.json", CUDA, LOOP_TABLE, main_loops),
        ("presets.json", CUDA, PRESETS, presets),
        ("divided-keys.json", CUDA, DIVIDED, divided_keys),
        ("ring-attention.json", DISTRIBUTED, RING, ring_attention),
        ("variants.json", VARIANTS, VARIANT_TABLE, variants),
    )
    for name, path, markers, table in kept:
        if (file := RESULTS / name).is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            parts.append((path, markers, "\n".join(table(found).markdown())))
    if found := gains.gains(LOGS):
        parts.append((TUNING, GAINS, "\n".join(gains.table(found).markdown())))
    texts: dict[Path, str] = {}
    for path, markers, measured in parts:
        text = texts.get(path) or (path.read_text(encoding="utf-8") if path.is_file() else "")
        if all(marker in text for marker in markers):
            texts[path] = between(text, markers, measured)
    return texts


def spaces() -> str:
    """The knobs of every CPU schedule."""
    rows = [
        (name, f"`{knob.name}`", ", ".join(map(str, knob.values)), knob.meaning)
        for name, schedule in SCHEDULES.rows.items()
        for knob in schedule.knobs
    ]
    return "\n".join(Table("", words("schedule", "knob", "values", "what it is"), rows).markdown())


def measured_documents(folder: Path) -> list[dict]:
    """The documents of ``tvm-flash bench`` in ``folder``."""
    found = (holds(path) for path in sorted(folder.glob("*.json")))
    return [document for document in found if document is not None]


def between(text: str, markers: tuple[str, str], measured: str) -> str:
    """``text`` with what stands between the markers replaced."""
    begin, end = markers
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{measured}\n{end}{after}"


def _short(document: dict) -> str:
    """The README's form of ``document``, with links to the files that exist."""
    links = [str(path.relative_to(ROOT)) if path.is_file() else "" for path in (PICTURE, PAGE)]
    return short(document, *links)


if __name__ == "__main__":
    main()
