"""Do the tests of a kernel notice mistakes in it? Mutants of PTX kernels, all of which must be.

A kernel under mutation is a row of SUBJECTS. survivors.json explains the mutants that nothing can
notice; `make test` tries a few of the others, `pytest -m sweep` a larger fixed sample. Everything,
for a new kernel or a new interpreter:

    PYTHONPATH=tests/support python tests/ptx/test_mutation.py [subject[:sample] ...]

Our own kernels are compiled when they are tested: their entries hold the digest of the instructions
they are about. Other instructions, of another compiler or schedule, are held to the same list by
text without registers and by number: as many equal mutants may survive as are explained.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from ptx import called_kernels, own_kernels
from ptx.mutation import Mutant, Problem, evaluate, mutants, sample, shape, statements, survivors
from ptx.triton import problems as triton

from tvm_flash.ptx_interpreter import InterpreterError, execute

SURVIVORS = Path(__file__).with_name("survivors.json")
# Mutants of a kernel that are tried; ours are larger than Triton's.
FEW, FEW_OF_OWN = 10, 4
MORE, MORE_OF_OWN = 40, 12
# Basic blocks; these launches need some hundreds. A mutant that loops for ever stops there.
STEP_LIMIT = 20_000


@dataclass(frozen=True)
class Subject:
    """A kernel and the launches that are to notice what is wrong with it."""

    text: str
    kernel: str
    problems: list[Problem]

    @cached_property
    def digest(self) -> str:
        """Digest of its instructions: equal where only names and comments differ."""
        listed = (s.text for s in statements(self.text, self.kernel))
        text = "\n".join(listed).replace(self.kernel, "kernel")
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def verdict(self, text: str) -> str | None:
        """What notices that ``text`` is not the kernel; None: nothing."""
        return evaluate(text, self.kernel, self.problems)

    def check(self, text: str) -> None:
        """Raises what ``verdict`` says."""
        complaint = self.verdict(text)
        assert complaint is None, complaint


def of_triton(name: str) -> Callable[[], Subject]:
    """A fixture of tests/support/ptx/triton."""

    def build() -> Subject:
        fixture = triton.fixtures()[name]
        return Subject(fixture.text, fixture.kernel, triton.problems(fixture))

    return build


def of_our_own(name: str) -> Callable[[], Subject]:
    """A kernel of this project, compiled now."""

    def build() -> Subject:
        own = own_kernels.OWN[name]
        return Subject(own.ptx, f"{own.step.name}_kernel", own_kernels.problems(own))

    return build


def of_a_call(name: str) -> Callable[[], Subject]:
    """A kernel of this project that whole calls judge."""

    def build() -> Subject:
        called = called_kernels.CALLED[name]
        return Subject(called.ptx, f"{called.step.name}_kernel", called.problems)

    return build


TRITON = (
    "forward_sm80_f16_causal",
    "key_gradients_sm80_f16",
    "query_gradient_sm80_bf16_causal",
    "matmul_sm80_f16",
    "softmax_sm80_f16",
    "layer_norm_sm80_bf16",
    "forward_sm90_f16_causal",
    "matmul_sm90_f16_tma",
)
SUBJECTS: dict[str, Callable[[], Subject]] = {
    **{name: of_triton(name) for name in TRITON},
    **{name: of_our_own(name) for name in own_kernels.OWN},
}
# Judged by whole calls, which take seconds: tried by hand, for what they show (docs/cuda.md).
CALLED = {name: of_a_call(name) for name in called_kernels.CALLED}


def explained(subject: str) -> dict[tuple, dict]:
    """Entries of survivors.json by the key of their mutant."""
    entries = json.loads(SURVIVORS.read_text(encoding="utf-8"))
    return {
        (e["kind"], e["statement"], e["becomes"], e["nth"]): e
        for e in entries
        if e["kernel"] == subject
    }


def is_about(known: dict[tuple, dict], subject: Subject) -> bool:
    """Whether the entries are about these very instructions; fixtures' have no digest."""
    return all(e.get("instructions", subject.digest) == subject.digest for e in known.values())


