"""Processes that stay, one a rank of a gloo group, and run functions of modules beside this one."""

from __future__ import annotations

import importlib
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

# Where a rank waits for another that has failed.
PATIENCE = 240


class Processes:
    """``world`` ranks. ``run`` calls a function on each and gives what they return."""

    def __init__(self, world: int):
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, world, store), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, name: str, *arguments) -> list:
        """What the function ``name``, "module.function", returns on each rank.

        AssertionError with the traceback of a rank that raised.
        """
        for pipe in self._pipes:
            pipe.send((name, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(PATIENCE), f"rank {rank} does not answer"
            answers.append(pipe.recv())
        failed = [f"rank {n}: {x[1]}" for n, x in enumerate(answers) if not x[0]]
        assert not failed, "\n".join(failed)
        return [answer[1] for answer in answers]

    def close(self) -> None:
        """End the processes, which hold nothing that outlives them."""
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _serve(pipe, rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while True:
        name, arguments = pipe.recv()
        module, _, function = name.partition(".")
        try:
            pipe.send((True, getattr(importlib.import_module(module), function)(*arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
