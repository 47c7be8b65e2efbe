"""Entries of different lengths on interpreted GPU kernels, held to the error rule."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from interpreted import interpreted

from tvm_flash.problem.arguments import WRITTEN, ZEROED, arguments, given_sizes, names, size_values
from tvm_flash.problem.numbers import kinds_of, numbers_by_name
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.verify.plan import run_program
from tvm_flash.verify.rule import deviations

Tensors = dict[str, torch.Tensor]
INPUTS = ("q", "k", "v", "dout", "dlse")


@dataclass(frozen=True)
class Entries:
    """Lengths of queries and keys by entry, ``gap`` unused rows after each, and heads."""

    rows: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 1
    gap: int = 0

    @cached_property
    def spans(self) -> Tensors:
        """starts_q, ends_q, starts_k, ends_k (B,) int32."""
        found = {}
        for name, lengths in (("q", self.rows), ("k", self.keys)):
            lengths = torch.tensor(lengths, dtype=torch.int32)
            starts = torch.cumsum(lengths + self.gap, 0, dtype=torch.int32) - lengths - self.gap
            found |= {f"starts_{name}": starts, f"ends_{name}": starts + lengths}
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of a call by name."""
        count = len(self.rows)
        return {
            "B": count, "H": self.heads, "Hk": self.kv_heads,
            "total_q": sum(self.rows) + self.gap * count,
            "total_k": sum(self.keys) + self.gap * count,
            "max_seqlen_k": max(self.keys, default=0),
        }  # fmt: skip

    def slices(self, which: str) -> list[slice]:
        """Rows of each entry in the tensors of queries ("q") or keys ("k")."""
        starts, ends = (self.spans[f"{end}_{which}"].tolist() for end in ("starts", "ends"))
        return [slice(*span) for span in zip(starts, ends, strict=True)]


