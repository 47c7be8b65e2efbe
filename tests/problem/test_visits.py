"""The tiles that a tile visits are those of the mask itself, on ints and on TIR expressions."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import sym, tirx

from tvm_flash.definition.arithmetic import TIR
from tvm_flash.problem.arithmetic import INTS
from tvm_flash.problem.numbers import kinds_of, numbers_by_name
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.problem.visits import Visibility, Visits
from tvm_flash.score.variants import alignment_offset

sides = st.integers(-1, 20)
lengths = st.integers(0, 40)
blocks = st.sampled_from([1, 2, 3, 8, 16])


class Problem(NamedTuple):
    """window: (left, right) as FlashAttention has it, which is also in ``spec`` and ``numbers``."""

    spec: AttentionSpec
    seqlen_q: int
    seqlen_k: int
    numbers: dict
    window: tuple

    @property
    def visibility(self):
        return Visibility(self.spec, self.seqlen_q, self.seqlen_k, self.numbers)

    def seen(self):
        """(Sq, Sk): whether a row sees a key, by FlashAttention's definition."""
        (left, right), sq, sk = self.window, self.seqlen_q, self.seqlen_k
        row = torch.arange(sq)[:, None] + alignment_offset(self.spec.alignment, sq, sk)
        key = torch.arange(sk)[None, :]
        seen = torch.ones(sq, sk, dtype=torch.bool)
        seen &= (key >= row - left) | (left == -1)
        return seen & ((key <= row + right) | (right == -1))


def spec_of(window, alignment, **fields):
    kinds = kinds_of(window_size=window)
    spec, _ = AttentionSpec.capture(
        dtype="float32", head_dim=64, alignment=alignment, **kinds, **fields
    )
    return spec


def problem_of(window, alignment, seqlen_q, seqlen_k):
    spec, numbers = spec_of(window, alignment), numbers_by_name(1.0, window)
    return Problem(spec, seqlen_q, seqlen_k, numbers, window)


@given(count=st.integers(0, 60), parts=st.integers(1, 70), step=st.sampled_from([1, -1]))
def test_parts_are_all_tiles_in_order(count, parts, step):
    first = 0 if step == 1 else count - 1
    whole = Visits(first, count, 0, 0, 0, 16, step, None, INTS)
    found = [whole.part(number, parts) for number in range(parts)]
    tiles = [part.first(n) for part in found for n in range(part.count)]
    assert tiles == [whole.first(n) for n in range(count)]
    filled = whole.parts(parts)
    assert [part.count > 0 for part in found] == [n < filled for n in range(parts)]
    assert len({part.count for part in found[: max(filled - 1, 0)]}) <= 1, "equal but for the last"


alignments = st.sampled_from(["bottom_right", "top_left"])
problems = st.builds(problem_of, st.tuples(sides, sides), alignments, lengths, lengths)


def check(visits, seen, origin, end, past_end):
    """``visits`` against ``seen`` (own rows of the tile, positions of the other axis).

    origin, end: of the positions that may be visited. past_end: the tile's own rows reach past the
    last one, and that makes every visit a boundary.
    """
    block, length = visits.block, seen.shape[1]
    tiles = range(origin, min(end, length), block)
    needed = [p for p in tiles if seen[:, p : min(p + block, end)].any()]
    found = [visits.first(n) for n in range(visits.count)]
    assert found == (needed if visits.step == 1 else needed[::-1])
    for number, first in enumerate(found):
        whole = first + block <= length and bool(seen[:, first : first + block].all())
        assert visits.boundary(number) == (past_end or not whole)
    if found:
        last = seen[:, :end].any(dim=0).nonzero().max()
        assert visits.end == last + 1


