"""The interpreter on kernels of another compiler: numbers against float64, every check on."""

import pytest
from ptx.triton.problems import fixtures, problems

FIXTURES = fixtures()
RARE: set[str] = set()


@pytest.mark.parametrize("name", FIXTURES)
def test_kernel(name):
    fixture = FIXTURES[name]
    kernel = fixture.parsed()
    reports = [problem(kernel) for problem in problems(fixture)]
    lines = set().union(*(report.lines for report in reports))
    unreached = {ins.text for ins in kernel.instructions if ins.line not in lines}
    assert unreached <= RARE


def test_files_are_listed_and_small():
    from ptx.triton.problems import HERE

    sizes = {path.stem: path.stat().st_size for path in HERE.glob("*.ptx")}
    assert sizes.keys() == FIXTURES.keys()
    assert max(sizes.values()) < 150_000 and sum(sizes.values()) < 1_500_000


@pytest.mark.parametrize("name", FIXTURES)
def test_debug_information_is_stripped(name):
    for word in ("//", ".loc", ".file", ".section"):
        assert word not in FIXTURES[name].text
