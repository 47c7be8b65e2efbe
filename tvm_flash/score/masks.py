"""Masks that papers name, as mask_mods: which keys each query of self-attention sees.

Each function returns a mask_mod(b, h, q_idx, k_idx) whose name tells its numbers. Positions count
from 0, q_idx and k_idx alike; lengths and distances are in positions. Tables are captured tensors,
on the device of the tensors that are attended to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import inf, prod

import torch

from .variants import and_masks, or_masks, window

__all__ = [
    "all_of", "any_of", "bigbird", "causal", "dilated_window", "document", "longformer",
    "neighborhood", "not_mask", "prefix_lm", "random_blocks", "sink_window", "sliding_window",
    "sparse_fixed", "sparse_strided",
]  # fmt: skip


def causal(offset: int = 0) -> Callable:
    """Keys up to the query's position, and ``offset`` further, which may be negative."""
    _check(offset=(offset, -inf))
    return _named(window(None, offset), "causal", offset=offset)


def sliding_window(left: int, right: int = 0) -> Callable:
    """Keys at most ``left`` before and ``right`` after the query; -1 is no end on that side."""
    _check(left=(left, -1), right=(right, -1))
    ends = (None if end == -1 else end for end in (left, right))
    return _named(window(*ends), "sliding_window", left=left, right=right)


def dilated_window(reach: int, dilation: int) -> Callable:
    """``reach`` keys on either side and the query's own, ``dilation`` positions apart.

    Longformer (Beltagy et al., 2020), section 3.1.
    """
    _check(reach=(reach, 0), dilation=(dilation, 1))

    def mask_mod(b, h, q_idx, k_idx):
        distance = torch.abs(q_idx - k_idx)
        return (distance <= reach * dilation) & (distance % dilation == 0)

    return _named(mask_mod, "dilated_window", reach=reach, dilation=dilation)


def document(ids: torch.Tensor) -> Callable:
    """Keys of the query's document; ids (S,) or (B, S), integers, one for each position."""
    _check_table("ids", ids, "(S,)", "(B, S)", is_bool=False)

    def mask_mod(b, h, q_idx, k_idx):
        return _of(ids, b, q_idx) == _of(ids, b, k_idx)

    return _named(mask_mod, "document")


def prefix_lm(prefix: int | torch.Tensor) -> Callable:
    """Keys up to the query's position, and all of the first ``prefix``, an int or (B,) integers.

    T5 (Raffel et al., 2020), section 3.2.1.
    """
    if isinstance(prefix, torch.Tensor):
        _check_table("prefix", prefix, "(B,)", is_bool=False)
    else:
        _check(prefix=(prefix, 0))

    def mask_mod(b, h, q_idx, k_idx):
        first = prefix[b] if isinstance(prefix, torch.Tensor) else prefix
        return (k_idx <= q_idx) | (k_idx < first)

    return _named(mask_mod, "prefix_lm")


def sink_window(sinks: int, left: int) -> Callable:
    """The query's position, ``left`` before it, and the first ``sinks`` keys.

    StreamingLLM (Xiao et al., 2023), section 3.2; causal.
    """
    _check(sinks=(sinks, 0), left=(left, 0))

    def mask_mod(b, h, q_idx, k_idx):
        return (k_idx <= q_idx) & ((k_idx >= q_idx - left) | (k_idx < sinks))

    return _named(mask_mod, "sink_window", sinks=sinks, left=left)


def longformer(reach: int, is_global: int | torch.Tensor) -> Callable:
    """A window of ``reach`` on either side; global positions see all and are seen by all.

    is_global: how many of the first positions are, or (S,) or (B, S) bool. Longformer (Beltagy et
    al., 2020), section 3.1.
    """
    parts = sliding_window(reach, reach), _global(is_global)
    return _named(or_masks(*parts), "longformer", reach=reach)


def _global(is_global: int | torch.Tensor) -> Callable:
    """Pairs with a global position."""
    if isinstance(is_global, torch.Tensor):
        _check_table("is_global", is_global, "(S,)", "(B, S)", is_bool=True)
        return lambda b, h, q_idx, k_idx: _of(is_global, b, q_idx) | _of(is_global, b, k_idx)
    _check(is_global=(is_global, 0))
    return lambda b, h, q_idx, k_idx: torch.minimum(q_idx, k_idx) < is_global


