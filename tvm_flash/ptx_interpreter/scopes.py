"""Names to things: registers, labels and variables of nested scopes, calls inlined."""

import re

from . import kernel as k
from .declarations import variable
from .errors import UnsupportedInstruction
from .syntax import Statement, number, split_commas

REG = re.compile(r"\.reg\s+(?:\.v[24]\s+)?\.(\w+)\s+(.*)$")
CALL = re.compile(r"call(?:\.uni)?\s*(?:\(([^)]*)\)\s*,)?\s*([\w$%]+)\s*(?:,\s*\(([^)]*)\))?.*$")


class Scope:
    """One pair of braces; `tag` makes its names unique in the kernel."""

    def __init__(self, parent, tag, label_names):
        self.parent, self.tag = parent, tag
        self.registers, self.families, self.aliases = {}, {}, {}
        self.label_names = label_names

    def chain(self):
        """This scope and those around it, innermost first."""
        scope = self
        while scope:
            yield scope
            scope = scope.parent


class Resolver:
    """Walks the statements of a kernel and emits instructions with resolved operands."""

    def __init__(self, function, functions, module_variables):
        self.kernel, self.functions = function.name, functions
        self.function = function
        self.instructions, self.labels, self.branch_targets = [], {}, {}
        self.variables = dict(module_variables)
        self.calls, self.count, self.pending_label = [], 0, None

    def run(self):
        """Resolve the whole kernel."""
        self._walk(self.function.body, Scope(None, "", _labels(self.function.body, 0)), None)

    def _tag(self):
        self.count += 1
        return f"@{self.count}"

    def _walk(self, body, scope, end_label):
        for i, item in enumerate(body):
            if item.kind == "open":
                scope = Scope(scope, self._tag(), _labels(body, i + 1))
            elif item.kind == "close":
                scope = scope.parent
            elif item.kind == "label":
                self.pending_label = self._label(scope, item.text)
                self.labels[self.pending_label] = len(self.instructions)
            elif item.kind == "code":
                self._statement(item, scope, end_label)

    def _statement(self, item, scope, end_label):
        text = item.text
        if text.startswith(".reg"):
            self._declare_registers(text, scope)
        elif text.startswith(".branchtargets"):
            names = [self._label(scope, n) for n in split_commas(text[14:])]
            self.branch_targets[self.pending_label] = tuple(names)
        elif text.startswith("."):
            self._declare_variable(text, scope)
        elif text.startswith("call") or re.match(r"@!?\S+\s+call", text):
            self._call(item, scope)
        elif end_label and re.fullmatch(r"(@!?\S+\s+)?ret(\.uni)?", text):
            target = re.sub(r"ret(\.uni)?$", "bra " + end_label, text)
            self._emit(Statement("code", target, item.line), scope)
        else:
            self._emit(item, scope)

    def _declare_registers(self, text, scope):
        kind, names = REG.match(text).groups()
        for name in split_commas(names):
            if match := re.fullmatch(r"([\w$%]+)<(\d+)>", name):
                scope.families[match.group(1)] = kind
            else:
                scope.registers[name] = kind

    def _declare_variable(self, text, scope):
        found = variable(text)
        if not found:
            return
        space = "local" if found.space == "param" else found.space
        unique = found.name + scope.tag
        scope.aliases[found.name] = unique
        self.variables[unique] = k.Variable(
            unique, space, found.size, max(found.align, 1), found.initial
        )

    def _call(self, item, scope):
        match = CALL.match(item.text)
        callee = self.functions.get(match.group(2)) if match else None
        if callee is None or callee.name in self.calls:
            raise UnsupportedInstruction(
                f"{self.kernel}, PTX line {item.line}: `{item.text}`: only calls of functions "
                "with a body, without recursion, are inlined"
            )
        inner = Scope(None, self._tag(), _labels(callee.body, 0))
        formal = [p.name for p in callee.results + callee.params]
        actual = split_commas(match.group(1) or "") + split_commas(match.group(3) or "")
        try:
            for name, argument in zip(formal, actual, strict=True):
                inner.aliases[name] = self._variable(scope, argument)
        except (KeyError, ValueError) as error:
            raise UnsupportedInstruction(
                f"{self.kernel}, PTX line {item.line}: `{item.text}`: arguments must be .param "
                f"variables, one per parameter ({error})"
            ) from None
        end = f"return{inner.tag}"
        self.calls.append(callee.name)
        self._walk(callee.body, inner, end)
        self.calls.pop()
        self.labels[end] = len(self.instructions)

    def _emit(self, item, scope):
        text, predicate = item.text, None
        if match := re.match(r"@(!?)\s*([\w$%]+)\s+(.*)$", text):
            register = self._register(scope, match.group(2))
            predicate = k.Not(register) if match.group(1) else register
            text = match.group(3)
        opcode, _, rest = text.partition(" ")
        try:
            operands = tuple(self._operand(scope, part) for part in split_commas(rest))
        except KeyError as error:
            raise UnsupportedInstruction(
                f"{self.kernel}, PTX line {item.line}: `{item.text}`: unknown name {error}"
            ) from None
        self.instructions.append(
            k.Instruction(opcode, operands, predicate, item.line, item.text, self.kernel)
        )

    def _operand(self, scope, text):
        if text.startswith("{"):
            return k.Vector(tuple(self._operand(scope, t) for t in split_commas(text[1:-1])))
        if text.startswith("["):
            return self._address(scope, text[1:-1].strip())
        if text == "_":
            return k.Sink()
        if text.startswith("!"):
            return k.Not(self._register(scope, text[1:].strip()))
        if "|" in text:
            return k.Pair(*(self._operand(scope, t.strip()) for t in text.split("|")))
        if literal := number(text):
            return k.Immediate(*literal)
        if re.fullmatch(r"[\w$%.]+\s*[+-]\s*\d+", text):
            return self._address(scope, text)
        return self._name(scope, text)

    def _address(self, scope, text):
        parts = split_commas(text)
        if len(parts) > 1:
            base = self._address(scope, parts[0])
            return base._replace(coordinates=self._operand(scope, parts[1]).items)
        match = re.fullmatch(r"(.+?)\s*([+-])\s*(-?\w+)", text)
        if match and (literal := number(match.group(3))):
            sign = -1 if match.group(2) == "-" else 1
            return k.Address(self._operand(scope, match.group(1).strip()), sign * literal[0])
        return k.Address(self._operand(scope, text))

    def _name(self, scope, text):
        register = self._register(scope, text, missing=None)
        if register:
            return register
        if text.startswith("%"):
            return k.Special(text)
        if text == "WARP_SZ":
            return k.Immediate(32, "int")
        label = self._label(scope, text, missing=None)
        if label:
            return k.Label(label)
        return k.Symbol(self._variable(scope, text))

    def _register(self, scope, name, missing=KeyError):
        family = re.sub(r"\d+$", "", name)
        for level in scope.chain():
            if name in level.registers:
                return k.Register(name + level.tag, level.registers[name])
            if family != name and family in level.families:
                return k.Register(name + level.tag, level.families[family])
        if missing is KeyError:
            raise KeyError(name)
        return missing

    def _label(self, scope, name, missing=KeyError):
        if name.startswith("return@"):
            return name
        for level in scope.chain():
            if name in level.label_names:
                return name + level.tag
        if missing is KeyError:
            raise KeyError(name)
        return missing

    def _variable(self, scope, name):
        for level in scope.chain():
            if name in level.aliases:
                return level.aliases[name]
        if name in self.variables or any(p.name == name for p in self.function.params):
            return name
        raise KeyError(name)


def _labels(body, start):
    names, depth = set(), 0
    for item in body[start:]:
        depth += {"open": 1, "close": -1}.get(item.kind, 0)
        if depth < 0:
            break
        if item.kind == "label" and depth == 0:
            names.add(item.text)
    return names
