"""Static rankings from compiled kernels: what is counted, and how it agrees with formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError, UnsupportedSpec

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from tvm_flash.codegen.cuda import ptx_of
from tvm_flash.problem.arguments import named_sizes
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.schedules.cuda.space import cuda_space
from tvm_flash.tune.analytical import counted as counted_module
from tvm_flash.tune.analytical import cuda
from tvm_flash.tune.analytical.counted import Counted, count, kernel_works, shared_bytes
from tvm_flash.tune.analytical.cuda import chosen_points, rank_cuda
from tvm_flash.tune.analytical.estimated import estimated_work
from tvm_flash.tune.analytical.ranking import ranking_path, read_ranking
from tvm_flash.tune.trial import Sizes

SPEC = AttentionSpec(dtype="float16", head_dim=64, causal=True)
ARCH = ARCHS["sm_80"]
SIZES = Sizes(2, 4, 2, 256, 256)
NUMBERS = {
    "forward": {"block_q": 32, "block_k": 32, "num_warps": 2, "q_in_registers": False},
    "backward": {"block_q": 32, "block_k": 32, "num_warps": 2},
}


def small(direction):
    return replace(cuda_space(SPEC, direction, ARCH).start, **NUMBERS[direction])


@pytest.fixture(scope="module", params=["forward", "backward"])
def compiled(request):
    config = small(request.param)
    ((_, program),) = cuda_programs(SPEC, request.param, (ARCH,), config.to_json())
    return request.param, config, program, ptx_of(program)


def test_counts_agree_with_formulas(compiled):
    direction, config, program, ptx = compiled
    counted = count(SPEC, direction, program, ptx)
    assert counted.failure == "" and 0 < counted.error <= counted.allowed
    assert count(SPEC, direction, program, ptx) == counted, "kept on disk"
    works = kernel_works(SPEC, program, counted, SIZES, [200] * len(program.launches))
    main = max(works, key=lambda work: work.tile.tensor)
    formula = estimated_work(SPEC, config, SIZES, 200)
    assert main.tile.tensor == formula.tile.tensor, "every product of a tile, and no other"
    assert main.base.tensor == pytest.approx(0, abs=1)
    assert list(main.tiles) == list(formula.tiles) and main.overlap == formula.overlap
    for name in ("special", "shared", "l2"):
        seen, said = getattr(main.tile, name), getattr(formula.tile, name)
        assert seen == pytest.approx(said, rel=0.25), name
    assert main.tile.issued > main.tile.tensor / 4096
    assert [len(work.tiles) for work in works if not any(work.tiles)] == (
        [] if direction == "forward" else [x.grid(_extents())[0] for x in program.launches[::2]]
    )


def test_counts_by_other_code_are_not_taken(compiled, monkeypatch, tmp_path):
    direction, _, program, ptx = compiled
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path))
    for version in ("one", "other"):
        monkeypatch.setattr(counted_module, "_sources", lambda version=version: [version])
        found = Counted(version, None, None)
        monkeypatch.setattr(counted_module, "_count", lambda *_, found=found: found)
        assert count(SPEC, direction, program, ptx) == found
    monkeypatch.undo()
    sources = counted_module._sources()
    assert any("class Report" in text for text in sources), "the interpreter's"
    assert any("def solved" in text for text in sources)


def _extents():
    return named_sizes(SIZES)


def test_a_wrong_kernel_is_told(compiled):
    direction, _, program, ptx = compiled
    broken = [text.replace("ex2.approx.ftz.f32", "neg.ftz.f32") for text in ptx]
    assert broken != ptx
    assert count(SPEC, direction, program, broken).failure


def test_bytes_through_shared_memory():
    assert shared_bytes("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16") == 512
    assert shared_bytes("ld.shared.v4.b32") == 512 and shared_bytes("st.shared.b32") == 128
    assert shared_bytes("st.shared.v2.f32") == 256 and shared_bytes("ld.shared.b16") == 64
    assert shared_bytes("cp.async.cg.shared.global.L2::128B") == 512
    assert shared_bytes("ld.global.v4.b32") == 0


def test_points_are_drawn_alike_on_all_architectures():
    spaces = {name: cuda_space(SPEC, "forward", ARCHS[name]) for name in ("sm_80", "sm_90")}
    drawn = {name: chosen_points(space, 30, seed=1) for name, space in spaces.items()}
    assert drawn["sm_80"][0] == spaces["sm_80"].point(spaces["sm_80"].start)
    assert all(len(set(points)) == 30 for points in drawn.values())
    assert len(set(drawn["sm_80"]) & set(drawn["sm_90"])) > 20
    assert chosen_points(spaces["sm_80"], 30, seed=1) == drawn["sm_80"]
    assert chosen_points(spaces["sm_80"], 30, seed=2) != drawn["sm_80"]
    assert len(chosen_points(spaces["sm_80"], 10**6, seed=0)) == len(spaces["sm_80"].points)
    with pytest.raises(ValueError, match="trials=0"):
        chosen_points(spaces["sm_80"], 0, seed=0)


@pytest.mark.slow
def test_a_ranking_of_a_small_space(tmp_path, monkeypatch):
    space = cuda_space(SPEC, "forward", ARCH)
    values = {"block_q": [32, 64], "block_k": [32], "num_warps": [2], "stages": [1, 2]}
    fixed = {"q_in_registers": [False], "min_blocks": [0]}
    start = small("forward")
    narrow = replace(space.restricted({**values, **fixed}), start=start)
    monkeypatch.setattr("tvm_flash.schedules.cuda.space.cuda_space", lambda *_: narrow)
    steps = []
    ranking = rank_cuda(
        SPEC, "forward", "sm_80", 9, 0, tmp_path, lambda *step: steps.append(step), SIZES
    )
    assert ranking == read_ranking(ranking_path(tmp_path, "sm_80", SPEC, "forward"))
    ranked, unranked = ranking["ranking"], ranking["unranked"]
    assert len(ranked) + len(unranked) == len(narrow.points) == len(steps)
    assert [done for done, *_ in steps] == list(range(1, len(steps) + 1))
    assert ranking["default"] == {
        "config": start.to_json(),
        "rank": 1 + [entry["config"] for entry in ranked].index(start.to_json()),
    }
    assert all(entry["outcome"] == "spill" and entry["stack"] for entry in unranked)
    for entry in ranked:
        loop = entry["loop"]
        assert loop["instructions"]["products"] and 0 < loop["tensor_share"][0] <= 1
        assert entry["bound"] == max(loop["parts"], key=loop["parts"].get)
    assert all(entry["registers"] <= 255 for entry in ranked)


def test_what_cannot_be_lowered_is_invalid(monkeypatch):
    def refuse(*_):
        raise ValueError("no such kernel")

    monkeypatch.setattr("tvm_flash.schedules.cuda.select.cuda_programs", refuse)
    config = small("forward")
    entry = cuda._started(None, SPEC, "forward", ARCH, config)
    judged = cuda._finished(SPEC, "forward", ARCH, SIZES, *entry)
    assert (judged.outcome, judged.note) == ("invalid", "no such kernel")


def test_what_is_not_modelled_is_refused():
    for direction, reason in (
        ("backward_deterministic", "tune backward"), ("forward_split", "few queries"),
        ("append", "no numbers"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedSpec, match=f"'{direction}' is not searched.*{reason}"):
            rank_cuda(SPEC, direction, "sm_80", 3)
    with pytest.raises(UnsupportedSpec, match="sm_100"):
        rank_cuda(SPEC, "forward", "sm_100", 3)
