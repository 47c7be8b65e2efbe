"""The data set of cost models holds what was measured, split by spec; models are judged rightly."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replay_tables import write_table
from typer.testing import CliRunner

from tvm_flash.cli import study_models
from tvm_flash.cli.app import app
from tvm_flash.errors import TvmFlashError
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format
from tvm_flash.schedules.select import SCHEDULES
from tvm_flash.study.models import export, stores
from tvm_flash.study.models import scores as models
from tvm_flash.study.models.samples import of_logs, of_table, splits
from tvm_flash.study.models.stores import WIDTH, pooled, store_features

ROOT = Path(__file__).resolve().parents[2]
RUN = CliRunner()
SMALL = {"block_q": (64, 128, 256), "rows_s": (2, 4), "rows_o": (2, 4)}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return [
        write_table(folder / "narrow.jsonl", seed=1),
        write_table(folder / "wide.jsonl", seed=2, head_dim=128),
    ]


def command(*arguments):
    done = RUN.invoke(app, ["study", *map(str, arguments)])
    done.text = " ".join(done.output.replace("│", " ").split())
    return done


def test_an_exported_table_is_the_table(tables, tmp_path):
    table = write_table(tmp_path / "t.jsonl")
    output = tmp_path / "data.npz"
    done = command("export", "--table", tmp_path / "t.jsonl", "-o", output)
    assert done.exit_code == 0, done.output
    assert "nothing to test on" in done.text
    with np.load(output) as data:
        assert len(data["seconds"]) == len(table.measured)
        names = data["knob_names"].tolist()
        for row, (point, seconds) in enumerate(table.seconds.items()):
            assert seconds == data["seconds"][row] or math.isnan(data["seconds"][row])
            assert (seconds is None) == (data["outcome"][row] != "ok")
            config = json.loads(str(data["config"][row]))
            for name, value in zip(table.head["knobs"], point, strict=True):
                assert data["knobs"][row, names.index(f"log2 {name}")] == np.float32(
                    math.log2(value)
                )
                assert config[name] == value
        assert set(data["split"]) == {"train"} and set(data["group"]) == {0}
        assert json.loads(str(data["provenance"]))["samples_by_source"] == {
            "t": len(table.measured)
        }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data.npz", "t.jsonl"]


def test_schedules_share_the_columns_that_they_share(tables):
    samples = of_table(tables[0])[:3]
    config = SCHEDULES.rows["cpu.backward"].config().to_json()
    samples.append(replace(samples[0], direction="backward", config=config))
    values, names = export.knob_columns(samples)
    assert values.shape == (4, len(names)) == (4, len(set(names)))
    both, one = names.index("log2 block_q"), names.index("log2 key_rows")
    assert not np.isnan(values[:, both]).any()
    assert np.isnan(values[:3, one]).all() and values[3, one] == math.log2(config["key_rows"])


def test_the_committed_logs_become_a_data_set(tmp_path):
    output = tmp_path / "data.npz"
    done = command("export", "--logs", ROOT / "tuning_logs", "-o", output)
    assert done.exit_code == 0, done.output
    lines = sum(
        1 for path in (ROOT / "tuning_logs").rglob("*.jsonl") for _ in record_format.read(path)
    )
    with np.load(output) as data:
        assert len(data["seconds"]) == lines
        assert set(data["split"]) == {"train", "valid", "test"}
        for spec in set(data["spec"]):
            assert len(set(data["split"][data["spec"] == spec])) == 1
        assert (np.isnan(data["seconds"]) == (data["outcome"] != "ok")).all()
        assert data["problem"].shape == (lines, len(data["problem_names"]))
        assert len(data["group_names"]) == data["group"].max() + 1


def test_splits_are_by_spec_and_do_not_depend_on_order(tables):
    one = of_table(tables[0])[0]
    specs = [
        AttentionSpec(dtype="float32", head_dim=d, causal=c)
        for d in range(8, 88, 8)
        for c in (False, True)
    ]
    samples = [replace(one, spec=spec) for spec in specs]
    found = splits(samples)
    assert found == splits(samples[::-1]) and len(found) == 20
    assert [list(found.values()).count(kind) for kind in ("train", "valid", "test")] == [14, 3, 3]
    assert sorted(splits(samples[:3]).values()) == ["test", "train", "valid"]
    assert sorted(splits(samples[:2]).values()) == ["test", "train"]
    assert list(splits(samples[:1]).values()) == ["train"]


def test_stores_are_ragged_rows_with_offsets(tables):
    rng = np.random.default_rng(0)
    samples = of_table(tables[0])[:4]
    rows_of = [rng.random((count, WIDTH)) for count in (2, 0, 3, 1)]
    arrays = export.data_set(samples, rows_of).arrays
    assert arrays["store_offsets"].tolist() == [0, 2, 2, 5, 6]
    assert np.array_equal(arrays["stores"][2:5], rows_of[2].astype(np.float32))
    rows = pooled(rows_of)
    assert rows.shape == (4, 2 * WIDTH) and not rows[1].any()
    assert np.allclose(rows[2, WIDTH:], rows_of[2].max(axis=0))


@pytest.mark.slow
def test_the_stores_of_a_schedule_are_those_that_tvm_sees(tables, tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path))
    samples = of_table(tables[0])[:2]
    refused = replace(samples[0], config={**samples[0].config, "block_q": 7})
    gpu = replace(samples[0], target="sm_80")
    seen = []
    found = store_features([*samples, refused, gpu], 1, seen.append)
    assert len(seen) == 3 and [len(rows) for rows in found[2:]] == [0, 0]
    assert all(rows.shape[0] > 5 and rows.shape[1] == WIDTH for rows in found[:2])
    assert not np.array_equal(*found[:2])
    again = store_features(samples, 1, seen.append)
    assert all(np.array_equal(a, b) for a, b in zip(again, found, strict=False))


def test_parquet_holds_the_same_rows(tables, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    samples = of_table(tables[0])[:5]
    ones = [np.ones((n, WIDTH)) for n in (1, 2, 0, 1, 3)]
    data = export.data_set(samples, ones)
    export.write(data, tmp_path / "d.parquet", "parquet")
    read = parquet.read_table(tmp_path / "d.parquet")
    assert json.loads(read.schema.metadata[b"provenance"]) == data.provenance
    rows = read.to_pylist()
    assert [len(row["stores"]) for row in rows] == [WIDTH * n for n in (1, 2, 0, 1, 3)]
    for row, sample in zip(rows, samples, strict=True):
        assert row["config"] == json.dumps(dict(sample.config), sort_keys=True)
        assert row["knob: log2 rows_o"] == math.log2(sample.config["rows_o"])


def test_parquet_without_pyarrow_says_what_to_install(tables, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TvmFlashError, match=r"pip install 'tvm-flash\[study\]'"):
        export.write(export.data_set(of_table(tables[0])), tmp_path / "d.parquet", "parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give --table or --logs"),
        (["--logs", "."], "holds no tuning logs"),
        (["--table", "t.jsonl", "--format", "csv"], "must be one of npz, parquet"),
        (["--table", "t.jsonl", "-o", "no/where.npz"], "cannot be written"),
        (["--table", "nowhere"], "not a file"),
    ],
)
def test_the_export_refuses_with_reasons(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "t.jsonl", knobs=SMALL)
    done = command("export", "-o", "d.npz", *options)
    assert done.exit_code == 2 and message in done.text, done.output
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.parametrize("output", ["no/where.npz", "/dev/null"])
def test_the_export_does_not_compute_what_it_cannot_write(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stores, "store_features", lambda *_: pytest.fail("computed"))
    write_table(tmp_path / "t.jsonl", knobs=SMALL)
    done = command("export", "--table", "t.jsonl", "--stores", "-o", output)
    assert done.exit_code == 2 and "cannot be written" in done.text


def test_stores_of_two_tables_of_one_name_are_kept_apart(tmp_path, monkeypatch):
    def counted(samples, jobs, progress):
        return [np.full((1, WIDTH), sample.spec.head_dim, np.float32) for sample in samples]

    monkeypatch.setattr(stores, "store_features", counted)
    found = []
    for head_dim in (64, 128):
        (tmp_path / str(head_dim)).mkdir()
        found.append(
            write_table(tmp_path / str(head_dim) / "t.jsonl", knobs=SMALL, head_dim=head_dim)
        )
    one, other = study_models._stores(1)(found)
    assert one[0, 0] == 64 and other[0, 0] == 128


def test_logs_that_cannot_be_read_are_no_samples(tmp_path):
    (tmp_path / "x86-64-v4").mkdir()
    (tmp_path / "x86-64-v4" / "float32_d64.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="holds no tuning logs"):
        of_logs(tmp_path)


def test_scores_are_judged_as_their_definitions_say():
    seconds = np.array([4.0, 3.0, 2.0, 1.0] * 5) + np.arange(20) / 100
    perfect = models.judged(-seconds, seconds)
    assert perfect == pytest.approx((1, 1, 1, 0))
    worst = models.judged(seconds, seconds)
    assert worst[:2] == pytest.approx((-1, -1)) and worst[2] == 0 and worst[3] > 1
    assert models.judged(np.zeros(20), seconds)[:2] == (0.0, 0.0)
    failed = np.where(np.arange(20) == 3, np.nan, seconds)
    few = np.where(np.arange(20) < 2, seconds, np.nan)
    assert models.judged(-seconds, few)[2:] == (0, np.inf)
    assert models.judged(np.where(np.arange(20) < 2, 9.0, 0.0), few)[2:] == (1, 0)
    assert models.judged(-seconds, np.full(20, np.nan)) == (0, 0, 0, np.inf)
    tempted = models.judged(np.where(np.arange(20) == 3, 9.0, -seconds), failed)
    assert tempted == pytest.approx((1, 1, 0.9, 0))


@pytest.mark.parametrize("name", ["ridge", "xgb"])
def test_models_order_what_they_have_not_seen(tables, name):
    inside = models.within(tables[0], name, 64, 2)
    across = models.transfer(*tables, name, 1)
    assert inside.spearman > 0.5 and across.spearman > 0.5
    assert inside.samples == 64 and across.samples == len(tables[0].measured)
    assert inside == models.within(tables[0], name, 64, 2)
    assert abs(models.within(tables[0], "random", 64, 5).spearman) < 0.3


def test_the_model_command_writes_scores(tables, tmp_path):
    for table in tables:
        write_table(
            tmp_path / f"{table.name}.jsonl", head_dim=64 if table.name == "narrow" else 128
        )
    places = [x for t in tables for x in ("--table", tmp_path / f"{t.name}.jsonl")]
    options = ["--models", "random,ridge", "--seeds", 2, "--json"]
    done = command("models", *places, *options)
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)
    assert [(s["train"], s["test"]) for s in scores[::2]] == [
        ("narrow", "narrow"), ("wide", "wide"), ("narrow", "wide"), ("wide", "narrow"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, message",
    [
        (["--models", "gpt"], "'gpt' must be some of"),
        (["--samples", "1"], "samples=1 must be between 2 and"),
        (["--samples", "9999"], "samples=9999 must be between 2 and"),
    ],
)
def test_the_model_command_refuses_with_reasons(tmp_path, options, message):
    write_table(tmp_path / "t.jsonl", knobs=SMALL)
    done = command("models", "--table", tmp_path / "t.jsonl", *options)
    assert done.exit_code == 2 and message in done.text, done.output


def test_tables_of_different_schedules_do_not_transfer(tables):
    class Other:
        name = "other"
        task = replace(tables[0].task, space=replace(tables[0].task.space, name="cpu.backward"))

    with pytest.raises(ValueError, match=r"of cpu\.backward"):
        models.transfer(Other(), tables[0], "ridge", 1)
