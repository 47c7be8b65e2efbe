"""What is measured on GPUs, in the order of its worth: ten minutes give the first parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from ..artifact.library import symbol_name
from ..cases import CORRECTNESS
from ..problem.spec import AttentionSpec
from .cells import MASKS, Built, BuiltSection, Cell, Section, Target
from .contender import OURS
from .problems import Problem
from .rows import DIRECTIONS
from .sequences.length_lists import CACHED, ZIPF
from .sequences.problems import CachedProblem, PackedProblem

# Equal work at every length, as FlashAttention's papers have it.
TOKENS = 16384  # batch x seqlen
HIDDEN = 2048  # heads x head_dim
DIMS = (128, 64, 256)

# torch's own. FlexAttention's kernels are Triton's, compiled for each problem, which takes seconds.
BACKENDS = ("sdpa_cudnn", "sdpa_flash", "sdpa_efficient")
PEERS = (*BACKENDS, "flex")
# Tuned for each problem, which takes a minute.
TRITON = ("triton", "triton_tma")


def gpu_problems(
    dtype: str, dims: Sequence[int], seqlens: Sequence[int], tokens: int = TOKENS
) -> list[Problem]:
    """Every head_dim and length with a causal and a full mask; tokens and HIDDEN are kept."""
    return [
        Problem(dtype, dim, seqlen, causal, batch=tokens // seqlen, heads=HIDDEN // dim)
        for dim in dims
        for seqlen in seqlens
        for causal in MASKS[::-1]
    ]


def gpu_target(problem: Problem, direction: str) -> Target | None:
    """At head_dim 128 and from 4096 keys on, the time of the fastest other; backward 0.95 of it."""
    if problem.head_dim != 128 or problem.seqlen < 4096 or problem.queries < problem.seqlen:
        return None
    return Target(1.0 if direction == "forward" else 0.95)


def _section(
    name: str,
    title: str,
    problems: Callable[[], Sequence[Problem]],
    *others: str,
    directions: Sequence[str] = DIRECTIONS,
) -> Section:
    """The cells of ``problems()`` in ``directions``, ours beside ``others``."""

    def cells(threads: int) -> Iterator[Cell]:
        for problem, direction in product(problems(), directions):
            target = gpu_target(problem, direction)
            yield Cell(name, problem, direction, threads, target, names=(OURS, *others))

    return Section(name, title, cells, only_most=True)


def _kernels(built: Built) -> Iterator[Cell]:
    for kernel in built.library.kernels if built.library else ():
        queries, keys = (kernel.meta.get(name, 0) for name in ("block_q", "block_k"))
        problem = _tile(kernel.spec, queries, keys or queries)
        yield _built_cell("kernels", "kernel", kernel.symbol, problem, kernel.direction)


def _searches(built: Built) -> Iterator[Cell]:
    kernels = built.candidates.kernels if built.candidates else ()
    found = {(kernel.spec, kernel.direction): None for kernel in kernels}
    for spec, direction in found:
        symbol = symbol_name(spec, direction)
        yield _built_cell("candidates", "search", symbol, _tile(spec, 2048, 2048), direction)


def _tile(spec: AttentionSpec, queries: int, keys: int) -> Problem:
    return Problem(spec.dtype, spec.head_dim, keys, False, seqlen_q=queries)


def _built_cell(section: str, kind: str, symbol: str, problem: Problem, direction: str) -> Cell:
    return Cell(section, problem, direction, 1, names=(OURS,), kind=kind, case=symbol)


def _cases(every: int) -> Callable[[int], Iterator[Cell]]:
    def cells(threads: int) -> Iterator[Cell]:
        for case in CORRECTNESS[::every]:
            known = {"kind": "case", "case": case.name, "names": (OURS,)}
            problem = Problem.of(case)
            yield Cell("correctness", problem, "forward_backward", threads, **known)

    return cells


def _decode() -> list[Problem]:
    """A query for each sequence, 64 heads on 8: of a cache that is read once."""
    sizes = ((16, 8192), (1, 65536), (128, 2048))
    known = {"heads": 64, "kv_heads": 8, "seqlen_q": 1}
    return [Problem("bfloat16", 128, keys, False, batch=batch, **known) for batch, keys in sizes]


def _grouped() -> list[Problem]:
    """16 heads on 2."""
    known = {"heads": HIDDEN // 128, "kv_heads": HIDDEN // 128 // 8}
    return [
        Problem("bfloat16", 128, seqlen, True, batch=TOKENS // seqlen, **known)
        for seqlen in (4096, 16384)
    ]


def _packed() -> list[Problem]:
    lists = {"equal": [2048] * 8, "zipf": ZIPF * 2}
    known = {"causal": True, "heads": HIDDEN // 128}
    return [
        PackedProblem.of(lengths, name, "bfloat16", 128, **known) for name, lengths in lists.items()
    ]


def _cached() -> list[Problem]:
    known = {"seqlen_q": 1, "heads": 64, "kv_heads": 8}
    return [
        CachedProblem.of(CACHED, "100..8000", "bfloat16", 128, page_size=size, **known)
        for size in (16, 128)
    ]


def _lengths(
    seqlens: Sequence[int], *dtypes: str, dims: Sequence[int] = DIMS, tokens: int = TOKENS
) -> Callable[[], list[Problem]]:
    return lambda: [
        problem for dtype in dtypes for problem in gpu_problems(dtype, dims, seqlens, tokens)
    ]


_SIZES = f"batch x length = {TOKENS}, heads x head dimension = {HIDDEN}"
_BF16 = "bfloat16"
_FORWARD = ("forward",)

SECTIONS = (
    BuiltSection("kernels", "each kernel of the library by the error rule", _kernels),
    Section("correctness", "cases by the error rule", _cases(every=1), only_most=True),
    _section("lengths", _SIZES, _lengths((4096, 16384), _BF16), *PEERS),
    _section("decode", "one query, 64 heads on 8", _decode, *PEERS, directions=_FORWARD),
    _section("gqa", "16 heads on 2", _grouped, *PEERS),
    _section("packed", "one behind the other", _packed, "torch_varlen", "flex", "sdpa_padded"),
    _section(
        "cached",
        "one query, 64 heads on 8, keys in pages",
        _cached,
        *("torch_varlen", "contiguous", "read"),
        directions=_FORWARD,
    ),
    BuiltSection("candidates", "configs of a kernel beside the default", _searches),
    _section("more lengths", _SIZES, _lengths((1024, 2048, 8192), _BF16), *BACKENDS),
    _section(
        "more tokens",
        f"batch x length = {2 * TOKENS}",
        _lengths((4096, 16384), _BF16, tokens=2 * TOKENS),
        *BACKENDS,
    ),
    _section("triton", "Triton", _lengths((4096,), _BF16, dims=(128,)), *TRITON),
    _section(
        "other dtypes",
        _SIZES,
        _lengths((2048, 8192), "float16", "float32", dims=(128, 64)),
        *BACKENDS,
    ),
)

QUICK_SECTIONS = (
    SECTIONS[0],
    Section("correctness", "every eighth case", _cases(every=8), only_most=True),
    _section("lengths", "a few lengths", _lengths((2048,), _BF16, dims=(128, 64)), *PEERS),
)
