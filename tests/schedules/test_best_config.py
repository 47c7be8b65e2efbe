"""Which recorded config a build takes: exact, nearest, merged, refused; and what follows it."""

import pytest
from record_lines import CAUSAL, SPEC, TARGET, chosen, config_of, line

import tvm_flash
from tvm_flash.artifact.library import verify
from tvm_flash.codegen import jit, versions
from tvm_flash.codegen.build import build
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import records, select
from tvm_flash.schedules.record_format import append
from tvm_flash.schedules.records import Choice, best_config
from tvm_flash.schedules.target import host_target


def test_exact(logs):
    folder = logs(line(config=config_of(96)), line(CAUSAL, config=config_of(128)))
    assert chosen(folder) == Choice(config_of(96), f"tuning_logs/{TARGET}/float32_d64.jsonl:exact")
    variant = AttentionSpec(dtype="float32", head_dim=64, causal=True, softcap=True, alibi=True)
    found = chosen(folder, variant)
    assert found.config == config_of(128), "other features do not count"
    assert found.source == f"tuning_logs/{TARGET}/float32_d64_causal.jsonl:exact"


def test_the_records_of_the_very_spec_come_first(logs):
    capped = AttentionSpec(dtype="float32", head_dim=64, softcap=True)
    alibi = AttentionSpec(dtype="float32", head_dim=64, alibi=True)
    folder = logs(
        line(config=config_of(32), day=1),
        line(capped, config=config_of(96), day=2),
        line(config=config_of(64), day=3),
        line(capped, config=config_of(128), day=2, trial=9),
    )
    assert chosen(folder, capped).config == config_of(128)
    assert chosen(folder).config == chosen(folder, alibi).config == config_of(64)


def test_a_folder_of_records_comes_before_the_packages_own(logs, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "log_folders", lambda: (tmp_path / "own",))
    append(tmp_path / "own", line(config=config_of(32), day=9))
    append(tmp_path / "own", line(CAUSAL, config=config_of(96)))
    folders = records.record_folders(logs(line(config=config_of(128))))
    for spec, block_k in ((SPEC, 128), (CAUSAL, 96)):
        (first, *_) = select.choose_all(spec, "forward", host_target(), ["long"], folders)
        assert first.config.block_k == block_k
    assert records.record_folders(None) is None
    with pytest.raises(ValueError, match="nowhere' is no folder"):
        records.record_folders(tmp_path / "nowhere")


def test_only_the_latest_best_line_counts(logs):
    folder = logs(
        line(config=config_of(32), day=2),
        line(config=config_of(64), day=3),
        line(config=config_of(96), day=1),
        line(config=config_of(128), day=9, best=False),
    )
    assert chosen(folder).config == config_of(64)
    logs(line(config=config_of(160), day=3, trial=9))
    assert chosen(folder).config == config_of(160), "the file changed, and trials break ties"


def test_logs_merge_by_concatenation(logs):
    folder = logs(line(config=config_of(64), day=2), line(config=config_of(32), day=1))
    path = folder / TARGET / "float32_d64.jsonl"
    first = chosen(folder)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*reversed(lines), *lines, *lines]) + "\n")
    assert chosen(folder) == first


NEAREST = [
    # head_dim first, then the bucket, last causal or full
    (
        AttentionSpec(dtype="float32", head_dim=72),
        "long",
        [("d64", "short", 1), ("d96", "long", 2)],
        1,
    ),
    (SPEC, "long", [("d64", "short", 1), ("d64", "medium", 2)], 2),
    (SPEC, "short", [("d64", "long", 1), ("d64", "medium", 2)], 2),
    (SPEC, "long", [("d64", "medium", 1), ("d64_causal", "long", 2)], 2),
    (SPEC, "long", [("d64", "medium", 1), ("d64_causal", "medium", 2)], 1),
    (SPEC, "long", [("d64_causal", "long", 1), ("d80", "long", 2)], 1),
    (AttentionSpec(dtype="float32", head_dim=128), "long", [("d64", "long", 1)], 1),
    (AttentionSpec(dtype="float32", head_dim=130), "long", [("d64", "long", 1)], None),
    (AttentionSpec(dtype="float32", head_dim=64, head_dim_v=32), "long", [("d64", "long", 1)], 1),
    (AttentionSpec(dtype="bfloat16", head_dim=64), "long", [("d64", "long", 1)], None),
    (SPEC, "tiny", [("d64", "short", 1), ("d64", "decode", 2)], None),
    (SPEC, "decode", [("d64", "long", 1), ("d48", "decode", 2)], 2),
]