@settings(deadline=None)
@given(problems, blocks, blocks, st.booleans(), st.booleans())
def test_keys_of_a_query_tile(problem, block_q, block_k, last_first, pad):
    seen = problem.seen()
    for first in range(0, problem.seqlen_q, block_q):
        visits = problem.visibility.keys(
            first, first + block_q, block_k, last_first=last_first, pad_is_boundary=pad
        )
        rows, past_end = seen[first : first + block_q], first + block_q > problem.seqlen_q
        check(visits, rows, 0, problem.seqlen_k, pad and past_end)


@settings(deadline=None)
@given(problems, blocks, blocks, st.booleans())
def test_queries_of_a_key_tile(problem, block_q, block_k, pad):
    seen = problem.seen()
    for first in range(0, problem.seqlen_k, block_k):
        visits = problem.visibility.queries(first, first + block_k, block_q, pad_is_boundary=pad)
        keys, past_end = seen[:, first : first + block_k].T, first + block_k > problem.seqlen_k
        check(visits, keys, 0, problem.seqlen_q, pad and past_end)


@settings(deadline=None)
@given(problems, blocks, blocks, st.integers(1, 24))
def test_a_part_of_the_keys(problem, block_q, block_k, size):
    """Parts that need not be whole tiles: tiles are counted from where the part begins."""
    seen = problem.seen()
    for first in range(0, problem.seqlen_q, block_q):
        rows = seen[first : first + block_q]
        for origin in range(0, problem.seqlen_k, size):
            end = origin + size
            visits = problem.visibility.keys(first, first + block_q, block_k, within=(origin, end))
            check(visits, rows, origin, min(end, problem.seqlen_k), False)


@given(problems, blocks)
def test_a_mask_mod_makes_every_tile_a_boundary(problem, block):
    def mask_mod(b, h, q_idx, k_idx):
        return (q_idx + k_idx) % 2 == 0

    spec = spec_of(problem.window, problem.spec.alignment, mask_mod=mask_mod)
    problems = (problem, problem._replace(spec=spec))
    plain, masked = (each.visibility.keys(0, block, block) for each in problems)
    assert (masked.count, masked.start) == (plain.count, plain.start)
    assert all(masked.boundary(n) for n in range(masked.count))


VARIANTS = [
    ("keys", {}),
    ("keys", {"last_first": True}),
    ("keys", {"pad_is_boundary": True, "within": (16, 48)}),
    ("queries", {"pad_is_boundary": True}),
]


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (7, -1), (9, 3)])
@pytest.mark.parametrize("alignment", ["bottom_right", "top_left"])
@pytest.mark.parametrize(("axis", "options"), VARIANTS)
def test_expressions_say_what_ints_say(window, alignment, axis, options):
    spec, numbers = spec_of(window, alignment), numbers_by_name(1.0, window)
    names = sq, sk, first, number = [tirx.Var(n, "int32") for n in ("Sq", "Sk", "first", "n")]
    ends = {name: tirx.Var(name, "int32") for name in ("window_left", "window_right")}
    made = getattr(Visibility(spec, sq, sk, ends, TIR), axis)(first, first + 16, 8, **options)
    for values in [(0, 5, 0, 0), (5, 0, 0, 0), (33, 70, 16, 2), (70, 33, 48, 1), (64, 64, 32, 3)]:
        plain = getattr(Visibility(spec, *values[:2], numbers), axis)(
            values[2], values[2] + 16, 8, **options
        )
        analyzer = sym.Analyzer()
        bound = [*zip(names, values, strict=True), *((ends[n], numbers[n]) for n in ends)]
        for name, value in bound:
            analyzer.bind(name, tirx.const(value, "int32"))

        def value_of(expression, analyzer=analyzer):
            return int(analyzer.simplify(tirx.const(0, "int32") + expression))

        assert value_of(made.count) == plain.count
        assert value_of(made.first(number)) == plain.first(values[3])
        boundary = tirx.Select(
            made.boundary(number), tirx.const(1, "int32"), tirx.const(0, "int32")
        )
        assert bool(value_of(boundary)) == plain.boundary(values[3])
