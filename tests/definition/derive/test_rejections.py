"""Definitions without a streaming form: the reason names the block and what is left over."""

import numpy as np
import pytest
from tvm import tirx

from tvm_flash.definition.derive import Rejected, derive, derive_gradient
from tvm_flash.definition.derive.algebra import Algebra
from tvm_flash.definition.derive.blocks import Block
from tvm_flash.definition.derive.formula import LOWEST, evaluate, fill, named, number
from tvm_flash.definition.derive.states import check_hidden, state_of
from tvm_flash.definition.plain import plain_forward
from tvm_flash.definition.sink import Sink
from tvm_flash.definition.softmax import Softmax
from tvm_flash.problem.spec import AttentionSpec

x, p, v, m, l, c = map(named, ("x", "p", "v", "m", "l", "c"))
ZERO = number(0)


class FromMinusInfinity(Softmax):
    def first_max(self, row):
        return number(float("-inf"))


class FromMinus1e30(Softmax):
    def first_max(self, row):
        return number(-1e30)


class SinkFromFloor(Sink):
    def first_max(self, row):
        return number(LOWEST)


class SinkNotRepaired(Sink):
    def first_sum(self, row, m):
        return self.sig.inputs["sink"][row[1]]


class OneAddedAtTheEnd(Softmax):
    def out(self, acc, l):
        return acc / (l + number(1))


class DividedUnguarded(Softmax):
    def out(self, acc, l):
        return acc / l


class OutputOfTwoTerms(Softmax):
    def out(self, acc, l):
        return acc + l


class NotExponential(Softmax):
    def weight(self, x, m):
        return tirx.max(x - m + number(1), ZERO)


class TemperatureOfTheMaximum(Softmax):
    def weight(self, x, m):
        return tirx.exp((x - m) / m)


class EntropyWeight(Softmax):
    def weight(self, x, m):
        return tirx.exp(x - m) * (x - m)


class LinearWeight(Softmax):
    has_sum = False

    def weight(self, x, m):
        return x

    def out(self, acc, l):
        return acc


class MaskedToLinear(LinearWeight):
    def weight(self, x, m):
        return tirx.exp(x * x)


DEFINITIONS = {
    FromMinusInfinity: ("row_max", "starts at -inf"),
    FromMinus1e30: ("row_max", "starts at -1e.30, of which no sum has a share"),
    SinkFromFloor: ("row_sum", "starts at inf"),
    SinkNotRepaired: ("row_sum", "does not follow the factor"),
    DividedUnguarded: ("out", "nan for a row without a visible key"),
    OutputOfTwoTerms: ("out", "not acc times a number of its row"),
    NotExponential: ("row_sum", "is repaired by max.*, which depends on the key"),
    EntropyWeight: ("row_sum", r"is repaired by no factor: m_old .* is left over"),
    TemperatureOfTheMaximum: ("row_sum", "depends on the key"),
    LinearWeight: ("mask", "a hidden key has the score -inf, of which block pv keeps"),
    MaskedToLinear: ("mask", "a hidden key has the score -inf, of which block pv keeps"),
}


def plain(kind, statistics=("lse",)):
    softmax = "sink" if issubclass(kind, Sink) else "softmax"
    spec = AttentionSpec(dtype="float32", head_dim=8, softmax=softmax)
    return plain_forward(spec, kind, statistics)


@pytest.mark.parametrize("kind", DEFINITIONS, ids=lambda kind: kind.__name__)
def test_definition(kind):
    block, reason = DEFINITIONS[kind]
    with pytest.raises(Rejected, match=f"block {block}: .*{reason}") as caught:
        derive(plain(kind))
    assert caught.value.block == block


def test_a_maximum_that_a_result_tells_must_be_exact():
    """One added at the end is one times e**m: streamed with the exact maximum, never a lagging one,
    and no lse gives its weights again."""
    recurrence = derive(plain(OneAddedAtTheEnd))
    assert "out" in recurrence.exact["m"]
    with pytest.raises(Rejected, match="block lse"):
        derive_gradient(recurrence)


def test_a_backward_needs_what_was_saved():
    with pytest.raises(Rejected, match="block lse: is missing"):
        derive_gradient(derive(plain(Softmax, ())))


