"""Options that one way of calling a command does not read: refused, since they change nothing."""

from __future__ import annotations

from collections.abc import Collection

import typer


def refuse_unread(context: typer.Context, way: str, read: Collection[str]) -> None:
    """Raise ValueError for what the command line gives beside the parameters named in ``read``.

    way: what makes the others unread ("--list"), as the message begins.
    """
    given = [
        parameter.metavar or parameter.name.upper() if parameter.param_type_name == "argument"
        else max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name not in read and _is_given(context, parameter.name)
    ]  # fmt: skip
    if given:
        raise ValueError(f"{way} reads no {', '.join(given)}: leave out what changes nothing")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
