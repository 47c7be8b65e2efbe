"""The interpreter on kernels of another compiler: numbers against float64, every check on."""

import pytest
from ptx.triton.problems import fixtures, problems

FIXTURES = fixtures()


@pytest.mark.parametrize("name", FIXTURES)
def test_kernel(name):
    fixture = FIXTURES[name]
    kernel = fixture.parsed()
    reports = [problem(kernel) for problem in problems(fixture)]
    # All but a loop over no queries and the logarithm of infinity.
    reached = set().union(*(report.lines for report in reports))
    lines = {instruction.line for instruction in kernel.instructions}
    assert len(lines - reached) <= 0.1 * len(lines)
    executed = {ins.opcode for ins in kernel.instructions if ins.line in reached}
    assert {ins.opcode for ins in kernel.instructions} <= executed | {"mov.b16"}


def test_files_are_listed_and_small():
    from ptx.triton.problems import HERE

    sizes = {path.stem: path.stat().st_size for path in HERE.glob("*.ptx")}
    assert sizes.keys() == FIXTURES.keys()
    assert max(sizes.values()) < 150_000 and sum(sizes.values()) < 1_500_000


@pytest.mark.parametrize("name", FIXTURES)
def test_debug_information_is_stripped(name):
    for word in ("//", ".loc", ".file", ".section"):
        assert word not in FIXTURES[name].text