class OtherLse(Softmax):
    def lse(self, m, l):
        return m + l


class HalvedExponent(Softmax):
    def weight(self, x, m):
        return tirx.exp((x - m) * number(0.5))

    def lse(self, m, l):
        return m + tirx.log(l) * number(2)

    def lse_low(self, lse, m, l):
        return tirx.Select(l == ZERO, ZERO, tirx.log(l) * number(2) - (lse - m))


class LowOfTheMaximum(Softmax):
    def lse_low(self, lse, m, l):
        return lse - m


class NoLow(Softmax):
    def lse_low(self, lse, m, l):
        return ZERO


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OtherLse, "block lse: m \\+ l does not give"),
        (HalvedExponent, "block exp: a normalised weight whose derivative is 0.5 \\* p, not p"),
        (LowOfTheMaximum, "block lse: .*m must be exact: lse_low = lse - m tells"),
        (NoLow, "block lse_low: lse . 0 is not m . log"),
    ],
)
def test_gradient(kind, reason):
    with pytest.raises(Rejected, match=reason):
        derive_gradient(derive(plain(kind, ("lse", "lse_low"))))


def edited(text, replacement, count=1):
    """The plain softmax with a part of its text replaced."""
    from tvm.script import from_source

    script = plain(Softmax).script()
    assert text in script
    return from_source(script.replace(text, replacement, count), s_tir=True)


MASK = 'T.float32("-inf")'


@pytest.mark.parametrize(
    ("text", "replacement", "reason"),
    [
        (MASK, "T.float32(-1e30)", "block mask: a hidden key has the score -1e.30"),
        (MASK, "T.float32(0)", "block mask: a hidden key has the score 0, of which block row_max"),
        ("T.Cast(\"int32\", vj) < ", "T.Cast(\"int32\", vj) <= ", "holds for keys past the last"),
        ('T.sblock("exp")', 'T.sblock("weights")', "block exp: is missing"),
        ("vj] - m[vb, vh, vi])", "vj] - m[vb, vh, vi - T.int64(1)])", "not its own row"),
        ("T.exp(Y[vb, vh, vi, vj]", "T.exp(S[vb, vh, vi, vj]", "no masked score or known state"),
        ("acc[vb, vh, vi, vd] + P", "acc[vb, vh, vi, vd] - P", "no sum, max or min"),
    ],
)  # fmt: skip
def test_edited_text(text, replacement, reason):
    with pytest.raises(Rejected, match=reason):
        derive(edited(text, replacement))


def maximum(algebra, start=LOWEST):
    return state_of(Block("row_max", "m", x, "max", number(start)), p, [], algebra)


def second(term, op="sum", start=ZERO, first=None):
    """The state of ``term`` beside the maximum of scores."""
    algebra = Algebra()
    known = [first if first is not None else maximum(algebra)]
    return state_of(Block("second", "s", term, op, start), p, known, algebra)


