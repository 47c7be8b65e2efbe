"""Which views GPU kernels read as they are, and which are copied first."""

import pytest
import torch

from tvm_flash.frontend import placement
from tvm_flash.frontend.placement import (
    has_aligned_rows,
    has_readable_rows,
    place_of,
    readable_rows,
)

BASE = torch.zeros(2, 6, 4, 72, dtype=torch.float16)


@pytest.mark.parametrize(
    ("view", "aligned"),
    [
        (BASE, True),
        (BASE.transpose(1, 2), True),
        (BASE[..., 8:], True),  # 16 bytes from the start
        (BASE[..., 4:68], False),  # 8 bytes from the start, rows of 128 bytes
        (BASE[..., 4:40], True),  # rows of 72 bytes are read 8 at a time
        (BASE[..., 1:10], True),  # 9 elements are read 2 bytes at a time
        (torch.zeros(2, 6, 4, 68, dtype=torch.float16)[..., :64], False),  # rows 136 bytes apart
        (BASE.as_strided((1, 6, 1, 64), (1, 72, 3, 1)), True),  # one element: any stride
    ],
    ids=range(8),
)
def test_aligned_rows(view, aligned):
    view = view if isinstance(view, torch.Tensor) else BASE
    assert has_aligned_rows(view) == aligned


def test_cpu_kernels_take_any_contiguous_row():
    assert has_readable_rows(BASE[..., 4:68])
    assert not has_readable_rows(BASE[..., ::2])
    assert place_of(BASE) == ("cpu", None)


def test_what_counts_as_contiguous_is_copied_too(monkeypatch):
    assert readable_rows(torch.zeros(2, 0, 4, 16)[..., ::2]).stride(-1) == 1
    dense = torch.zeros(65, dtype=torch.float16)[1:].view(1, 64)  # 2 bytes from the start
    assert readable_rows(dense) is dense
    monkeypatch.setattr(placement, "has_readable_rows", has_aligned_rows)  # as on a GPU
    assert dense.is_contiguous() and has_aligned_rows(readable_rows(dense))