def unexplained(alive: list[Mutant], known: dict[tuple, dict], subject: Subject) -> list[Mutant]:
    """Those of ``alive`` that ``known`` does not explain."""
    if is_about(known, subject):
        return [m for m in alive if m.key not in known]
    left, found = Counter(shape(key) for key in known), []
    for mutant in alive:
        left[mutant.shape] -= 1
        if left[mutant.shape] < 0:
            found.append(mutant)
    return found


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(execute, "STEP_LIMIT", STEP_LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("number, name", list(enumerate(SUBJECTS)), ids=SUBJECTS)
def test_a_few_mutants_are_noticed(number, name, patience):
    subject, known = SUBJECTS[name](), explained(name)
    decisive = [m for m in untried(subject, known) if not may_survive(m, subject, known)]
    few = sample(decisive, FEW if name in TRITON else FEW_OF_OWN, first=number)
    assert_noticed(few, subject, known)


@pytest.mark.sweep
@pytest.mark.parametrize("name", CALLED)
def test_kernels_of_other_calls_pass_what_mutants_should_not(name, patience):
    subject = CALLED[name]()
    assert mutants(subject.text, subject.kernel)
    assert subject.verdict(subject.text) is None


@pytest.mark.sweep
@pytest.mark.parametrize("name", SUBJECTS)
def test_more_mutants_are_noticed(name, patience):
    subject, known = SUBJECTS[name](), explained(name)
    more = sample(untried(subject, known), MORE if name in TRITON else MORE_OF_OWN)
    assert_noticed(more, subject, known)


def assert_noticed(chosen: list[Mutant], subject: Subject, known: dict[tuple, dict]) -> None:
    """The kernel as it is passes, and of ``chosen`` none that ``known`` does not explain."""
    assert subject.verdict(subject.text) is None
    alive = survivors(chosen, subject.check)
    assert not [m.description for m in unexplained(alive, known, subject)]


def untried(subject: Subject, known: dict[tuple, dict]) -> list[Mutant]:
    """Mutants of ``subject`` that ``known`` does not name."""
    found = mutants(subject.text, subject.kernel)
    if not is_about(known, subject):
        return found
    assert known.keys() <= {m.key for m in found}, "survivors.json names mutants that are no more"
    return [m for m in found if m.key not in known]


def may_survive(mutant: Mutant, subject: Subject, known: dict[tuple, dict]) -> bool:
    """Whether it has the shape of one that is explained, and ``known`` is about other code.

    As many of the shape may survive as are explained: few that are tried would decide nothing.
    """
    return not is_about(known, subject) and mutant.shape in {shape(key) for key in known}


def test_what_is_explained_is_a_subject():
    entries = json.loads(SURVIVORS.read_text(encoding="utf-8"))
    assert {e["kernel"] for e in entries} <= (SUBJECTS | CALLED).keys()
    assert all(e["why"] and isinstance(e["equivalent"], bool) for e in entries)


# Ours are compiled for it.
@pytest.mark.parametrize(
    "name", [*TRITON, *(pytest.param(name, marks=pytest.mark.slow) for name in own_kernels.OWN)]
)
def test_nearly_all_that_could_be_noticed_is(name):
    known = explained(name).values()
    missed = sum(not e["equivalent"] for e in known)
    subject = SUBJECTS[name]()
    possible = len(mutants(subject.text, subject.kernel)) - (len(known) - missed)
    assert missed <= 0.05 * possible


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


OURS = """
.visible .entry ours()
{
	mov.u32 	%r3, 16;
	shfl.sync.bfly.b32 	%r26|%p3, %r22, %r3, %r23, %r25;
	selp.b32 %r7, 16, 0, %p1;
	red.global.add.f32 [%rd1], %f2;
	setp.lt.s32 %p1, %r1, %r2;
	setp.lt.s32 %p1, %r1, %r3;
	ret;
}
"""


def test_mutants_of_what_our_kernels_are_written_in():
    assert [(m.kind, m.becomes) for m in mutants(OURS, "ours")][:3] == [
        ("shuffle", "shfl.sync.bfly.b32 %r26|%p3, %r22, 8, %r23, %r25;"),
        ("guard", "mov.b32 %r7, 16;"),
        ("atomic", "st.global.f32 [%rd1], %f2;"),
    ]


def test_entries_about_other_instructions_explain_as_many_of_equal_shape():
    subject, found = Subject(OURS, "ours", []), mutants(OURS, "ours")[3:]
    assert len({m.shape for m in found}) == 1 and len({m.key for m in found}) == 2
    exact = {found[0].key: {"instructions": subject.digest}}
    other = {(*found[0].key[:3], 7): {"instructions": "those of another compiler"}}
    assert unexplained(found, exact, subject) == found[1:]
    assert unexplained(found, other, subject) == found[1:]
    assert unexplained(found[1:], exact, subject) == found[1:]
    assert unexplained(found[1:], other, subject) == []
    assert not any(may_survive(m, subject, exact) for m in found)
    assert all(may_survive(m, subject, other) for m in found)
    renamed = Subject(OURS.replace("ours", "theirs"), "theirs", [])
    assert renamed.digest == subject.digest


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
    assert {m.kind for n in range(20) for m in sample(found, 1, n)} == {m.kind for m in found}
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


def try_all(name: str, most: int = sys.maxsize) -> list[Mutant]:
    """Evaluate every mutant, or a sample of so many; prints the count by kind and what
    survivors.json has wrong."""
    build = (SUBJECTS | CALLED)[name]
    subject, known, started = build(), explained(name), time.perf_counter()
    assert subject.verdict(subject.text) is None
    found = sample(every := mutants(subject.text, subject.kernel), most)
    alive = [m for m in found if not _noticed(subject, m)]
    total, left = (Counter(m.kind for m in ms) for ms in (found, alive))
    kinds = ", ".join(f"{kind} {n - left[kind]}/{n}" for kind, n in sorted(total.items()))
    seconds = time.perf_counter() - started
    tried = f"{len(found) - len(alive)}/{len(found)} of {len(every)}"
    print(f"{name}: {tried} noticed in {seconds:.0f} s; {kinds}", flush=True)
    if not is_about(known, subject):
        print("  survivors.json is about other instructions: replace its entries by these")
        return alive
    for mutant in unexplained(alive, known, subject):
        print(f"  unexplained: {mutant.description}")
    for key in known.keys() & {m.key for m in found} - {m.key for m in alive}:
        print(f"  explained, yet noticed: {key}")
    return unexplained(alive, known, subject)


def _noticed(subject: Subject, mutant: Mutant) -> bool:
    try:
        return subject.verdict(mutant.text) is not None
    except Exception as error:
        print(f"  THE INTERPRETER CRASHES: {mutant.description}: {error!r}")
        return True


def entry(name: str, mutant: Mutant) -> dict:
    """A survivor as survivors.json wants it, but for the reason."""
    keys = dict(zip(("kind", "statement", "becomes", "nth"), mutant.key, strict=True))
    digest = {} if name in TRITON else {"instructions": (SUBJECTS | CALLED)[name]().digest}
    return {"kernel": name, **digest, **keys, "equivalent": False, "why": ""}


if __name__ == "__main__":
    execute.STEP_LIMIT = STEP_LIMIT
    for argument in sys.argv[1:] or SUBJECTS:
        subject_name, _, count = argument.partition(":")
        unexplained_mutants = try_all(subject_name, int(count or sys.maxsize))
        for line in (json.dumps(entry(subject_name, m)) for m in unexplained_mutants):
            print(line, flush=True)