ACCEPTED = {
    "product": x * v,
    "exponential": tirx.exp(x - m),
    "base two": tirx.exp2(x - m) * v,
    "scaled": tirx.exp((x - m) * number(0.3)) * c,
    "two terms": tirx.exp(x - m) * v + tirx.exp(x - m) * c,
    "as a quotient": v / tirx.exp(m - x),
    "indicator of the key": tirx.Select(x > c, tirx.exp(x - m), ZERO),
}
# Each was taken for derivable once, and streamed to something else.
REFUSED = {
    # Times a temperature, the difference of two lowest numbers is NaN.
    "a temperature": (tirx.exp((x - m) * c), "sum", "makes nan of its start"),
    "a maximum of the weights": (tirx.exp(x - m), "max", "a max that reads m has no repair"),
    "a minimum of differences": (x - m, "min", "a min that reads m has no repair"),
    "an indicator of the maximum": (tirx.Select(m > c, tirx.exp(x), ZERO), "sum", "left over|div"),
    "an indicator that may be 0": (tirx.Select(m > c, x, ZERO), "sum", "left over|divides"),
    "the maximum itself": (m * v, "sum", "divides by m_old"),
    "its square": (m * m * x, "sum", "divides by"),
    "its inverse": (x / m, "sum", "divides by"),
    "a difference": ((x - m) * v, "sum", "is left over"),
    "a squared difference": ((x - m) * (x - m), "sum", "is left over"),
    "entropy": (tirx.exp(x - m) * (x - m), "sum", "is left over"),
    "a product in the exponent": (tirx.exp(x * m), "sum", "depends on the key"),
    "a clipped difference": (tirx.max(x - m + c, ZERO), "sum", "depends on the key|left over"),
    "a step of the key": (tirx.Select(x > m, number(1), ZERO), "sum", "left over|depends|divides"),
    "a sigmoid of the difference": (tirx.sigmoid(x - m), "sum", "depends on the key|left over"),
    "a growing exponential": (tirx.exp(m), "sum", "of its start|nan"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_repaired_terms(name):
    """The factor makes of every earlier term what the new maximum asks for."""
    term, rng = ACCEPTED[name], np.random.default_rng(3)
    state = second(term)
    old, new = 0.7, 1.9
    values = {"x": rng.normal(size=50), "v": rng.normal(size=50), "c": 0.8}
    moved = {"m_old": old, "m_new": new, "c": 0.8}
    moved["s_old"] = evaluate(term, {**values, "m": old}, "float64")
    want = evaluate(term, {**values, "m": new}, "float64")
    assert np.allclose(evaluate(state.repaired, moved, "float64"), want, rtol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_terms(name):
    term, op, reason = REFUSED[name]
    with pytest.raises(Rejected, match=reason) as caught:
        second(term, op, number({"sum": 0, "max": LOWEST, "min": -LOWEST}[op]))
    assert caught.value.block == "second"


def test_a_factor_that_divides_by_a_sum():
    """The first FlashAttention's form: normalised inside the sum, 0 / 0 at the start."""
    algebra = Algebra()
    states = [maximum(algebra)]
    states.append(state_of(Block("row_sum", "l", p, "sum", ZERO), tirx.exp(x - m), states, algebra))
    with pytest.raises(Rejected, match="divides by l_new"):
        state_of(Block("pv", "acc", tirx.exp(x - m) * v / l, "sum", ZERO), p, states, algebra)


@pytest.mark.parametrize("hidden", [0.0, -1e30, LOWEST, float("inf"), float("nan")])
def test_only_minus_infinity_hides_a_key(hidden):
    weight = tirx.exp(x - m)
    check_hidden(Block("row_sum", "l", p, "sum", ZERO), weight, float("-inf"))
    with pytest.raises(Rejected, match="block mask"):
        check_hidden(Block("row_sum", "l", p, "sum", ZERO), weight, hidden)


OPERATIONS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (tirx.exp(b * number(0.25)) + number(1)),
    "max": tirx.max,
    "exp": lambda a, b: tirx.exp(a * number(0.25)),
    "select": lambda a, b: tirx.Select(a > ZERO, b, ZERO),
}


def random_term(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        return (x, m, m, v, c)[rng.integers(5)]
    operation = list(OPERATIONS.values())[rng.integers(len(OPERATIONS))]
    return operation(random_term(rng, depth - 1), random_term(rng, depth - 1))


def test_random_terms_that_are_accepted_are_repaired():
    """Whatever is accepted streams to the sum at the last maximum, for any order of keys."""
    accepted = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        term = random_term(rng, 3)
        try:
            state = second(term)
        except Rejected:
            continue
        keys = {"x": rng.normal(size=20) * 2, "v": rng.normal(size=20), "c": 0.7}
        total, top = np.float64(0), np.float64(LOWEST)
        for n in range(20):
            new = max(top, keys["x"][n])
            moved = {"s_old": total, "m_old": top, "m_new": new, "c": 0.7}
            key = {"x": keys["x"][n], "v": keys["v"][n], "c": 0.7, "m": new}
            total = evaluate(state.repaired, moved, "float64") + evaluate(term, key, "float64")
            top = new
        want = np.sum(np.broadcast_to(evaluate(term, {**keys, "m": top}, "float64"), 20))
        assert np.allclose(total, want, rtol=1e-9), (seed, fill(term, {}))
        accepted += bool(state.reads)
    assert accepted > 5
