"""Lines of tuning logs as the tests write them."""

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format
from tvm_flash.schedules.records import Choice, best_config
from tvm_flash.schedules.target import host_target

SPEC = AttentionSpec(dtype="float32", head_dim=64)
CAUSAL = AttentionSpec(dtype="float32", head_dim=64, causal=True)
TARGET = host_target().name


def line(spec=SPEC, bucket="long", direction="forward", best=True, day=1, **changes):
    """A valid line, with ``changes``."""
    config = {"schedule": f"cpu.{direction}", "block_k": 32}
    return {
        "format": 1,
        "target": TARGET,
        "cpu": "a CPU",
        "spec": spec.to_json(),
        "direction": direction,
        "bucket": bucket,
        "problem": dict.fromkeys(record_format.SIZES, 2),
        "config": config,
        "outcome": "ok",
        "seconds": [1e-3, 1.1e-3],
        "incumbent_seconds": [1.2e-3, 1.3e-3],
        "error": 1e-7,
        "allowed": 1e-5,
        "strategy": "coordinate",
        "seed": 0,
        "trial": 3,
        "date": f"2026-11-{day:02}T12:00:00+00:00",
        "versions": {"tvm": "0"},
        "machine": {"cores": 4},
        "best": best,
        **changes,
    }


def config_of(block_k, **numbers):
    return {"schedule": "cpu.forward", "block_k": block_k, **numbers}


def chosen(folder, spec=SPEC, bucket="long", direction="forward", **options) -> Choice:
    """What a build for ``TARGET`` takes of the logs in ``folder``."""
    return best_config(spec, direction, TARGET, bucket, folders=[folder], **options)
