"""The main loop of a kernel, and the way through it that most rounds take."""

from __future__ import annotations

import pytest
from listings import code

from tvm_flash.codegen.sass.flow import loops, main_loop, steady_path, successors

# A mask in few tiles, a next tile in all but the last, a rescaling when a maximum has grown.
ATTENTION = code("""
    MOV R1, RZ
    head:
    @P0 BRA `(multiply)
    LDGSTS.E.BYPASS.128 [R2], [R4.64]
    multiply:
    HMMA.16816.F32 R8, R4, R2, R8
    @!P1 BRA `(masked)
    FSEL R8, R8, -INF , P2
    FSEL R9, R9, -INF , P3
    masked:
    BRA P4, `(kept)
    FMUL R8, R8, R3
    BRA `(joined)
    kept:
    NOP
    joined:
    @P5 BRA `(done)
    BRA.DIV ~URZ, `(apart)
    BAR.SYNC.DEFER_BLOCKING 0x0
    @P6 BRA `(head)
    done:
    EXIT
    apart:
    WARPSYNC 0xffffffff
    BRA `(joined)
""")


def path_of(kernel):
    return [kernel[index].text for index in steady_path(kernel, main_loop(kernel))]


def test_rare_branches_are_left_out():
    assert path_of(ATTENTION) == [
        "@P0 BRA `(.L_multiply)", "LDGSTS.E.BYPASS.128 [R2], [R4.64]",
        "HMMA.16816.F32 R8, R4, R2, R8", "@!P1 BRA `(.L_masked)", "BRA P4, `(.L_kept)", "NOP",
        "@P5 BRA `(.L_done)", "BRA.DIV ~URZ, `(.L_apart)", "BAR.SYNC.DEFER_BLOCKING 0x0",
        "@P6 BRA `(.L_head)",
    ]  # fmt: skip


def test_of_two_ways_that_multiply_the_shorter_is_the_steady_one():
    kernel = code("""
        head:
        @P0 BRA `(plain)
        FSEL R8, R8, -INF , P2
        HMMA.16816.F32 R8, R4, R2, R8
        BRA `(next)
        plain:
        HMMA.16816.F32 R8, R4, R2, R8
        next:
        @P1 BRA `(head)
        EXIT
    """)
    assert [kernel[n].opcode for n in steady_path(kernel, main_loop(kernel))] == [
        "BRA", "HMMA.16816.F32", "BRA",
    ]  # fmt: skip


def test_the_main_loop_is_the_innermost_with_most_products():
    kernel = code("""
        tiles:
        masked:
        HMMA.16816.F32 R8, R4, R2, R8
        FSEL R8, R8, -INF , P2
        @P0 BRA `(masked)
        plain:
        HMMA.16816.F32 R8, R4, R2, R8
        @P1 BRA `(plain)
        @P2 BRA `(tiles)
        rows:
        STG.E [R2.64], R8
        @P3 BRA `(rows)
        EXIT
    """)
    assert [(loop.head, loop.tail, loop.products) for loop in loops(kernel)] == [
        (0, 2, 1), (3, 4, 1), (0, 5, 2), (6, 7, 0),
    ]  # fmt: skip
    assert main_loop(kernel).tail == 5
    # The same products in the outer loop as in the inner one: it is the inner one that counts.
    inner = [*kernel[3:5], *kernel[6:]]
    assert main_loop(code("\n".join(one.text for one in inner if one.target is None))) is None


def test_an_inner_loop_is_run_through_once():
    kernel = code("""
        head:
        HMMA.16816.F32 R8, R4, R2, R8
        inner:
        LDG.E R4, [R2.64]
        @P0 BRA `(inner)
        HMMA.16816.F32 R8, R4, R2, R8
        @P1 BRA `(head)
        EXIT
    """)
    assert steady_path(kernel, main_loop(kernel)) == [0, 1, 2, 3, 4]


def test_code_out_of_line_belongs_to_its_loop():
    kernel = code("""
        head:
        BRA `(away)
        back:
        @P0 BRA `(head)
        EXIT
        away:
        HMMA.16816.F32 R8, R4, R2, R8
        BRA `(back)
    """)
    (loop,) = loops(kernel)
    assert steady_path(kernel, loop) == [0, 3, 4, 1]


def test_a_loop_that_nothing_closes():
    kernel = code("""
        head:
        HMMA.16816.F32 R8, R4, R2, R8
        EXIT
        @P0 BRA `(head)
    """)
    with pytest.raises(ValueError, match="no way through the loop at 0x0"):
        steady_path(kernel, main_loop(kernel))


def test_what_may_come_next():
    kernel = code("""
        @P0 EXIT
        @P0 CALL.REL.NOINC `(away)
        BRX R4 -0x10
        @!PT BRA `(away)
        away:
        RET.REL.NODEC R2
    """)
    assert [successors(kernel, n) for n in range(5)] == [(1,), (2,), (), (4,), ()]