def bigbird(
    seqlen: int, block: int = 64, *, neighbors: int = 1, global_blocks: int = 2,
    random: int = 3, heads: int = 1, seed: int = 0,
) -> Callable:  # fmt: skip
    """Blocks beside the query's, global blocks, and ``random`` others for each block of queries.

    BigBird (Zaheer et al., 2020), section 2: ITC, the first ``global_blocks`` being global. Heads
    draw blocks of their own.
    """
    _check(block=(block, 1), neighbors=(neighbors, 0), global_blocks=(global_blocks, 0))
    _check(random=(random, 0))

    def near(b, h, q_idx, k_idx):
        return torch.abs(q_idx // block - k_idx // block) <= neighbors

    parts = [near, _global(global_blocks * block)]
    if random:
        parts.append(random_blocks(seqlen, block, random, heads=heads, seed=seed))
    return _named(or_masks(*parts), "bigbird", block=block, random=random)


def random_blocks(
    seqlen: int, block: int, count: int, *, heads: int = 1, seed: int = 0
) -> Callable:
    """``count`` different blocks of keys for each block of queries, drawn for each head.

    The table of blocks is (heads, blocks, count) int32; ``seed`` is of the drawing.
    """
    _check(seqlen=(seqlen, 1), block=(block, 1), count=(count, 1), heads=(heads, 1))
    _check(seed=(seed, -inf))
    blocks = -(-seqlen // block)
    if count > blocks:
        raise ValueError(f"{count=} must be at most {blocks}, the blocks of {seqlen=}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack(
        [torch.randperm(blocks, generator=generator)[:count] for _ in range(heads * blocks)]
    )
    table = drawn.view(heads, blocks, count).to(torch.int32)

    def mask_mod(b, h, q_idx, k_idx):
        row = q_idx // block
        return reduce(
            lambda seen, n: seen | (table[h, row, n] == k_idx // block),
            range(1, count),
            table[h, row, 0] == k_idx // block,
        )

    return _named(mask_mod, "random_blocks", block=block, count=count)


def neighborhood(shape: int | Sequence[int], kernel: int | Sequence[int]) -> Callable:
    """The ``kernel`` nearest keys on each axis of a grid ``shape``, its last axis the fastest.

    Every query sees as many: at an edge the neighbourhood is moved inwards. NATTEN (Hassani et al.,
    2023), equation 1.
    """
    shape, kernel = _axes("shape", shape), _axes("kernel", kernel)
    if (
        not shape
        or len(shape) != len(kernel)
        or any(k > n for n, k in zip(shape, kernel, strict=True))
    ):
        raise ValueError(f"{kernel=} must have a number up to that of {shape=} for each axis")

    def mask_mod(b, h, q_idx, k_idx):
        seen, faster = None, prod(shape)
        for extent, width in zip(shape, kernel, strict=True):
            faster //= extent
            q, k = q_idx // faster, k_idx // faster
            q_idx, k_idx = q_idx % faster, k_idx % faster
            first = torch.clamp(q - width // 2, 0, extent - width)
            near = (k >= first) & (k < first + width)
            seen = near if seen is None else seen & near
        return seen

    return _named(mask_mod, "neighborhood", shape=shape, kernel=kernel)


def sparse_strided(stride: int) -> Callable:
    """The last ``stride`` keys and every ``stride``-th before; causal.

    Sparse Transformers (Child et al., 2019), section 4.3: both heads' patterns together.
    """
    _check(stride=(stride, 1))

    def mask_mod(b, h, q_idx, k_idx):
        distance = q_idx - k_idx
        return (distance >= 0) & ((distance < stride) | (distance % stride == 0))

    return _named(mask_mod, "sparse_strided", stride=stride)


def sparse_fixed(stride: int, summary: int = 1) -> Callable:
    """Keys of the query's block of ``stride``, and the last ``summary`` of each before; causal.

    Sparse Transformers (Child et al., 2019), section 4.3: both heads' patterns together.
    """
    _check(stride=(stride, 1), summary=(summary, 1))
    if summary > stride:
        raise ValueError(f"{summary=} must be at most {stride=}")

    def mask_mod(b, h, q_idx, k_idx):
        own = q_idx // stride == k_idx // stride
        return (k_idx <= q_idx) & (own | (k_idx % stride >= stride - summary))

    return _named(mask_mod, "sparse_fixed", stride=stride, summary=summary)


def all_of(*mask_mods: Callable) -> Callable:
    """What all of ``mask_mods`` show."""
    return _composed(and_masks, "all_of", mask_mods)


def any_of(*mask_mods: Callable) -> Callable:
    """What any of ``mask_mods`` shows."""
    return _composed(or_masks, "any_of", mask_mods)


def not_mask(mask_mod: Callable) -> Callable:
    """What ``mask_mod`` hides."""
    return _composed(
        lambda mod: lambda b, h, q_idx, k_idx: ~mod(b, h, q_idx, k_idx), "not_mask", (mask_mod,)
    )


def _composed(compose: Callable, name: str, mask_mods: tuple) -> Callable:
    if not mask_mods:
        raise ValueError(f"{name}() of no mask: give one at least")
    for mod in mask_mods:
        if not callable(mod):
            raise TypeError(f"{name}() of {mod!r:.60}: give mask_mods, functions")
    composed = compose(*mask_mods)
    parts = ", ".join(getattr(mod, "__name__", "mask_mod") for mod in mask_mods)
    composed.__name__ = f"{name}({parts})"
    return composed


def _named(mask_mod: Callable, name: str, **numbers) -> Callable:
    told = ", ".join(f"{key}={value}" for key, value in numbers.items())
    mask_mod.__name__ = f"{name}({told})" if told else name
    return mask_mod


def _of(table: torch.Tensor, b, position):
    """The element of ``table`` (S,) or (B, S) for a position of entry ``b``."""
    return table[position] if table.ndim == 1 else table[b, position]


def _axes(name: str, numbers) -> tuple[int, ...]:
    numbers = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    for number in numbers:
        _check(**{name: (number, 1)})
    return numbers


def _check(**numbers: tuple[int, float]) -> None:
    """TypeError, ValueError unless each number is an int, and at least the second of its pair."""
    for name, (number, least) in numbers.items():
        if type(number) is not int:
            raise TypeError(f"{name}={number!r} must be an int")
        if number < least:
            raise ValueError(f"{name}={number} must be at least {least}")


def _check_table(name: str, table, *shapes: str, is_bool: bool) -> None:
    """TypeError, ValueError unless ``table`` is a tensor of one of ``shapes``."""
    if not isinstance(table, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(table).__name__}")
    is_integer = not (table.is_floating_point() or table.is_complex())
    if (table.dtype == torch.bool) != is_bool or not is_integer:
        wanted = "torch.bool" if is_bool else "an integer dtype"
        raise TypeError(f"{name} has {table.dtype}, must have {wanted}")
    if table.ndim not in {sum(map(str.isupper, shape)) for shape in shapes}:
        raise ValueError(f"{name} of shape {tuple(table.shape)} must be {' or '.join(shapes)}")
