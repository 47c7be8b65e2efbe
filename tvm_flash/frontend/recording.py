"""What autograd keeps of a forward operator's call, and how the backward operator is called."""

from __future__ import annotations

from functools import cache

import torch

from ..problem.arguments import names


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

    table: the arguments of their kernels by direction (problem.arguments.TABLES). Kept are the
    tensors that the backward's table names of the call, the captured tables, and plain values.
    """

    def __init__(self, forward, backward, table):
        self._backward = backward
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
        places = (*known, *self.outputs)
        self._saved_of, self._plain_of = _picker(self._saved, places), _picker(plain, places)
        given = names(table["backward"], "input")
        constants = [x for x in self.outputs if f"d{x}" not in given]
        self._constants_of = _picker(constants, self.outputs)
        wanted = [x[1:] for x in names(table["backward"], "output")]
        self._wanted = [(x, list(known).index(x)) for x in wanted]
        self._inputs_of = _picker(parameters(backward), (*self._saved, *plain, "tables", *upstream))

    def save(self, ctx, inputs, results) -> None:
        """Keep what the backward takes of this call."""
        known = (*inputs, *self._defaults[len(inputs) :], *results)
        ctx.count, ctx.plain = len(inputs), self._plain_of(known)
        ctx.save_for_backward(*self._saved_of(known), *(known[self._tables] or ()))
        ctx.mark_non_differentiable(*self._constants_of(results))
        ctx.set_materialize_grads(False)

    def gradients(self, ctx, dout, *upstream):
        """Gradients by the inputs of which the backward's outputs are named, and None by others."""
        tensors = ctx.saved_tensors  # once: checkpointing unpacks them a single time
        saved, tables = tensors[: len(self._saved)], list(tensors[len(self._saved) :])
        if dout is None:
            dout = torch.zeros_like(saved[self._saved.index("out")])
        inputs = self._inputs_of((*saved, *ctx.plain, tables, dout, *upstream))
        given, found = dict(zip(self._saved, saved, strict=False)), [None] * ctx.count
        for (name, place), grad in zip(self._wanted, self._backward(*inputs), strict=True):
            if given[name] is not None:
                found[place] = grad
        return tuple(found)


def _picker(wanted, known):
    """A function that picks, of values whose names are ``known``, those named ``wanted``."""
    places = [list(known).index(name) for name in wanted]
    return lambda values: [values[place] for place in places]
