"""The package as mkdocstrings reads it, which imports nothing: names, docstrings as Markdown."""

from __future__ import annotations

import ast

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

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        """After an object is read: its docstring as Markdown."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, described_by(obj))


def described_by(obj: griffe.Object) -> set[str]:
    """Names whose meaning the docstring of ``obj`` tells: parameters, or fields of a class."""
    if obj.is_class:
        return set(obj.members) | {p.name for p in obj.parameters}
    return {p.name for p in obj.parameters} if obj.is_function else set()
