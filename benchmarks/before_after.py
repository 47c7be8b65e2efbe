"""Times of CPU kernels in two checkouts of this repository, in turns: what a change costs.

python benchmarks/before_after.py BEFORE AFTER --json FILE

Each checkout runs in a process of its own (checkout_calls.py). Every round times one call in both,
which take turns in being first. A ratio is after over before, the median of rounds: above 1 the
change costs time. Where code and arrays lie differs between processes, by up to 6 % of a backward's
time, so both start anew several times; the interval is that of the median over these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from tvm_flash.artifact.folder import replacing
from tvm_flash.bench.host import describe
from tvm_flash.bench.problems import Problem
from tvm_flash.bench.table import Table, numbers, words
from tvm_flash.bench.timing import four_digits, in_turns

ANSWERS = Path(__file__).parent / "checkout_calls.py"
DIRECTIONS = ("forward", "backward")
SHORTEST = 2e-3  # seconds of a sample: shorter calls are repeated within it


def problems() -> list[Problem]:
    """One of each kind of kernel that a CPU has."""
    dtypes = ("float32", "bfloat16", "float16")
    wide = [
        Problem(dtype, head_dim, 1024, causal, heads=4)
        for dtype in dtypes
        for head_dim in (64, 128)
        for causal in (False, True)
    ]
    other_widths = [Problem("float32", width, 1024, True, heads=4) for width in (80, 256)]
    grouped = [Problem(dtype, 64, 4096, False, seqlen_q=1, kv_heads=2) for dtype in dtypes]
    windowed = [Problem(dtype, 64, 2048, True, heads=4, window=256) for dtype in dtypes[:2]]
    return [*wide, *other_widths, *windowed, *grouped, Problem("float32", 64, 16, True, heads=2)]


class Checkout:
    """A process that runs the package of ``root``."""

    def __init__(self, root: Path, threads: int):
        # Workers that wait must sleep: the other checkout runs meanwhile.
        settings = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
        passive = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
        self._process = subprocess.Popen(
            [sys.executable, ANSWERS, root.resolve()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings | passive,
        )

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()

    def prepare(self, problem: Problem) -> None:
        """Draw inputs, and compile and run each direction once."""
        self._ask(problem.to_json())

    def seconds(self, direction: str, repeats: int) -> float:
        """Seconds of a call, of so many in a row."""
        return self._ask([direction, repeats])

    def _ask(self, question) -> float:
        print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a checkout stopped with status {self._process.wait()}; see above")
        return json.loads(line)


def measured(before: Checkout, after: Checkout, problem: Problem, rounds: int) -> list[dict]:
    """The medians of a pair of processes, in seconds, for each direction of ``problem``."""
    checkouts = {"before": before, "after": after}
    for checkout in checkouts.values():
        checkout.prepare(problem)
    found = []
    for direction in DIRECTIONS:
        watches = {name: partial(each.seconds, direction) for name, each in checkouts.items()}
        once = max(watch(1) for watch in watches.values())
        repeats = dict.fromkeys(watches, max(1, round(SHORTEST / once)))
        samples = in_turns(watches, repeats, lambda _, turns: turns >= rounds)
        ratio = np.median(np.divide(samples["after"], samples["before"]))
        seconds = {f"{name}_seconds": np.median(taken) for name, taken in samples.items()}
        found.append({"problem": problem.name, "direction": direction, **seconds, "ratio": ratio})
    return found


def summary(of_processes: list[dict]) -> dict:
    """One row of what pairs of processes measured for the same problem and direction."""
    medians = {
        name: four_digits(np.median([one[name] for one in of_processes]))
        for name in ("before_seconds", "after_seconds", "ratio")
    }
    ratios = [one["ratio"] for one in of_processes]
    interval = bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
    row = {name: of_processes[0][name] for name in ("problem", "direction")}
    return row | medians | {"interval": [four_digits(end) for end in interval]}


def table(rows: list[dict]) -> Table:
    """Milliseconds and ratios."""
    columns = [
        *words("problem", "direction"),
        *numbers("before", "after", unit="ms"),
        *numbers("after / before", "95 % of it"),
    ]
    cells = [
        [
            row["problem"],
            row["direction"],
            *(f"{1e3 * row[name]:.4g}" for name in ("before_seconds", "after_seconds")),
            f"{row['ratio']:.3f}",
            "{:.3f} to {:.3f}".format(*row["interval"]),
        ]
        for row in rows
    ]
    return Table("Times before and after", tuple(columns), cells)


def main() -> None:
    """Measure all problems, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout, for example of git worktree add")
    parser.add_argument("after", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--processes", type=int, default=9, help="pairs of them, two or more")
    parser.add_argument("--match", default="", help="problems whose name contains this")
    parser.add_argument("--json", type=Path, dest="path", help="keep the rows here")
    given = parser.parse_args()
    found: list[list[dict]] = []
    for number in range(given.processes):
        with (
            Checkout(given.before, given.threads) as before,
            Checkout(given.after, given.threads) as after,
        ):
            matching = (problem for problem in problems() if given.match in problem.name)
            found.append(
                [row for p in matching for row in measured(before, after, p, given.rounds)]
            )
        print(f"processes {number + 1} of {given.processes}", file=sys.stderr)
    rows = [summary(list(same)) for same in zip(*found, strict=True)]
    print("\n".join(table(rows).markdown()))
    if given.path:
        how = {name: getattr(given, name) for name in ("threads", "rounds", "processes")}
        host = describe().to_json() | how
        with replacing(given.path) as draft:
            draft.write_text(json.dumps({"host": host, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
