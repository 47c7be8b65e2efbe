"""Cells that are measured in a process of their own: what fails costs itself alone."""

import pytest
from bench_documents import CELLS, FLOORS, HASTE, HOST, TINY
from rehearsed_gpu import Inline

from tvm_flash import bench
from tvm_flash.bench import measuring, run
from tvm_flash.errors import HardwareFailure

ON_A_GPU = bench.Suite("tiny", TINY.sections, HASTE, device="cuda")
GPU_CELLS = ON_A_GPU.cells([1])


@pytest.fixture
def apart(monkeypatch):
    """An ``Apart`` whose process is this one; ``renewed`` counts."""

    class Counted(Inline):
        renewed = 0

        def renew(self):
            Counted.renewed += 1

    monkeypatch.setattr(measuring, "Workers", Counted)
    with measuring.Apart(GPU_CELLS, HASTE) as made:
        yield made, Counted


def test_a_context_that_a_contender_broke_is_left(apart, monkeypatch):
    made, counted = apart
    found = {"missing": {"flex": "RuntimeError: CUDA error: an illegal instruction"}}
    monkeypatch.setattr(measuring, "measured_cell", lambda *_: found)
    assert made.cell(GPU_CELLS[0]) == found and counted.renewed == 1
    monkeypatch.setattr(measuring, "measured_cell", lambda *_: {"missing": {"flex": "no triton"}})
    made.cell(GPU_CELLS[0])
    assert counted.renewed == 1
    monkeypatch.setattr(measuring, "measured_cell", lambda *_: {"right": False})
    made.cell(GPU_CELLS[0])
    assert counted.renewed == 2, "a wrong kernel may have written anywhere"


def test_a_process_that_failed_is_an_error_of_the_cell(apart, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(measuring, "measured_cell", broken)
    with pytest.raises(measuring.CellFailed, match="crash: RuntimeError: CUDA error"):
        apart[0].cell(GPU_CELLS[0])


def test_a_lost_gpu_ends_the_run(monkeypatch):
    class Lost(measuring.Here):
        def cell(self, cell):
            raise HardwareFailure("a worker process did not start: no CUDA GPUs are available")

        def floors(self, cell):
            return {**FLOORS, "threads": 1, "isa": "cuda"}

    monkeypatch.setattr(run, "Apart", Lost)
    document = bench.Document(ON_A_GPU, dict(HOST))
    with pytest.raises(HardwareFailure):
        list(bench.Runner(document, HASTE).run(GPU_CELLS))
    assert not document.cells, "the next run measures it"


@pytest.mark.sweep
def test_real_processes(tmp_path):
    """One that ends, one that hangs, and a third that answers."""
    with measuring.Apart(CELLS, HASTE) as made:
        with pytest.raises(measuring.CellFailed, match="exit status 3"):
            made._answer(60, _ends, 3)
        with pytest.raises(measuring.CellFailed, match=r"no answer within 0.5 s"):
            made._answer(0.5, _hangs)
        assert made._answer(60, dict, [("right", True)]) == {"right": True}


def _ends(status):
    import os

    os._exit(status)


def _hangs():
    import time

    time.sleep(3600)
