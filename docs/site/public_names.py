"""The package as mkdocstrings reads it, which imports nothing: names, docstrings as Markdown."""

from __future__ import annotations

import ast
from collections.abc import Collection

import griffe
from prose import markdown


class PublicNames(griffe.Extension):
    """Gives tvm_flash the names that its __getattr__ finds, and every docstring its paragraphs."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_) -> None:
        """After a package is read: aliases of ``_EXPORTS``."""
        if "_EXPORTS" not in pkg.members:
            return
        loader.load("codegen")  # lies beside the package in a checkout
        for name, module in ast.literal_eval(str(pkg["_EXPORTS"].value)).items():
            home = module if module.startswith("codegen.") else f"tvm_flash.{module}"
            pkg.set_member(name, griffe.Alias(name, f"{home}.{name}", parent=pkg))

    def on_function_instance(self, *, func: griffe.Function, **_) -> None:
        """After a function is read: its docstring, which says what its parameters are."""
        _rewrite(func, {parameter.name for parameter in func.parameters})

    def on_class_members(self, *, cls: griffe.Class, **_) -> None:
        """After all of a class is read: its docstring, of its fields or what it is made with."""
        made = cls.members.get("__init__")
        parameters = made.parameters if isinstance(made, griffe.Function) else ()
        _rewrite(cls, {*cls.members, *(parameter.name for parameter in parameters)})

    def on_module_instance(self, *, mod: griffe.Module, **_) -> None:
        """After a module is read: its docstring."""
        _rewrite(mod, ())


def _rewrite(obj: griffe.Object, names: Collection[str]) -> None:
    if obj.docstring:
        obj.docstring.value = markdown(obj.docstring.value, names)
