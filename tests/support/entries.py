"""Entries of different lengths on interpreted GPU kernels, held to the error rule."""

from __future__ import annotations

import math
from typing import Any

import torch
from interpreted import interpreted
from packed_problems import Entries, Tensors

from tvm_flash.cases import Inputs
from tvm_flash.problem.arguments import (
    WRITTEN,
    arguments,
    given_sizes,
    names,
    size_values,
    values_before,
)
from tvm_flash.problem.numbers import kinds_of, numbers_by_name
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.verify.plan import run_program
from tvm_flash.verify.rule import deviations, results


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
        drawn = entries.inputs(spec.head_dim, spec.head_dim_v, spec.element.torch, seed)
        self.inputs: Tensors = drawn._asdict()
        del self.inputs["variant"]

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

        given: in place of the problem's own, and more; "splits": parts of the keys. unwritten: some
        of the outputs may stay as they were. options: of ``run_program``.
        """
        kernel, table = interpreted(self.spec, direction, arch), arguments(self.spec, direction)
        tables = {f"table{n}": table for n, table in enumerate(self.tables)}
        pages = self.in_pages() if self.page_size else {}
        given = dict(given)
        splits = given.pop("splits", 1)
        known = {**self.inputs, **self.entries.spans, **self.numbers, **tables, **pages, **given}
        sizes = self.entries.sizes | given_sizes(table, known) | {"splits": splits}
        make = new_tensors(size_values(self.spec, sizes, kernel.program.meta))
        call, written = completed(table, known, make), names(table, *WRITTEN)
        zeroed = values_before(table)
        if unwritten:
            outputs = names(table, "output")
            zeroed = (*outputs, *zeroed)
            for name in outputs:
                call[name].fill_(math.nan)
        options = {"outputs": written, "zeroed": zeroed, **options}
        run_program(kernel.program, kernel.ptx, call, **options)
        return {name: call[name] for name in names(table, "output")}

    def in_pages(self) -> Tensors:
        """The keys in pages; an entry's begin at position 2: others use what is before."""
        left = [2] * len(self.entries.keys)
        return self.entries.in_pages(self.inputs["k"], self.inputs["v"], self.page_size, left)

    def found(self, arch: str, backward: str, **options) -> Tensors:
        """out, lse, dq, dk, dv of the kernels; ``backward`` "" leaves out gradients."""
        saved = self.call("forward", arch, {}, **options)
        return saved | self.call(backward, arch, saved, **options) if backward else saved

    def check(self, found: Tensors) -> None:
        """Assert the error rule for what an entry has, and that nothing else was written."""
        found = dict(found)
        if "lse_low" in found:
            found["lse"] = found["lse"].double() + found.pop("lse_low").double()
        inputs = Inputs(**self.inputs, variant=self.variant)
        exact, plain = (
            results(self.entries.alone, inputs, dtype) for dtype in (torch.float64, None)
        )
        for name, got in found.items():
            of_none = self.entries.outside("k" if name in ("dk", "dv") else "q")
            of_none = of_none if name == "lse" else of_none[:, None, None]
            unwritten = got[of_none.expand_as(got)].isnan().all()
            assert unwritten, f"{name}: rows of no entry were written"
            found[name] = torch.where(of_none, exact[name].to(got.dtype), got)
        held = deviations(self.spec.dtype, found, exact, plain)
        wrong = [str(deviation) for deviation in held if not deviation.ok]
        assert not wrong, "; ".join(wrong)
