"""Rankings of GPU configs: the document that is written, read, refused and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_flash.cli.tune_cuda import ranking_table
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.space import cuda_space
from tvm_flash.schedules.records import best_config
from tvm_flash.tune.analytical.ranking import (
    FORMAT,
    KIND,
    ranking_path,
    ranking_problems,
    read_ranking,
    write_ranking,
)
from tvm_flash.tune.trial import Sizes

ROOT = Path(__file__).resolve().parents[2]
BF16 = AttentionSpec(dtype="bfloat16", head_dim=64)
SIZES = Sizes(1, 8, 8, 512, 512)


def document(**changes):
    """A ranking as rank_cuda writes it."""
    space = cuda_space(BF16, "forward", ARCHS["sm_90"])
    config = space.start.to_json()
    entry = {
        "config": config, "registers": 240, "shared_bytes": 32768, "resident_blocks": 2,
        "limit": "registers", "bound": "tensor", "clocks": {"tensor": 10},
    }  # fmt: skip
    return {
        "format": FORMAT, "kind": KIND, "target": "sm_90", "gpu": {"name": "H100"},
        "spec": BF16.to_json(), "direction": "forward", "problem": SIZES._asdict(),
        "space": {"points": 9}, "default": {"config": config, "rank": 1}, "seed": 0,
        "date": "2026-11-21T12:00:00+00:00", "versions": {"nvcc": "13.0"},
        "ranking": [{**entry, "predicted_seconds": s} for s in (1e-3, 2e-3)],
        "unranked": [{"config": config, "outcome": "spill", "note": ""}], **changes,
    }  # fmt: skip


def test_a_ranking_is_written_and_read(tmp_path):
    path = ranking_path(tmp_path, "sm_90", BF16, "forward")
    assert path == tmp_path / "sm_90" / "attn_bf16_d64_fwd.static.json"
    assert read_ranking(write_ranking(path, document())) == document()
    assert "not measured" in path.read_text() and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"format": 2}, "format=1"),
        ({"kind": "measured"}, "not measured"),
        ({"direction": "sideways"}, "sideways"),
        ({"spec": {"version": 99}}, "spec"),
        ({"ranking": document()["ranking"][::-1]}, "order"),
        ({"ranking": [{**document()["ranking"][0], "seconds": [1e-3]}]}, "no measured seconds"),
        ({"ranking": [{**document()["ranking"][0], "predicted_seconds": -1.0}]}, "not positive"),
        ({"ranking": [{**document()["ranking"][0], "registers": "many"}]}, "registers"),
        ({"unranked": [{"config": {}, "outcome": "ok"}]}, "spill, wrong, invalid"),
        ({"seed": None}, "seed"),
    ],
    ids=str,
)
def test_what_is_no_ranking(tmp_path, changes, part):
    assert any(part in text for text in ranking_problems(document(**changes)))
    with pytest.raises(ValueError, match=r"bad\.static\.json"):
        write_ranking(tmp_path / "bad.static.json", document(**changes))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_rankings(tmp_path):
    path = tmp_path / "x.static.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_ranking(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="list"):
        read_ranking(path)


def test_what_is_shown_names_the_problem():
    shown = ranking_table("a kernel", document())
    assert "batch=1, num_heads=8, num_kv_heads=8, seqlen_q=512, seqlen_k=512" in shown.title
    assert [row[:2] for row in shown.rows] == [("1", "1000"), ("2", "2000")]


def test_builds_do_not_take_rankings_as_records(tmp_path):
    write_ranking(ranking_path(tmp_path, "sm_90", BF16, "forward"), document())
    assert best_config(BF16, "forward", "sm_90", "long", folders=[tmp_path]).source == "default"


def test_committed_rankings():
    paths = sorted((ROOT / "tuning_logs").glob("*/*.static.json"))
    assert paths
    for path in paths:
        ranking = read_ranking(path)
        spec = AttentionSpec.from_json(ranking["spec"])
        assert path == ranking_path(
            path.parent.parent, ranking["target"], spec, ranking["direction"]
        )
        space = cuda_space(spec, ranking["direction"], ARCHS[ranking["target"]])
        assert ranking["default"]["config"] == space.start.to_json()
        kind = type(space.start)
        assert all(
            space.point(kind.from_json(entry["config"])) in space
            for entry in (*ranking["ranking"], *ranking["unranked"])
        )


def row(ranking) -> str:
    """A ranking's row of the table in docs/tuning-cuda.md."""
    ranked, default = ranking["ranking"], ranking["default"]["rank"]
    first = {k: v for k, v in ranked[0]["config"].items() if k != "schedule"}
    changed = [
        f"{name} {value}"
        for name, value in first.items()
        if value != ranking["default"]["config"][name]
    ]
    spec = AttentionSpec.from_json(ranking["spec"])
    ratio = ranked[default - 1]["predicted_seconds"] / ranked[0]["predicted_seconds"]
    spilled = sum(entry["outcome"] == "spill" for entry in ranking["unranked"])
    cells = (
        f"{spec.name.removeprefix('attn_')} {ranking['direction']}", ranking["target"],
        f"{spilled} of {ranking['space']['compiled']}", f"{default} of {len(ranked)}",
        f"{ratio:.2f}", ", ".join(changed).replace("_", "\\_"), ranked[0]["bound"],
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_the_document_shows_the_committed_rankings(update_golden):
    """`make rankings` writes the table."""
    document = ROOT / "docs" / "tuning-cuda.md"
    text = document.read_text(encoding="utf-8")
    paths = sorted((ROOT / "tuning_logs").glob("*/*.static.json"), key=lambda p: (p.name, p.parent))
    rows = "".join(f"{row(read_ranking(path))}\n" for path in paths)
    head, rule, rest = text.partition("|---|---|--:|--:|--:|---|---|\n")
    expected = head + rule + rows + rest[rest.index("<!-- end -->") :]
    if update_golden:
        document.write_text(expected, encoding="utf-8")
    assert text == expected or update_golden
