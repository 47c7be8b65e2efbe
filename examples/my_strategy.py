"""A search strategy of one's own: tries the points nearest to the best one so far.

tvm-flash study search --strategies random,my_strategy:Nearest    # in this folder
"""

import random


class Nearest:
    """Points that are the fewest steps from the best so far, ties at random."""

    def __init__(self, task, seed):
        self.space, self.random = task.space, random.Random(seed)
        self.left = list(self.space.points)
        self.best = (float("inf"), self.left[0])

    def propose(self, count):
        self.random.shuffle(self.left)
        self.left.sort(key=self.distance)
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def observe(self, observations):
        for point, seconds in observations:  # seconds: None where the point failed
            if point in self.left:  # the start, which nobody proposed
                self.left.remove(point)
            if seconds is not None and point in self.space:  # a start may lie outside
                self.best = min(self.best, (seconds, point))

    def distance(self, point):
        """Steps between neighbouring values, summed over the knobs."""
        trios = zip(self.space.knobs, point, self.best[1], strict=True)
        return sum(abs(k.values.index(a) - k.values.index(b)) for k, a, b in trios)
