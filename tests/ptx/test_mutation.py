"""Do the tests of a kernel notice mistakes in it? Mutants of PTX kernels, all of which must be.

A kernel under mutation is a row of SUBJECTS. survivors.json explains the mutants that nothing can
notice; CI tries a fixed sample of the others. Everything, for a new kernel or a new interpreter:

    PYTHONPATH=tests python -m ptx.test_mutation [subject ...]
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ptx.mutation import Mutant, Problem, evaluate, mutants, sample, statements, survivors
from ptx.triton import problems as triton

from tvm_flash.ptx_interpreter import InterpreterError, execute

SURVIVORS = Path(__file__).with_name("survivors.json")
SAMPLED = 60
# Basic blocks; these launches need some hundreds. A mutant that loops for ever stops there.
STEP_LIMIT = 20_000


@dataclass(frozen=True)
class Subject:
    """A kernel and the launches that are to notice what is wrong with it."""

    text: str
    kernel: str
    problems: list[Problem]

    def verdict(self, text: str) -> str | None:
        """What notices that ``text`` is not the kernel; None: nothing."""
        return evaluate(text, self.kernel, self.problems)

    def check(self, text: str) -> None:
        """Raises what ``verdict`` says."""
        complaint = self.verdict(text)
        assert complaint is None, complaint


def of_triton(name: str) -> Callable[[], Subject]:
    """A fixture of tests/ptx/triton."""

    def build() -> Subject:
        fixture = triton.fixtures()[name]
        return Subject(fixture.text, fixture.kernel, triton.problems(fixture))

    return build


SUBJECTS: dict[str, Callable[[], Subject]] = {
    name: of_triton(name)
    for name in (
        "forward_sm80_f16_causal",
        "key_gradients_sm80_f16",
        "query_gradient_sm80_bf16_causal",
        "matmul_sm80_f16",
        "softmax_sm80_f16",
        "layer_norm_sm80_bf16",
        "forward_sm90_f16_causal",
        "matmul_sm90_f16_tma",
    )
}


def explained(subject: str) -> dict[tuple, dict]:
    """Entries of survivors.json by the key of their mutant."""
    entries = json.loads(SURVIVORS.read_text(encoding="utf-8"))
    return {
        (e["kind"], e["statement"], e["becomes"], e["nth"]): e
        for e in entries
        if e["kernel"] == subject
    }


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(execute, "STEP_LIMIT", STEP_LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_mutants_are_noticed(name, patience):
    subject, known = SUBJECTS[name](), explained(name)
    assert subject.verdict(subject.text) is None
    found = mutants(subject.text, subject.kernel)
    assert known.keys() <= {m.key for m in found}, "survivors.json names mutants that are no more"
    chosen = sample([m for m in found if m.key not in known], SAMPLED)
    unexplained = [m.description for m in survivors(chosen, subject.check)]
    assert not unexplained


def test_what_is_explained_is_a_subject():
    entries = json.loads(SURVIVORS.read_text(encoding="utf-8"))
    assert {e["kernel"] for e in entries} <= SUBJECTS.keys()
    assert all(e["why"] and isinstance(e["equivalent"], bool) for e in entries)


@pytest.mark.parametrize("name", SUBJECTS)
def test_nearly_all_that_could_be_noticed_is(name):
    subject, known = SUBJECTS[name](), explained(name)
    possible = [
        m
        for m in mutants(subject.text, subject.kernel)
        if m.key not in known or not known[m.key]["equivalent"]
    ]
    missed = sum(m.key in known for m in possible)
    assert missed <= 0.05 * len(possible)


SMALL = """
.version 8.0
.visible .entry other(.param .u64 a) { bar.sync 0; ret; }
.visible .entry small(
	.param .u64 small_param_0
)
{
	.reg .pred %p<3>; // bar.sync 1;
	.reg .b32 %r<9>;
	setp.lt.s32 	%p1, %r1, %r2;
$L__loop: add.s32 %r1, %r1, 7;
	@%p1 bra $L__loop;
	{ .reg .pred q; @!q cp.async.wait_group 1; mbarrier.try_wait.parity.shared.b64 q, [%r1], %r2; }
	/* ldmatrix */ ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r3, %r4}, [%r1];
	mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
		{%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, {%r3, %r3}, {%r1, %r2, %r3, %r4};
	cvt.rn.bf16x2.f32 %r1, %r2, %r3;
	shfl.sync.bfly.b32 %r1, %r2, 2, 31, -1;
	bar.sync 0;
	ret;
}
"""


def test_statements_are_found_in_scopes_after_labels_and_over_lines():
    found = statements(SMALL, "small")
    assert [s.opcode.split(".")[0] for s in found] == [
        "setp", "add", "bra", "cp", "mbarrier", "ldmatrix", "mma", "cvt", "shfl", "bar", "ret",
    ]  # fmt: skip
    assert found[3].guard == "@!q " and found[3].operands == "1"
    for statement in found:
        assert " ".join(SMALL[statement.start : statement.end].split()) == statement.text
        assert statement.opcode in SMALL.splitlines()[statement.line - 1]


def test_every_kind_of_mutant():
    found = [(m.kind, m.becomes) for m in mutants(SMALL, "small")]
    assert found == [
        ("bound", "setp.le.s32 %p1, %r1, %r2;"),
        ("bound", "add.s32 %r1, %r1, 8;"),
        ("async", ""),
        ("async", "@!q cp.async.wait_group 2;"),
        ("guard", "cp.async.wait_group 1;"),
        ("fence", "setp.eq.u32 q, 0, 0;"),
        ("transpose", "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r3, %r4}, [%r1];"),
        ("fragment", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1, %r2, %r3, %r4}, "
         "{%r5, %r7, %r6, %r8}, {%r3, %r3}, {%r1, %r2, %r3, %r4};"),
        ("convert", "cvt.rn.bf16x2.f32 %r1, %r3, %r2;"),
        ("shuffle", "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;"),
        ("barrier", ""),
    ]  # fmt: skip


def test_a_mutant_differs_in_its_statement_alone():
    for mutant in mutants(SMALL, "small"):
        assert mutant.text != SMALL
        assert len(statements(mutant.text, "other")) == 2
        lost = Counter(s.text for s in statements(SMALL, "small"))
        lost.subtract(s.text for s in statements(mutant.text, "small"))
        changed = {text: n for text, n in lost.items() if n}
        assert changed.pop(mutant.statement) == 1
        assert changed == ({mutant.becomes: -1} if mutant.becomes else {})


def test_samples_are_fixed_and_hold_every_kind():
    found = mutants(triton.fixtures()["forward_sm80_f16_causal"].text, "attention_forward")
    chosen = sample(found, 30)
    assert chosen == sample(found, 30) and len(chosen) == 30
    assert {m.kind for m in chosen} == {m.kind for m in found}
    assert sample(found, 10**6) == found


def test_a_verdict_is_the_first_complaint():
    def fails(error):
        def problem(kernel):
            raise error

        return problem

    def passes(kernel):
        assert kernel.name == "softmax"

    text = triton.fixtures()["softmax_sm80_f16"].text
    assert evaluate(text, "softmax", [passes]) is None
    wrong = fails(InterpreterError("line 3"))
    assert evaluate(text, "softmax", [passes, wrong]) == "InterpreterError: line 3"
    assert evaluate(text, "softmax", [fails(AssertionError("out")), wrong]).startswith("Assert")
    with pytest.raises(ZeroDivisionError):
        evaluate(text, "softmax", [fails(ZeroDivisionError())])


def try_all(name: str) -> list[Mutant]:
    """Evaluate every mutant; prints the count by kind and what survivors.json has wrong."""
    subject, known, started = SUBJECTS[name](), explained(name), time.perf_counter()
    assert subject.verdict(subject.text) is None
    found = mutants(subject.text, subject.kernel)
    alive = [m for m in found if not _noticed(subject, m)]
    total, left = (Counter(m.kind for m in ms) for ms in (found, alive))
    kinds = ", ".join(f"{kind} {n - left[kind]}/{n}" for kind, n in sorted(total.items()))
    seconds = time.perf_counter() - started
    print(f"{name}: {len(found) - len(alive)}/{len(found)} noticed in {seconds:.0f} s; {kinds}")
    for mutant in alive:
        if mutant.key not in known:
            print(f"  unexplained: {mutant.description}")
    for key in known.keys() - {m.key for m in alive}:
        print(f"  explained, yet noticed: {key}")
    return [m for m in alive if m.key not in known]


def _noticed(subject: Subject, mutant: Mutant) -> bool:
    try:
        return subject.verdict(mutant.text) is not None
    except Exception as error:
        print(f"  THE INTERPRETER CRASHES: {mutant.description}: {error!r}")
        return True


def entry(name: str, mutant: Mutant) -> dict:
    """An unexplained survivor as survivors.json wants it, but for the reason."""
    keys = dict(zip(("kind", "statement", "becomes", "nth"), mutant.key, strict=True))
    return {"kernel": name, **keys, "equivalent": False, "why": ""}


if __name__ == "__main__":
    execute.STEP_LIMIT = STEP_LIMIT
    for subject_name in sys.argv[1:] or SUBJECTS:
        unexplained_mutants = try_all(subject_name)
        for line in (json.dumps(entry(subject_name, m)) for m in unexplained_mutants):
            print(line)
