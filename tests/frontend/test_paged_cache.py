"""``PagedCache`` against lists of tokens, over random operations; sharing, errors, failures."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_flash import CacheFull, PagedCache, TvmFlashError


def rows(first, count, *shape):
    """``count`` tokens, each of its own number."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return numbers.reshape(-1, *[1] * len(shape)).expand(count, *shape)


def filled(*counts, page_size=4, num_pages=8, **options):
    """A cache of heads 2, dimensions 3 and 5, with a sequence of each of these lengths."""
    cache = PagedCache(num_pages, page_size, 2, 3, 5, **options)
    ids = [cache.allocate() for _ in counts]
    k = rows(0, sum(counts), 2, 3)
    cache.append(ids, k, rows(0, sum(counts), 2, 5) + 0.5, counts)
    return cache, ids


def tokens(cache, sequence, layer=0):
    """The numbers of a sequence's tokens, after k and v are found to agree."""
    k, v = cache.gather(sequence, layer)
    assert k.shape[1:] == (2, 3) and v.shape[1:] == (2, 5)
    assert (k == k[:, :1, :1]).all() and (v == k[:, :1, :1] + 0.5).all()
    return k[:, 0, 0].int().tolist()


def by_table(cache, ids):
    """The tokens of sequences as a kernel reads them: from the tensors alone."""
    found = []
    for pages, length in zip(cache.block_table(ids), cache.seqlens_of(ids), strict=True):
        position = torch.arange(length)
        page = pages[position // cache.k_pages.shape[2]].long()
        found.append(cache.k_pages[0][page, position % cache.k_pages.shape[2], 0, 0].int().tolist())
    return found


def state(cache):
    """All of a cache that may not change where something fails."""
    a = cache._allocator
    tables = cache.page_table.clone(), cache.seqlens.clone()
    books = ({n: list(p) for n, p in a.pages.items()}, dict(a.lengths), list(a.references))
    return tables, books, sorted(a.free_pages), {n: tokens(cache, n) for n in cache.sequences}


def assert_unchanged(cache, before):
    after = state(cache)
    assert all(map(torch.equal, after[0], before[0])) and after[1:] == before[1:]


def assert_consistent(cache):
    """Every page is counted as often as sequences have it, and free where none has."""
    a = cache._allocator
    counted = Counter(page for pages in a.pages.values() for page in pages)
    assert a.references == [counted[page] for page in range(len(a.references))]
    assert sorted(a.free_pages) == [page for page, n in enumerate(a.references) if not n]
    for sequence, pages in a.pages.items():
        assert len(pages) == -(-a.lengths[sequence] // a.page_size)
        assert cache.page_table[sequence, : len(pages)].tolist() == pages
    gone = [n for n in range(len(cache.seqlens)) if n not in a.pages]
    assert not cache.page_table[gone].any() and not cache.seqlens[gone].any()


NAMES = st.integers(0, 9)
OPERATIONS = st.one_of(
    st.tuples(st.just("allocate")),
    st.tuples(st.just("fork"), NAMES),
    st.tuples(st.just("free"), st.lists(NAMES, min_size=1, max_size=2)),
    st.tuples(st.just("append"), st.lists(st.tuples(NAMES, st.integers(0, 9)), max_size=4)),
    st.tuples(st.just("compact")),
)


class Model:
    """Tokens of each sequence in a list, and the same operations on a cache beside it."""

    def __init__(self, page_size, num_pages):
        self.cache = PagedCache(num_pages, page_size, 2, 3, 5, max_sequences=5)
        self.tokens, self.next = {}, 0
        self.allocate()

    def known(self, names):
        """The sequences that numbers stand for, each once."""
        ids = list(self.tokens)
        return list(dict.fromkeys(ids[name % len(ids)] for name in names)) if ids else []

    def allocate(self):
        self.tokens[self.cache.allocate()] = []

    def fork(self, name):
        for sequence in self.known([name]):
            self.tokens[self.cache.fork(sequence)] = list(self.tokens[sequence])

    def free(self, names):
        ids = self.known(names)
        self.cache.free(ids)
        for sequence in ids:
            del self.tokens[sequence]

    def append(self, growth):
        ids = self.known([name for name, _ in growth])
        counts = [count for _, count in growth][: len(ids)]
        k = rows(self.next, sum(counts), 2, 3)
        self.cache.append(ids, k, rows(self.next, sum(counts), 2, 5) + 0.5, counts)
        for sequence, count in zip(ids, counts, strict=True):
            self.tokens[sequence] += range(self.next, self.next + count)
            self.next += count

    def compact(self):
        used = self.cache.compact()
        assert sorted(self.cache._allocator.free_pages) == list(
            range(used, self.cache.k_pages.shape[1])
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(OPERATIONS, min_size=5, max_size=25), st.sampled_from([1, 3, 4]), st.integers(1, 12)
)
def test_any_operations_keep_the_tokens(operations, page_size, num_pages):
    model = Model(page_size, num_pages)
    for name, *arguments in operations:
        before = state(model.cache)
        try:
            getattr(model, name)(*arguments)
        except (CacheFull, ValueError) as error:
            assert "free" in str(error) or "max_seqlen" in str(error)
            assert_unchanged(model.cache, before)
        assert_consistent(model.cache)
        ids = list(model.tokens)
        assert list(model.cache.sequences) == ids
        assert [tokens(model.cache, n) for n in ids] == list(model.tokens.values())
        assert by_table(model.cache, ids) == list(model.tokens.values())


def test_what_kernels_take():
    cache, ids = filled(6, 0, 9)
    table, seqlens = cache.block_table(ids[::-1]), cache.seqlens_of(torch.tensor(ids[::-1]))
    assert table.dtype == seqlens.dtype == torch.int32
    assert table.shape == (3, 8) and seqlens.tolist() == [9, 0, 6]
    assert cache.k_pages.shape == (1, 8, 4, 2, 3) and cache.v_pages.shape == (1, 8, 4, 2, 5)
    assert cache.num_free_pages == 8 - 2 - 3
    assert by_table(cache, ids) == [list(range(6)), [], list(range(6, 15))]


def test_a_fork_shares_pages_until_one_is_appended_to():
    cache, (a,) = filled(6)
    b = cache.fork(a)
    assert cache.num_free_pages == 6
    assert torch.equal(cache.page_table[a], cache.page_table[b])
    assert cache.extend([a, b], 0).shape == (0,) and cache.num_free_pages == 6
    cache.append([a], rows(6, 1, 2, 3), rows(6, 1, 2, 5) + 0.5)
    assert cache.num_free_pages == 5  # the partly filled page was copied, the full one not
    assert cache.page_table[a, 0] == cache.page_table[b, 0]
    cache.append([b], rows(70, 3, 2, 3), rows(70, 3, 2, 5) + 0.5, 3)
    assert cache.num_free_pages == 4  # b had its partly filled page alone by now
    assert tokens(cache, a) == [0, 1, 2, 3, 4, 5, 6]
    assert tokens(cache, b) == [0, 1, 2, 3, 4, 5, 70, 71, 72]
    cache.free([a])
    assert cache.num_free_pages == 5 and tokens(cache, b)[:6] == [0, 1, 2, 3, 4, 5]


def test_forks_that_grow_in_one_append_are_copied_once():
    cache, (a,) = filled(6)
    b = cache.fork(a)
    cache.append([a, b], rows(6, 2, 2, 3), rows(6, 2, 2, 5) + 0.5)
    assert cache.num_free_pages == 5
    assert tokens(cache, a)[-1] == 6 and tokens(cache, b)[-1] == 7


def test_layers_are_written_one_by_one_or_all_at_once():
    cache, (a,) = PagedCache(4, 4, 2, 3, 5, num_layers=2), (0,)
    assert cache.allocate() == a
    slots = cache.extend([a], 3)
    for layer in range(2):
        cache.write(slots, rows(10 * layer, 3, 2, 3), rows(10 * layer, 3, 2, 5) + 0.5, layer)
    fork = cache.fork(a)
    k = torch.stack([rows(n, 2, 2, 3) for n in (3, 13)])
    v = torch.stack([rows(n, 2, 2, 5) for n in (3, 13)]) + 0.5
    cache.append([fork], k, v, 2)
    for layer, first in enumerate((0, 10)):
        assert tokens(cache, a, layer) == list(range(first, first + 3))
        assert tokens(cache, fork, layer) == list(range(first, first + 5))
    cache.free([a])
    assert cache.compact() == 2
    assert tokens(cache, fork, 1) == list(range(10, 15))


def test_tensors_keep_their_place_and_take_no_graph():
    cache, (a,) = filled(6)
    held = cache.k_pages, cache.v_pages, cache.page_table, cache.seqlens
    k = rows(6, 1, 2, 3).clone().requires_grad_()
    cache.append([a], k, rows(6, 1, 2, 5) + 0.5)
    cache.compact()
    assert all(
        x is y
        for x, y in zip(
            held, (cache.k_pages, cache.v_pages, cache.page_table, cache.seqlens), strict=True
        )
    )
    assert not cache.k_pages.requires_grad


def test_compact_moves_the_last_pages_into_holes():
    cache, (a, b, c) = filled(8, 4, 7)
    cache.free([a])
    assert cache.compact() == 3
    assert sorted(cache.block_table([b, c])[:, :2].flatten().tolist()) == [0, 0, 1, 2]
    assert tokens(cache, b) == list(range(8, 12)) and tokens(cache, c) == list(range(12, 19))
    assert cache.compact() == 3


def test_shared_pages_move_for_all_who_have_them():
    cache, (a, b) = filled(4, 6)
    fork = cache.fork(b)
    cache.free([a])
    assert cache.compact() == 2
    assert_consistent(cache)
    cache.append([b], rows(10, 1, 2, 3), rows(10, 1, 2, 5) + 0.5)
    cache.free([b])
    assert tokens(cache, fork) == list(range(4, 10))
    assert_consistent(cache)


def test_no_append_writes_into_pages_of_others():
    """Slots of new tokens are distinct, and none held a token before."""
    cache, ids = filled(6, 3, 4, num_pages=12)
    fork = cache.fork(ids[0])
    before = [tokens(cache, n) for n in ids]
    slots = cache.extend([*ids, fork], [3, 2, 1, 5])
    assert len(set(slots.tolist())) == 11
    cache.write(slots, rows(50, 11, 2, 3), rows(50, 11, 2, 5) + 0.5)
    for sequence, had in zip(ids, before, strict=True):
        assert tokens(cache, sequence)[: len(had)] == had


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda c, k, v: c.extend([0], 24), CacheFull, ["6 pages", "3 of 8"]),
        (lambda c, k, v: c.append([0, 1], k, v, [3, 12]), CacheFull, ["4 pages", "3 of 8"]),
        (lambda c, k, v: c.extend([0], 99), ValueError, ["105", "32", "max_seqlen"]),
        (lambda c, k, v: c.append([7], k, v, 2), ValueError, ["sequence 7", "allocate"]),
        (lambda c, k, v: c.append([0, 0], k, v, 1), ValueError, ["sequence 0", "twice"]),
        (lambda c, k, v: c.append([0], k, v, 3), ValueError, ["k of shape (2, 2, 3)", "(3, 2, 3)"]),
        (lambda c, k, v: c.append([0], k, v[:1], 2), ValueError, ["v of shape"]),
        (lambda c, k, v: c.append([0], k, k, 2), ValueError, ["v of shape", "5)"]),
        (lambda c, k, v: c.append([0], k.half(), v, 2), TypeError, ["k.dtype", "16", "float32"]),
        (lambda c, k, v: c.append([0], k, None, 2), TypeError, ["v", "NoneType"]),
        (lambda c, k, v: c.append([0], k, v.to("meta"), 2), ValueError, ["meta", "cpu"]),
        (lambda c, k, v: c.append([0], k, v, [1, 1]), ValueError, ["counts", "1 integers"]),
        (lambda c, k, v: c.append([0], k, v, -2), ValueError, ["-2", ">= 0"]),
        (lambda c, k, v: c.append([0], k, v, [2.0]), TypeError, ["counts", "2.0"]),
        (lambda c, k, v: c.append(0, k, v, 2), TypeError, ["ids=0", "list"]),
        (lambda c, k, v: c.write(torch.arange(3), k, v), ValueError, ["(2, 2, 3)", "(3, 2, 3)"]),
        (lambda c, k, v: c.write(torch.arange(2), k, v, 1), ValueError, ["layer=1", "0..0"]),
        (lambda c, k, v: c.write(torch.tensor([0, 32]), k, v), ValueError, ["slot 32", "0..31"]),
        (lambda c, k, v: c.write(torch.arange(2).int(), k, v), TypeError, ["slots", "int64"]),
        (lambda c, k, v: c.write([0, 1], k, v), TypeError, ["slots", "int64, not list"]),
        (lambda c, k, v: c.append([0], k, v.to_sparse(), 2), TypeError, ["v of layout"]),
        (lambda c, k, v: c.free([0, 7]), ValueError, ["sequence 7"]),
        (lambda c, k, v: c.free([0, 0]), ValueError, ["twice"]),
        (lambda c, k, v: c.fork(7), ValueError, ["sequence 7"]),
        (lambda c, k, v: c.fork(0), CacheFull, ["all 3 sequences", "max_sequences"]),
        (lambda c, k, v: c.allocate(), CacheFull, ["all 3 sequences"]),
        (lambda c, k, v: c.block_table([0, 9]), ValueError, ["sequence 9"]),
        (lambda c, k, v: c.seqlens_of([9]), ValueError, ["sequence 9"]),
        (lambda c, k, v: c.gather(9), ValueError, ["sequence 9"]),
    ],
)  # fmt: skip
def test_what_fails_leaves_the_cache_as_it_was(call, error, parts):
    cache, _ = filled(6, 9, 0, max_sequences=3, max_seqlen=38, num_pages=8)
    before = state(cache)
    with pytest.raises(error) as raised:
        call(cache, rows(90, 2, 2, 3), rows(90, 2, 2, 5) + 0.5)
    assert all(part in str(raised.value) for part in parts), raised.value
    assert_unchanged(cache, before)


