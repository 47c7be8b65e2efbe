# %% [markdown]
# # A search, replayed
#
# Tuning a kernel takes hours of a machine, and no two runs are alike. Spaces that were measured
# exhaustively come with the package: on them a search of 60 trials takes a fraction of a second,
# needs no hardware, and gives the same result everywhere, to the bit.

# %%
import random
from itertools import accumulate

import matplotlib.pyplot as plt
import numpy as np

from tvm_flash.study.replay.table import find, read
from tvm_flash.study.search.curves import curves, quartiles, summaries
from tvm_flash.study.search.run import Budget, replay, study

table = read(find("forward_d64_s512"))
for knob in table.task.space.knobs:
    print(f"{knob.name:8} {knob.values!s:16} {knob.meaning}")
slower = np.array([s for s in table.seconds.values() if s]) / table.seconds[table.best]
print(f"{len(slower)} points, the median {np.median(slower) - 1:.0%} slower than the best one:")
print(dict(zip((knob.name for knob in table.task.space.knobs), table.best, strict=True)))

# %% [markdown]
# ## A strategy of one's own
#
# A strategy proposes points and observes what became of them. This one tries neighbours of the best
# point so far, and takes a quarter of its points at random.


# %%
class Climber:
    """Neighbours of the best point so far, and random points between them."""

    def __init__(self, task, seed):
        self.space, self.random = task.space, random.Random(seed)
        self.left = list(self.space.points)
        self.best = None

    def propose(self, count):
        self.random.shuffle(self.left)
        chance, nearest = self.left[: count // 4], sorted(self.left[count // 4 :], key=self.steps)
        taken = chance + nearest[: count - len(chance)]
        self.left = [point for point in self.left if point not in taken]
        return taken

    def observe(self, observations):
        for point, seconds in observations:
            if point in self.left:  # the start, which nobody proposed
                self.left.remove(point)
            if seconds is not None and (self.best is None or seconds < self.best[0]):
                self.best = seconds, point

    def steps(self, point):
        """Steps from the best point so far, summed over the knobs."""
        knobs = zip(self.space.knobs, point, self.best[1], strict=True)
        return sum(abs(k.values.index(a) - k.values.index(b)) for k, a, b in knobs)


# %% [markdown]
# ## Searches
#
# Each strategy searches from the same eight random starts, 60 trials each. Regret is the time of
# the best point so far over that of the best in the space, less 1.

# %%
BUDGET, SEEDS = Budget(trials=60), range(8)
runs = list(study(table, ["random", "coordinate", "ranked-xgb", "analytical"], SEEDS, BUDGET))
runs += [replay(table, "climber", seed, BUDGET, make=Climber) for seed in SEEDS]
found = curves(table, runs, BUDGET.trials)

print("regret in per cent, median (quartiles)   over all trials      at the end")
for summary in summaries(found):
    area, final = (
        "{:.1f} ({:.1f}, {:.1f})".format(*(100 * x for x in triple))
        for triple in (summary.area, summary.final)
    )
    print(f"{summary.strategy:40} {area:20} {final}")

# %%
figure, axes = plt.subplots(num="Regret by trials", figsize=(7, 4))
for name, each in found.items():
    middle, low, high = np.transpose([quartiles(column) for column in 100 * each.regret.T])
    (line,) = axes.plot(middle, label=name, drawstyle="steps-post")
    axes.fill_between(range(61), low, high, step="post", alpha=0.12, color=line.get_color())
axes.set(xlabel="trials", ylabel="regret, per cent", yscale="symlog", ylim=(0, None), xlim=(0, 60))
axes.set_yticks([0, 1, 3, 10, 30, 100], ["0", "1", "3", "10", "30", "100"])
axes.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Where they went
#
# Every point of the space, sorted by time, and the trials of one seed: a random search knows
# nothing of the points that it has seen, the others leave the slow ones alone after a while.

# %%
order = sorted((s, p) for p, s in table.seconds.items() if s is not None)
rank = {point: place for place, (_, point) in enumerate(order)}
shown = [
    run for run in runs if run.seed == 0 and run.strategy in ("random", "climber", "ranked-xgb")
]
figure, places = plt.subplots(
    1, 3, num="Trials of one seed by their rank", figsize=(9, 3.2), sharey=True
)
for axes, run in zip(places, shown, strict=True):
    tried = [rank.get(point, len(rank)) for point in (run.start, *run.points)]
    axes.scatter(range(len(tried)), tried, s=9)
    axes.step(range(len(tried)), list(accumulate(tried, min)), where="post", color="#D55E00")
    axes.set(title=run.strategy, xlabel="trial")
places[0].set_ylabel("rank among 558 (line: best so far)")
figure.tight_layout()
plt.show()

# %% [markdown]
# More strategies, both tables, twenty seeds and what they show:
# [search study](../docs/search-study.md). The same protocol tunes real kernels:
# [strategies](../docs/search-strategies.md).
