"""Kinds of Sequences that the package does not have: entries of different lengths, on TIR."""

from dataclasses import dataclass

from tvm import tirx

from tvm_flash.problem.sequences import DenseSequences


@dataclass(frozen=True)
class PackedSequences(DenseSequences):
    """Entries one behind the other, from the first row of entry 0 on; statistics (B, H, longest).

    seqlen_q, seqlen_k: of the longest ones. starts_q, starts_k: (B + 1,), where entries begin.
    """

    starts_q: tirx.Buffer
    starts_k: tirx.Buffer

    def lengths(self, entry):
        return tuple(
            tirx.Cast("int64", starts[entry + 1] - starts[entry])
            for starts in (self.starts_q, self.starts_k)
        )

    def has_query(self, entry, row):
        return row < self.lengths(entry)[0]

    def query(self, entry, head, row, column):
        return 0, _after(self.starts_q[entry], row), head, column

    def key(self, entry, head, row, column):
        return 0, _after(self.starts_k[entry], row), head, column

    def key_of_run(self, entry, head, first, row, column):
        return self.key(entry, head, first + row, column)


def _after(start, row):
    return slice(start + row.start, start + row.stop) if isinstance(row, slice) else start + row


PAGE = 16


@dataclass(frozen=True)
class PagedSequences(DenseSequences):
    """Dense queries; keys in pages of ``PAGE``, counted from the first key of entry 0 on.

    counts: (B,) keys of an entry. pages: (B, most), where its pages lie.
    """

    counts: tirx.Buffer
    pages: tirx.Buffer
    run = PAGE

    def lengths(self, entry):
        return self.seqlen_q, tirx.Cast("int64", self.counts[entry])

    def key(self, entry, head, row, column):
        if isinstance(row, slice):  # no narrower region holds them
            return slice(0, 1), slice(0, self.seqlen_k), head, column
        return self.key_of_run(entry, head, row, 0, column)

    def key_of_run(self, entry, head, first, row, column):
        page = self.pages[entry, tirx.truncdiv(first, PAGE)]
        return 0, page * PAGE + tirx.truncmod(first, PAGE) + row, head, column