def test_values_of_the_cache_itself_are_read_before_it_is_written():
    cache, (a, b) = filled(6, 3)
    had = cache.gather(a)
    k, v = (pages[0].flatten(0, 1)[:6] for pages in (cache.k_pages, cache.v_pages))
    cache.append([a, b], k, v, [3, 3])
    for got, rows_of_a in zip(cache.gather(b), had, strict=True):
        assert torch.equal(got[3:], rows_of_a[3:])


def test_a_cache_of_inference_mode_is_changed_there_alone():
    with torch.inference_mode():
        cache, (a,) = filled(6)
    before = state(cache)
    for change in (cache.allocate, cache.compact, lambda: cache.fork(a), lambda: cache.free([a])):
        with pytest.raises(RuntimeError, match="made in inference mode"):
            change()
    assert_unchanged(cache, before)


def test_a_write_that_breaks_off_leaves_no_token(monkeypatch):
    """Out of memory between pages and tables: what was taken is free again, the copy too."""
    cache, (a,) = filled(6)
    cache.fork(a)
    before = state(cache)

    def fail(*arguments):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(cache._pool, "write", fail)
    with pytest.raises(torch.OutOfMemoryError):
        cache.append([a], rows(6, 4, 2, 3), rows(6, 4, 2, 5), 4)
    assert_unchanged(cache, before)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "part"),
    [
        ((0, 4, 2, 3), {}, ValueError, "num_pages=0"),
        ((8, 2.5, 2, 3), {}, TypeError, "page_size=2.5"),
        ((8, 4, 2, 3, 0), {}, ValueError, "head_dim_v=0"),
        ((8, 4, 2, 3), {"num_layers": -1}, ValueError, "num_layers=-1"),
        ((8, 4, 2, 3), {"max_sequences": 0}, ValueError, "max_sequences=0"),
        ((8, 4, 2, 3), {"max_seqlen": 0}, ValueError, "max_seqlen=0"),
    ],
)
def test_sizes(sizes, options, error, part):
    with pytest.raises(error, match=part):
        PagedCache(*sizes, **options)


def test_a_full_cache_is_an_error_of_the_package():
    assert issubclass(CacheFull, TvmFlashError) and issubclass(CacheFull, RuntimeError)
