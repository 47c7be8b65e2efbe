"""What autograd keeps of a forward operator's call, and how the backward operator is called."""

from __future__ import annotations

from functools import cache

import torch

from ..problem.arguments import names
from .checks import check_learned
from .spec_names import spec_of


@cache
def parameters(operator) -> dict:
    """The default values of the operator's parameters by name, in order."""
    return {p.name: p.default_value for p in operator._schema.arguments}


def named(operator, inputs) -> dict:
    """``inputs`` by the names of the operator's parameters.

    The dispatcher leaves out last arguments that have their default values.
    """
    return {**parameters(operator), **dict(zip(parameters(operator), inputs, strict=False))}


class Recording:
    """``save`` and ``gradients`` of ``autograd.differentiable`` for a pair of operators.

    table_gradients: the operator of the tables' gradients. table: the arguments of their kernels by
    direction (problem.arguments.TABLES). Kept are the
    tensors that the backward's table names of the call, the captured tables, and plain values.
    """

    def __init__(self, forward, backward, table_gradients, table):
        self._backward, self._table_gradients = backward, table_gradients
        known = parameters(forward)
        self.outputs = names(table["forward"], "output")
        upstream = [f"d{x}" for x in self.outputs]
        self._saved = [
            a.name
            for a in table["backward"]
            if a.role in ("input", "saved") and a.name not in upstream
        ]
        others = (*self._saved, "tables")
        plain = [x for x in parameters(backward) if x in known and x not in others]
        self._defaults, self._tables = tuple(known.values()), list(known).index("tables")
        self._spec = list(known).index("spec")
        places = (*known, *self.outputs)
        self._saved_of, self._plain_of = _picker(self._saved, places), _picker(plain, places)
        given = names(table["backward"], "input")
        constants = [x for x in self.outputs if f"d{x}" not in given]
        self._constants_of = _picker(constants, self.outputs)
        wanted = [x[1:] for x in names(table["backward"], "output")]
        self._wanted = [(x, list(known).index(x)) for x in wanted]
        known = (*self._saved, *plain, "tables", "learned", *upstream)
        self._inputs_of, self._learned_of = (
            _picker(parameters(operator), known) for operator in (backward, table_gradients)
        )

    def save(self, ctx, inputs, results) -> None:
        """Keep what the backward takes of this call."""
        known = (*inputs, *self._defaults[len(inputs) :], *results)
        ctx.count, ctx.plain = len(inputs), self._plain_of(known)
        if ctx.learned:
            check_learned(spec_of(known[self._spec]), ctx.learned, known[self._tables])
        ctx.save_for_backward(*self._saved_of(known), *(known[self._tables] or ()))
        ctx.mark_non_differentiable(*self._constants_of(results))
        ctx.set_materialize_grads(False)

    def gradients(self, ctx, dout, *upstream):
        """Gradients by the inputs of which the backward's outputs are named, and None by others;
        then by the tables ``ctx.learned``."""
        tensors = ctx.saved_tensors  # once: checkpointing unpacks them a single time
        saved, tables = tensors[: len(self._saved)], list(tensors[len(self._saved) :])
        if dout is None:
            dout = torch.zeros_like(saved[self._saved.index("out")])
        needed, found = ctx.needs_input_grad[:-1], [None] * ctx.count
        learned = [n for n, x in zip(ctx.learned, needed[ctx.count :], strict=True) if x]
        inputs = (*saved, *ctx.plain, tables, learned, dout, *upstream)
        given = dict(zip(self._saved, saved, strict=False))
        if not learned or any(needed[: ctx.count]):
            results = self._backward(*self._inputs_of(inputs))
            for (name, place), grad in zip(self._wanted, results, strict=True):
                if given[name] is not None:
                    found[place] = grad
        own = {}
        if learned:
            flat = self._table_gradients(*self._learned_of(inputs))
            pieces = flat.split([tables[n].numel() for n in learned])
            own = {
                n: piece.view(tables[n].shape).to(tables[n].dtype)
                for n, piece in zip(learned, pieces, strict=True)
            }
        return (*found, *(own.get(n) for n in ctx.learned))


def _picker(wanted, known):
    """A function that picks, of values whose names are ``known``, those named ``wanted``."""
    places = [list(known).index(name) for name in wanted]
    return lambda values: [values[place] for place in places]
