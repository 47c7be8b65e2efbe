"""Parts of the keys are chosen by sizes and by how many blocks a device runs at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_flash.problem.splits import (
    MOST_ROUNDS,
    MOST_SPLITS,
    TILE_KEYS,
    TILE_ROWS,
    chosen_splits,
    splits_of,
)

SMS = 132


def dense(batch, heads, kv_heads, queries):
    return {"B": batch, "H": heads, "Hk": kv_heads, "Sq": queries}


def packed(batch, heads, kv_heads, total):
    return {"B": batch, "H": heads, "Hk": kv_heads, "total_q": total}


@pytest.mark.parametrize(
    ("sizes", "keys", "splits"),
    [
        (dense(1, 32, 8, 1), 8192, 32),
        (dense(1, 32, 32, 1), 8192, 8),
        (dense(1, 8, 1, 1), 131072, 128),
        (dense(8, 32, 8, 1), 4096, 4),
        (packed(8, 32, 8, 8), 4096, 4),
        # Blocks enough, of heads that share keys and of heads that do not.
        (dense(64, 32, 8, 1), 4096, 1),
        (dense(64, 32, 32, 1), 4096, 0),
        # Part of a prompt against a cache, long and short.
        (dense(1, 8, 8, 64), 32768, 32),
        (dense(1, 32, 8, 4096), 131072, 0),
        (dense(1, 32, 8, 16), 128, 1),
        # As many queries as keys; one tile of keys; nothing.
        (dense(1, 8, 8, 2048), 2048, 0),
        (dense(1, 8, 8, 1), TILE_KEYS, 0),
        (dense(2, 8, 8, 1), 0, 0),
        (packed(0, 8, 8, 0), 100, 0),
        (packed(3, 8, 8, 0), 100, 0),
        (dense(2, 8, 8, 0), 100, 0),
        (dense(2, 0, 0, 1), 100, 0),
    ],
)
def test_calls(sizes, keys, splits):
    assert chosen_splits(sizes, keys, SMS) == splits


@given(blocks=st.integers(1, 3000), tiles=st.integers(1, 5000), places=st.integers(1, 600))
def test_limits(blocks, tiles, places):
    splits = splits_of(blocks, tiles, places)
    assert 1 <= splits <= min(tiles, MOST_SPLITS)
    assert splits == 1 or blocks * splits <= MOST_ROUNDS * places, "workspaces are of this size"
    if blocks >= places:
        assert splits == 1, "the grid fills the device by itself"


@given(blocks=st.integers(1, 600), places=st.integers(1, 600))
def test_more_keys_never_take_fewer_blocks_at_once(blocks, places):
    found = [splits_of(blocks, tiles, places) for tiles in (1, 8, 64, 4096)]
    assert found[0] == 1
    assert found[-1] >= found[1]


def test_workspaces_do_not_grow_with_the_batch():
    def rows(batch):
        sizes = dense(batch, 32, 8, 1)
        return chosen_splits(sizes, 65536, SMS) * batch * 32

    most = MOST_ROUNDS * 2 * SMS * TILE_ROWS
    assert all(rows(batch) <= max(most, batch * 32) for batch in (1, 2, 7, 32, 100, 1000))