@pytest.mark.parametrize(("spec", "bucket", "known", "expected"), NEAREST, ids=str)
def test_nearest(logs, spec, bucket, known, expected):
    for stem, measured, number in known:
        width, causal = stem.removesuffix("_causal"), stem.endswith("_causal")
        other = AttentionSpec(dtype="float32", head_dim=int(width[1:]), causal=causal)
        logs(line(other, measured, config=config_of(number)))
    found = chosen(logs.folder, spec, bucket)
    if expected is None:
        assert found == Choice(None, "default")
    else:
        assert found.config == config_of(expected)
        assert found.source.startswith(f"nearest: tuning_logs/{TARGET}/float32_d")


def test_directions_and_targets_do_not_mix(logs):
    folder = logs(line(direction="backward"))
    assert chosen(folder).source == "default"
    assert chosen(folder, direction="backward").source.endswith(":exact")
    other = best_config(SPEC, "backward", "x86-64-v2", "long", folders=[folder])
    assert other == Choice(None, "default")
    assert best_config(SPEC, "forward", TARGET, "long", folders=[]).config is None


def test_a_config_that_cannot_serve_gives_way_to_the_next(logs):
    folder = logs(line(config=config_of(1)), line(CAUSAL, config=config_of(2)))
    found = chosen(folder, reasons=lambda config, _: ["no"] * (config["block_k"] == 1))
    assert found.config == config_of(2) and found.source.startswith("nearest")


@pytest.fixture
def logs_in_use(logs, monkeypatch):
    """``logs`` instead of the package's own."""
    monkeypatch.setattr(records, "log_folders", lambda: (logs.folder,))
    return logs


@pytest.mark.parametrize(
    "config",
    [
        config_of(61),
        config_of(64, invented=1),
        {"schedule": "cpu.invented"},
        {"schedule": "cpu.backward"},
    ],
    ids=str,
)
def test_records_that_this_release_cannot_use(logs_in_use, config):
    logs_in_use(line(config=config))
    found = select.choose(SPEC, "forward", host_target())
    assert found.source == "default" and not found.config.reasons(SPEC)


def test_a_record_of_another_head_dim_may_not_pad_further(logs_in_use):
    spec = AttentionSpec(dtype="float32", head_dim=80)
    default = select.choose(spec, "backward", host_target()).config
    wide = {**default.to_json(), "head_lanes": 128}
    logs_in_use(line(direction="backward", config=wide))
    assert select.choose(spec, "backward", host_target()).source == "default"
    assert select.choose(SPEC, "backward", host_target()).source.endswith(":exact"), "measured"


def test_the_manifest_says_where_each_config_comes_from(logs_in_use, tmp_path):
    logs_in_use(
        line(bucket="long", config=config_of(96)), line(bucket="tiny", config=config_of(32))
    )
    path = build([SPEC], path=tmp_path / "k", directions=["forward"])
    kernels = {bucket: r for r in verify(path)[1].kernels for bucket in r.buckets}
    place = f"tuning_logs/{TARGET}/float32_d64.jsonl"
    assert kernels["long"].config["block_k"] == 96 and kernels["tiny"].config["block_k"] == 32
    assert kernels["long"].config_source == f"nearest: {place}:long; {place}:exact"
    assert kernels["tiny"].config_source == f"{place}:exact"
    assert kernels["decode"].config_source == "default"
    assert kernels["short"] is kernels["long"]


def test_the_cache_follows_the_records(logs_in_use, monkeypatch, tmp_path):
    """A new record makes a new plan and kernel; one for another problem makes a plan alone."""
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(versions.tvm_flash, "__path__", [*tvm_flash.__path__, str(tmp_path / "x")])
    monkeypatch.setattr(records, "log_folders", lambda: (tmp_path / "x" / "tuning_logs",))
    target, logs = host_target(), tmp_path / "x" / "tuning_logs"

    def state():
        plan = jit._plan(SPEC, "forward", target, "long")
        return plan, jit._key(SPEC, "forward", target, plan), versions.records_digest(TARGET)

    before = state()
    assert state() == before
    append(logs, line(AttentionSpec(dtype="bfloat16", head_dim=256)))
    other = state()
    assert other[:2] == before[:2] and other[2] != before[2]
    append(logs, line(config=config_of(96)))
    after = state()
    assert after[0]["config"]["block_k"] == 96 and after[0]["source"].endswith(":exact")
    assert after[1] != before[1]
