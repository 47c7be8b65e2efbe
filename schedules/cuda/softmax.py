"""The online softmax on accumulator fragments: scores to probabilities, row statistics."""

from __future__ import annotations

from functools import reduce

from tvm import tirx
from tvm.script import tirx as T

from ...definition.derive.bound import BoundRecurrence
from ...definition.scores import LOG2E, SLACK, BoundScores, Scores
from .arch import FULL_WARP
from .builder import CudaKernel, assign, name_registers, store, when
from .fragments import Accumulator

# Ends of what a dot product is multiplied by: neither 0 * inf nor inf * 0 may arise.
_LEAST_FACTOR, _MOST_FACTOR = 1.0e-37, 3.0e38

# A folded maximum (log2 units) up to here is rounded by less than 2^-8; beyond, scores are taken
# from their maximum before they are multiplied.
_FOLDED = 2.0**16


def quad_reduce(value: tirx.Buffer, index: tuple, combine) -> None:
    """Combine over the four lanes that share a row, in place; all of them get the result."""
    for distance in (1, 2):
        held = value[index]
        other = T.tvm_warp_shuffle_xor(T.uint32(FULL_WARP), held, distance, 32, 32)
        store(value, index, combine(held, other))


def any_lane(condition):
    """Whether it holds in any lane of the warp (vote.sync.any): no lane branches alone."""
    source = (
        "__device__ __forceinline__ bool tvm_flash_any(bool x)"
        " { return __any_sync(0xffffffffu, x); }"
    )
    return T.cuda.func_call("tvm_flash_any", condition, source_code=source, return_type="bool")


def block_scores(kernel: CudaKernel, scores: Scores, tile, head) -> BoundScores:
    """The scores of the entry of a block's ``tile`` and a head, with 1 / softcap in a register."""
    return scores.at(tile.batch, head, held_inverse_cap(kernel, scores), (tile.rows, tile.keys))


def held_inverse_cap(kernel: CudaKernel, scores: Scores):
    """1 / softcap in a register; None where scores have no cap."""
    if not scores.spec.softcap:
        return None
    return kernel.scalar(scores.inverse_cap, "float32", "inverse_cap")


