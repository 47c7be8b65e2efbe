"""The bytes that the interpreter counts are those of the models; the committed study is theirs."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tvm_flash.cli.app import app
from tvm_flash.study.io import counts as io
from tvm_flash.study.io.theory import EXACT, FLASH2, ORIGINAL, STANDARD, fit, least_bytes
from tvm_flash.verify import rule

DOCS = Path(__file__).resolve().parents[2] / "docs"
RUN = CliRunner()


@pytest.mark.parametrize("algorithm", EXACT)
@pytest.mark.parametrize("problem", [(128, 64, 64), (70, 40, 32)], ids=str)
def test_counts_equal_the_model_to_the_byte(algorithm, problem):
    row = io.count(algorithm, *problem)
    assert row.bytes == row.predicted == EXACT[algorithm](*problem)
    assert row.bytes >= least_bytes(*problem[:2])
    assert row.sectors * io.SECTOR >= row.bytes  # whole sectors move, bytes are asked for


@pytest.mark.parametrize("algorithm, other", [(ORIGINAL, 16), (FLASH2, 16), (STANDARD, 16)])
def test_the_other_side_of_the_tile_changes_no_count(algorithm, other):
    own, changed = (io.count(algorithm, 64, 32, 32, side) for side in (None, other))
    assert own.bytes == changed.bytes == own.predicted


def test_standard_attention_is_flash2_and_four_passes_over_squares():
    for seqlen, head_dim, tile in ((128, 64, 64), (1024, 128, 128), (512, 32, 16)):
        extra = EXACT[STANDARD](seqlen, head_dim, tile) - EXACT[FLASH2](seqlen, head_dim, tile)
        assert extra == 4 * 2 * seqlen * seqlen


def test_fits_find_the_constants_of_the_models():
    places = [(n, 64, tile) for n in (256, 512, 1024) for tile in (16, 32, 64)]
    expected = {STANDARD: (8, 16), ORIGINAL: (0, 41), FLASH2: (0, 16)}
    for algorithm, (square, over_memory) in expected.items():
        points = [(*place, EXACT[algorithm](*place)) for place in places]
        found = fit(("N d", "N^2", "N^2 d^2 / M"), points)
        assert found.deviation < 1e-9
        assert found.constants["N^2"] == pytest.approx(square, abs=1e-6)
        assert found.constants["N^2 d^2 / M"] == pytest.approx(over_memory)


def test_a_wrong_result_is_not_counted(monkeypatch):
    monkeypatch.setattr(rule, "allowed_error", lambda *_: -1.0)
    with pytest.raises(io.WrongResult, match=r"out: error .* exceeds"):
        io.count(FLASH2, 64, 32, 32)


def test_the_command_writes_table_numbers_and_picture(tmp_path):
    picture = tmp_path / "io.png"
    sizes = ["--seqlens", "32,64", "--head-dim", "32", "--tiles", "32"]
    done = RUN.invoke(app, ["study", "io", *sizes, "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "equal" in done.output and "not" not in done.output
    told = RUN.invoke(app, ["study", "io", *sizes, "--json"])
    rows = io.rows_of(json.loads(told.stdout))
    assert [row.bytes for row in rows] == [row.predicted for row in rows] and len(rows) == 6
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option, text", [("--tiles", "24"), ("--seqlens", "-5"), ("--tiles", "x")])
def test_the_command_refuses_with_reasons(option, text):
    done = RUN.invoke(app, ["study", "io", "--seqlens", "32", "--tiles", "32", option, text])
    assert done.exit_code == 2
    assert "must be" in done.output


def test_the_committed_study_is_what_the_models_say():
    document = json.loads((DOCS / "io-study.json").read_text(encoding="utf-8"))
    rows = io.rows_of(document)
    assert len(rows) == 48
    for row in rows:
        assert row.bytes == EXACT[row.algorithm](row.seqlen, row.head_dim, row.tile)
    assert document == json.loads(json.dumps(io.document(rows)))


def test_the_document_shows_the_committed_numbers():
    rows = io.rows_of(json.loads((DOCS / "io-study.json").read_text(encoding="utf-8")))
    text = (DOCS / "io-study.md").read_text(encoding="utf-8")
    for row in rows:
        if row.algorithm == STANDARD:
            same = [r for r in rows if (r.seqlen, r.tile) == (row.seqlen, row.tile)]
            found = {r.algorithm: r.bytes for r in same}
            cells = [f"{found[name] / 1024:,.0f}" for name in EXACT]
            least = f"{least_bytes(row.seqlen, row.head_dim) / 1024:,.0f}"
            memory = f"{row.memory * 2 / 1024:g}"
            line = " | ".join([str(row.seqlen), str(row.tile), memory, *cells, least])
            assert f"| {line} |" in text