class Ragged:
    """A call of packed sequences on random tensors: what kernels give, and what is right.

    variant: keywords of ``attention_reference``. fields: the spec's others. page_size: keys then
    lie in pages, in no order.
    """

    def __init__(
        self, entries: Entries, variant: dict[str, Any], seed: int = 0, page_size: int = 0, **fields
    ):
        given = dict(variant)
        ends = {name: given.pop(name) for name in ("window_size", "softcap") if name in given}
        kinds = kinds_of(causal=given.pop("causal", False), **ends)
        slopes = given.pop("alibi_slopes", None)
        self.page_size, sequences = page_size, "paged" if page_size else "packed"
        fields = {"sequences": sequences, **fields, **kinds, **given}
        spec, tables = AttentionSpec.capture(alibi=slopes is not None, **fields)
        self.tables = tables if slopes is None else [slopes, *tables]
        self.spec, self.entries, self.variant = spec, entries, variant
        self._random = torch.Generator().manual_seed(seed)
        sizes, dims = entries.sizes, (spec.head_dim, spec.head_dim_v)
        queries, keys = (sizes["total_q"], sizes["H"]), (sizes["total_k"], sizes["Hk"])
        shapes = ((*queries, dims[0]), (*keys, dims[0]), (*keys, dims[1]), (*queries, dims[1]))
        self.inputs = dict(zip(INPUTS, map(self._normal, shapes), strict=False))
        self.inputs["dlse"] = torch.randn(sizes["H"], sizes["total_q"], generator=self._random)

    def _normal(self, shape) -> torch.Tensor:
        return torch.randn(*shape, generator=self._random).to(self.spec.element.torch)

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of a call by name."""
        own = {x: self.variant[x] for x in ("window_size", "softcap") if x in self.variant}
        longest = self.entries.sizes["max_seqlen_k"]
        return {**numbers_by_name(self.spec.head_dim**-0.5, **own), "max_seqlen_k": longest}

    def call(
        self, direction: str, arch: str, given: Tensors, unwritten: bool = False, **options
    ) -> Tensors:
        """What the default kernels write, interpreted with all checks; NaN where they do not.

        given: in place of the problem's own, and more. unwritten: some of the outputs may stay as
        they were. options: of ``run_program``.
        """
        kernel, table = interpreted(self.spec, direction, arch), arguments(self.spec, direction)
        tables = {f"table{n}": table for n, table in enumerate(self.tables)}
        pages = self.in_pages() if self.page_size else {}
        known = {**self.inputs, **self.entries.spans, **self.numbers, **tables, **pages, **given}
        sizes = self.entries.sizes | given_sizes(table, known)
        make = new_tensors(size_values(self.spec, sizes, kernel.program.meta))
        call, written = completed(table, known, make), names(table, *WRITTEN)
        zeroed: Collection[str] = ZEROED
        if unwritten:
            zeroed = written
            for name in set(written) - set(ZEROED):
                call[name].fill_(math.nan)
        options = {"outputs": written, "zeroed": zeroed, **options}
        run_program(kernel.program, kernel.ptx, call, **options)
        return {name: call[name] for name in names(table, "output")}

    def in_pages(self) -> Tensors:
        """k and v in pages with NaN between them, their table, and spans of positions.

        An entry's keys begin at position 2: others use what is before.
        """
        before, size = 2, self.page_size
        counts = [-(-(before + keys) // size) for keys in self.entries.keys]
        order = torch.randperm(sum(counts) + 2, generator=self._random)
        table = torch.full((len(counts), max(counts, default=0) + 1), -7, dtype=torch.int32)
        pages = {
            name: self.inputs[name].new_full(
                (len(order), size, *self.inputs[name].shape[1:]), math.nan
            )
            for name in "kv"
        }
        used = 0
        for entry, keys in enumerate(self.entries.slices("k")):
            own = order[used : used + counts[entry]]
            used += counts[entry]
            table[entry, : len(own)] = own
            places = before + torch.arange(keys.stop - keys.start)
            for name, whole in pages.items():
                whole[own[places // size], places % size] = self.inputs[name][keys]
        lengths = torch.tensor(self.entries.keys, dtype=torch.int32)
        starts = torch.full_like(lengths, before)
        return {**pages, "page_table": table, "starts_k": starts, "ends_k": starts + lengths}

    def found(self, arch: str, backward: str, **options) -> Tensors:
        """out, lse, dq, dk, dv of the kernels; ``backward`` "" leaves out gradients."""
        saved = self.call("forward", arch, {}, **options)
        return saved | self.call(backward, arch, saved, **options) if backward else saved

    def expected(self, dtype: torch.dtype | None) -> Tensors:
        """The same of torch, entry by entry, computed in ``dtype``; NaN in rows of no entry."""
        leaves = {name: self.inputs[name].to(dtype or self.inputs["q"].dtype) for name in "qkv"}
        like = {"out": "dout", "lse": "dlse", "dq": "q", "dk": "k", "dv": "v"}
        wide = dtype or torch.float32
        whole = {
            name: torch.full_like(self.inputs[x], math.nan, dtype=wide) for name, x in like.items()
        }
        spans = zip(self.entries.slices("q"), self.entries.slices("k"), strict=True)
        for number, (rows, keys) in enumerate(spans):
            own = [leaves["q"][None, rows], leaves["k"][None, keys], leaves["v"][None, keys]]
            own = [x.clone().requires_grad_() for x in own]
            out, lse = attention_reference(*own, **self._variant_of(number))
            upstream = (
                self.inputs["dout"][None, rows].to(out.dtype),
                self.inputs["dlse"][None, :, rows].to(lse.dtype),
            )
            grads = torch.autograd.grad((out, lse), own, upstream, materialize_grads=True)
            whole["out"][rows], whole["lse"][:, rows] = out.detach()[0], lse.detach()[0]
            for name, place, grad in zip(
                ("dq", "dk", "dv"), (rows, keys, keys), grads, strict=True
            ):
                whole[name][place] = grad[0]
        return whole

    def _variant_of(self, entry: int) -> dict[str, Any]:
        """The variant for an entry alone, which torch knows as number 0."""
        variant = dict(self.variant)
        for name in ("score_mod", "mask_mod"):
            if name in variant:
                variant[name] = partial(_of_entry, variant[name], entry, name == "score_mod")
        if "alibi_slopes" in variant:
            variant["alibi_slopes"] = variant["alibi_slopes"][entry : entry + 1]
        return variant

    def check(self, found: Tensors) -> None:
        """Assert the error rule for what an entry has, and that nothing else was written."""
        found = dict(found)
        if "lse_low" in found:
            found["lse"] = found["lse"].double() + found.pop("lse_low").double()
        exact, plain = self.expected(torch.float64), self.expected(None)
        for name, got in found.items():
            of_none = exact[name].isnan()
            assert got[of_none].isnan().all(), f"{name}: rows of no entry were written"
            for results in (found, exact, plain):
                results[name] = results[name].masked_fill(of_none, 0)
        held = deviations(self.spec.dtype, found, exact, plain)
        wrong = [str(deviation) for deviation in held if not deviation.ok]
        assert not wrong, "; ".join(wrong)


def _of_entry(function, entry: int, is_score: bool, *arguments):
    b = int(is_score)
    return function(*arguments[:b], arguments[b] + entry, *arguments[b + 1 :])