def scale_scores(bound: BoundScores, s: Accumulator, q_index, k_index) -> None:
    """Dot products to scores, before the mask; q_index(m, half), k_index(n, odd)."""
    s.map(lambda value, m, n, r: bound.scaled(value, q_index(m, r // 2), k_index(n, r % 2)))


def mask_scores(bound: BoundScores, s: Accumulator, boundary, q_index, k_index) -> None:
    """-inf where the mask or the end of the keys hides one; only a ``boundary`` tile pays."""
    with when(boundary):
        s.map(lambda value, m, n, r: bound.masked(value, q_index(m, r // 2), k_index(n, r % 2)))


class MaximumUnits:
    """What maxima of rows are in: scores, or dot products where ``factor`` makes scores of them.

    factor: a register, log2 e included, so that exponents are a multiply-add; None for scores.
    """

    def __init__(self, kernel: CudaKernel, scores: Scores, row: BoundRecurrence):
        self._kernel, self._row, self.factor = kernel, row, None
        # States with a share before the first key start in natural units.
        if scores.scale_only and row.starts_with_nothing:
            self.factor = kernel.scalar(_positive_factor(kernel.softmax_scale), "float32")
            scores.used.add("score_mod")  # all of it is the factor
        name_registers(self)

    def rescaling(self, old, new) -> tuple:
        """(alpha, whether it is less than e**-SLACK): what sums are multiplied by when the maximum
        moves from ``old`` to ``new``."""
        growth = self._row.growth(old, new)
        if self.factor is None:
            return self._row.exp(-growth), growth > T.float32(SLACK)
        growth = growth * self.factor
        return tirx.exp2(-growth), growth > T.float32(SLACK * LOG2E)

    def lse(self, maximum, total):
        """log sum exp, -inf for a row without a visible key."""
        if self.factor is None:
            return self._row.lse(maximum, total)
        # The sum has the shift as it was rounded in it, or none far from zero (``_come_near``).
        shift = self._kernel.scalar(maximum * self.factor, "float32")
        near = self._row.lse_of_binary(shift, total)
        far = tirx.abs(shift) > T.float32(_FOLDED)
        size = tirx.abs(self._kernel.softmax_scale)
        exact = self._row.lse(maximum * size, total)
        return tirx.Select(tirx.Or(far, total == T.float32(0)), exact, near)


class OnlineSoftmax:
    """Row maxima and sums of a warp's query rows over the key tiles seen so far.

    Where the score is the dot product times a factor, maxima stay in units of the dot product and
    the factor (times log2 e) is folded into the exponent's multiply-add, as in FlashAttention-2;
    otherwise scores are computed first. What states are, and how they are repaired, is that of
    ``row``.
    """

    def __init__(
        self, kernel: CudaKernel, scores: Scores, row: BoundRecurrence, m_tiles: int,
        numbers: dict | None,
    ):  # fmt: skip
        """numbers: what ``row`` reads of a row besides its scores, by name; None for a part of the
        keys, whose states start with nothing."""
        self.kernel, self.scores, self.row, self.m_tiles = kernel, scores, row, m_tiles
        self.maximum = kernel.registers((m_tiles, 2), "float32")
        self.total = kernel.registers((m_tiles, 2), "float32")
        self._alpha = kernel.registers((m_tiles, 2), "float32")
        self._held = kernel.registers((1,), "float32")
        self._units = MaximumUnits(kernel, scores, row)
        self.factor = self._units.factor
        self._is_far = None if self.factor is None else kernel.scalar(0)
        name_registers(self)
        for m, half in self._rows():
            first = row.nothing("m") if numbers is None else row.start("m", **numbers)
            store(self.maximum, (m, half), first)
            store(self.total, (m, half), self._first_sum(self.maximum[m, half], numbers))

    def _first_sum(self, maximum, numbers: dict | None):
        """The sum before the first key, once among the four lanes that share a row."""
        if numbers is None:
            return self.row.nothing("l")
        first = self.row.start("l", m=maximum, **numbers)
        if self.row.starts_with_nothing:
            return first
        return tirx.Select(self.kernel.lane % 4 == 0, first, self.row.nothing("l"))

    def _rows(self):
        return [(m, half) for m in range(self.m_tiles) for half in range(2)]

    @property
    def takes_positive_scale(self) -> bool:
        """Whether dot products must have the sign of softmax_scale in them.

        The fold needs a positive factor: a negative one would turn maxima into minima.
        """
        return self.factor is not None

    def score(self, s: Accumulator, bound: BoundScores, q_index, k_index) -> None:
        """Dot products to scores, before the mask, unless their factor is folded into exponents.

        q_index(m, half), k_index(n, odd).
        """
        if self.factor is None:
            scale_scores(bound, s, q_index, k_index)

    def update(self, s: Accumulator, out: Accumulator) -> None:
        """Scores to unnormalised probabilities in place; ``out`` and the sums are rescaled."""
        self.move(s)
        self.rescale(out)
        self.weigh(s)

    def move(self, s: Accumulator) -> None:
        """The maxima with those of this tile; ``weigh`` and ``rescale`` follow, in any order."""
        for m, half in self._rows():
            self._new_maximum(s, m, half)

    def rescale(self, out: Accumulator) -> None:
        """What was summed before into units of the new maxima."""
        moved = [self._alpha[index] != T.float32(1) for index in self._rows()]
        with when(any_lane(reduce(tirx.Or, moved))):
            for m, n, r in out.elements():
                value = out.registers[m, n, r] * self._alpha[m, r // 2]
                store(out.registers, (m, n, r), value)

    def weigh(self, s: Accumulator) -> None:
        """Scores to unnormalised probabilities in place, and into the rescaled sums."""
        if self.factor is not None:
            self._come_near(s)
        for m, half in self._rows():
            index = (m, half)
            store(self.total, index, self.total[index] * self._alpha[index])
            shift = self.kernel.scalar(self._shift(index), "float32")
            for n in range(s.n_tiles):
                for r in (2 * half, 2 * half + 1):
                    store(s.registers, (m, n, r), self._probability(s.registers[m, n, r], shift))
                    total = self.row.join("l", self.total[index], s.registers[m, n, r])
                    store(self.total, index, total)

    def _come_near(self, s: Accumulator) -> None:
        """Scores near enough to zero to be multiplied.

        Where a maximum times the factor is far from zero, that product is rounded by many units,
        or overflows: scores then become differences from their maximum, which need no shift.
        """
        folded = [self.maximum[index] * self.factor for index in self._rows()]
        far = reduce(tirx.Or, (tirx.abs(value) > T.float32(_FOLDED) for value in folded))
        assign(self._is_far, tirx.Cast("int32", any_lane(far)))
        with when(self._is_far != 0):
            s.map(lambda value, m, n, r: self.row.exponent(value, self.maximum[m, r // 2]))

    def _shift(self, index: tuple):
        """What exponents of the row's scores are reduced by."""
        if self.factor is None:
            return self.maximum[index]
        folded = self.maximum[index] * self.factor
        return tirx.Select(self._is_far != 0, T.float32(0), folded)

    def _new_maximum(self, s: Accumulator, m: int, half: int) -> None:
        """The row's maximum with this tile's; _alpha rescales what was summed before.

        A maximum that grows by less than SLACK stays as it was: any number near it does as well,
        and most tiles then leave the output alone (FlashAttention-4's conditional rescaling).
        """
        index, held = (m, half), self._held
        old = self.maximum[index]
        store(held, (0,), old)
        for n in range(s.n_tiles):
            low, high = s.registers[m, n, 2 * half], s.registers[m, n, 2 * half + 1]
            store(held, (0,), self._largest(held[0], self._largest(low, high)))
        quad_reduce(held, (0,), self._largest)
        alpha, grown = self._units.rescaling(old, held[0])
        store(self._alpha, index, tirx.Select(grown, alpha, T.float32(1)))
        store(self.maximum, index, tirx.Select(grown, held[0], old))

    def _probability(self, score, shift):
        if self.factor is None:
            return self.row.weight(score, shift)
        return tirx.exp2(self.row.exponent(score * self.factor, shift))

    def _largest(self, a, b):
        return self.row.join("m", a, b)

    def finish(self) -> None:
        """Sums over the lanes of a row; then ``inverse`` and ``lse`` are the row's."""
        for m, half in self._rows():
            quad_reduce(self.total, (m, half), lambda a, b: self.row.join("l", a, b))

    def inverse(self, m: int, half: int):
        """1 / sum, and 0 for a row without a visible key."""
        return self.row.inverse(self.total[m, half])

    def lse(self, m: int, half: int):
        """log sum exp, -inf for a row without a visible key."""
        return self._units.lse(self.maximum[m, half], self.total[m, half])

    def lse_low(self, lse, m: int, half: int):
        """What ``lse``, a register, lost of the logarithm of the sum."""
        return self.row.lse_low(lse, self.maximum[m, half], self.total[m, half])


class WeightsAlone:
    """What stands in for OnlineSoftmax where a row has no states: each key has its own weight."""

    takes_positive_scale = False

    def __init__(self, row: BoundRecurrence):
        self.row = row

    def score(self, s: Accumulator, bound: BoundScores, q_index, k_index) -> None:
        """Dot products to scores, before the mask; q_index(m, half), k_index(n, odd)."""
        scale_scores(bound, s, q_index, k_index)

    def update(self, s: Accumulator, out: Accumulator) -> None:
        """Scores to weights in place."""
        self.weigh(s)

    def move(self, s: Accumulator) -> None:
        """Nothing is kept of a row."""

    def rescale(self, out: Accumulator) -> None:
        """No key changes what was summed before."""

    def weigh(self, s: Accumulator) -> None:
        """Scores to weights in place."""
        s.map(lambda value, m, n, r: self.row.weight(value))

    def finish(self) -> None:
        """Nothing is kept of a row."""

    def inverse(self, m: int, half: int):
        """What the output is multiplied by."""
        return T.float32(1)


def _positive_factor(softmax_scale):
    """What makes log2 units of a dot product whose sign is that of ``softmax_scale``."""
    factor = tirx.abs(softmax_scale) * T.float32(LOG2E)
    return tirx.min(tirx.max(factor, T.float32(_LEAST_FACTOR)), T.float32(_MOST_FACTOR))
