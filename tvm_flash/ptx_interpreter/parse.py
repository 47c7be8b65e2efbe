"""PTX text to modules: scopes resolved, device functions inlined at their calls."""

import re
from typing import NamedTuple

from . import kernel as k
from .declarations import variable
from .errors import UnsupportedInstruction
from .scopes import Resolver
from .syntax import split_commas, statements, type_size

PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?(\.\w+)\s*(?:\.ptr[^%\w$]*(?:\.\w+\s+)*(?:\.align\s+\d+)?\s*)?"
    r"(?:\.align\s+(\d+)\s+)?([\w$%]+)\s*(?:\[\s*(\d*)\s*\])?"
)


class Function(NamedTuple):
    """A .func or .entry as statements, before its registers are resolved."""

    name: str
    entry: bool
    params: list
    results: list
    header: str
    body: list


def parse(text):
    """Parse PTX text (PTX ISA 9.0, chapters 4-5) into a Module.

    Raises UnsupportedInstruction, with the line, for directives it does not understand."""
    version = target = ""
    functions, variables = {}, {}
    items = statements(text)
    at = 0
    while at < len(items):
        item = items[at]
        at += 1
        if item.kind == "line":
            version = _after(item.text, ".version") or version
            target = _after(item.text, ".target") or target
        elif item.kind == "header" and not item.text.endswith(";"):
            body, at = _body(items, at)
            function = _function(item, body)
            functions[function.name] = function
        elif item.kind == "code" and (found := variable(item.text)):
            variables[found.name] = found
    entries = [f for f in functions.values() if f.entry]
    kernels = {f.name: _kernel(f, functions, variables, target) for f in entries}
    return k.Module(version, target, kernels)


def _after(text, word):
    return text[len(word) :].strip() if text.startswith(word) else ""


def _body(items, at):
    depth, start = 0, at
    while True:
        depth += {"open": 1, "close": -1}.get(items[at].kind, 0)
        at += 1
        if depth == 0:
            return items[start + 1 : at - 1], at


def _function(item, body):
    text = item.text
    entry = ".entry" in text
    match = re.search(r"\.(?:entry|func)\s*(\(.*?\))?\s*([\w$]+)\s*(\(.*\))?([^()]*)$", text)
    if not match:
        raise UnsupportedInstruction(f"PTX line {item.line}: cannot read `{text}`")
    results, name, params, rest = match.groups()
    return Function(name, entry, _params(params), _params(results), rest, body)


def _params(text):
    found, offset = [], 0
    for part in split_commas((text or "()").strip()[1:-1]):
        match = PARAM.fullmatch(part)
        if not match:
            raise UnsupportedInstruction(f"cannot read the parameter `{part}`")
        first, kind, second, name, count = match.groups()
        size = type_size(kind) * (int(count) if count else 1)
        align = int(first or second or type_size(kind)) if count is not None else type_size(kind)
        offset = -(-offset // align) * align
        kind = "bytes" if count is not None else kind.lstrip(".")
        found.append(k.Parameter(name, kind, size, offset, align))
        offset += size
    return found


def _triple(header, word):
    match = re.search(rf"\.{word}\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", header)
    return tuple(int(x or 1) for x in match.groups()) if match else None


def _kernel(function, functions, module_variables, target):
    resolver = Resolver(function, functions, module_variables)
    resolver.run()
    return k.Kernel(
        name=function.name,
        params=tuple(function.params),
        instructions=tuple(resolver.instructions),
        labels=resolver.labels,
        variables=resolver.variables,
        branch_targets=resolver.branch_targets,
        maxntid=_triple(function.header, "maxntid"),
        reqntid=_triple(function.header, "reqntid"),
        minnctapersm=(_triple(function.header, "minnctapersm") or [None])[0],
        maxnreg=(_triple(function.header, "maxnreg") or [None])[0],
        target=target,
    )
