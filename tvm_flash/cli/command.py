"""What all commands have in common: pages of help, and what is said of a wrong command line."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from itertools import pairwise
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from .console import PLAIN, console, notes, reporting_errors

(_UsageError,) = typer.BadParameter.__bases__

# Lines longer than this are hard to read.
_WIDEST = 100
# Columns of names; a longer name has a line of its own.
_NAMES = 25
# The narrowest lines behind them, however narrow a terminal is.
_LEAST = 20


class App(typer.Typer):
    """Commands below ``name``: described in one form, their errors told in one form."""

    def __init__(self, name: str, help: str):
        super().__init__(
            name=name,
            help=help,
            cls=Group,
            no_args_is_help=True,
            pretty_exceptions_show_locals=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable], Callable]:
        """typer's, for functions whose errors are the caller's (``console.reporting_errors``)."""
        register = super().command(name, cls=Command, **options)
        return lambda function: register(reporting_errors(function))


class Command(TyperCommand):
    """A command with a page of help as ``help_page`` writes it."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """click's, which would take an option for the value of the option before it."""
        options = [each for each in self.get_params(ctx) if each.param_type_name == "option"]
        named = {name: each for each in options for name in each.opts}
        for word, behind in pairwise(args):
            each = named.get(word)
            if each is not None and not each.is_flag and behind in named:
                raise _UsageError(f"{word} needs {_value(each)} behind it, not {behind}", ctx)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """Write the page; click prints it, without its styles where nobody sees them."""
        formatter.write(_styled(help_page(self, ctx, _width(ctx))))


class Group(TyperGroup):
    """Commands below a name, ``Command`` in all else; the topmost runs the command line."""

    format_help = Command.format_help

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any):
        """Run ``args``, and leave with the command's status; 2 where it was called wrongly."""
        extra["standalone_mode"] = False
        try:
            status = super().main(args, prog_name, **extra)
        except _UsageError as error:
            status = _refuse(error)
        except typer.Abort:
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def help_page(command: Any, ctx: typer.Context, width: int) -> Text:
    """What ``--help`` prints: what the command does, its arguments, options and commands.

    No word is cut, and no line is longer than ``width`` but where a word is.
    """
    page = Text()
    page.append("Usage: ", "bold").append(" ".join([ctx.command_path, *_usage(command, ctx)]))
    for paragraph in (command.help or "").split("\n\n"):
        page.append("\n\n" + "\n".join(_wrapped(paragraph, max(width, _LEAST))))
    for title, rows in _sections(command, ctx):
        page.append(f"\n\n{title}:", "bold")
        for name, text in rows:
            page.append("\n  ").append(name, "bold").append(_beside(name, text, width))
    if command.epilog:
        page.append(f"\n\n{command.epilog}")
    return page.append("\n")


def _usage(command: Any, ctx: typer.Context) -> Iterator[str]:
    yield "[OPTIONS]"
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            name = _argument(parameter)
            yield name if parameter.required else f"[{name}]"
        elif parameter.required:
            yield f"{parameter.opts[0]} {_value(parameter)}"
    if hasattr(command, "commands"):
        yield "COMMAND ..."


def _sections(command: Any, ctx: typer.Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Titles, with names and what is said of them."""
    parameters = [each for each in command.get_params(ctx) if not each.hidden]
    kinds = {"Arguments": ("argument", _argument), "Options": ("option", _option)}
    for title, (kind, name) in kinds.items():
        own = [each for each in parameters if each.param_type_name == kind]
        if own:
            yield title, [(name(each), _said(each)) for each in own]
    if below := getattr(command, "commands", {}):
        yield "Commands", [(name, _summary(each)) for name, each in below.items()]


def _argument(parameter: Any) -> str:
    return _value(parameter) + "..." * (parameter.nargs != 1)


def _option(parameter: Any) -> str:
    names = ", ".join(sorted(parameter.opts, key=len))
    return names if parameter.is_flag else f"{names} {_value(parameter)}"


def _value(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _said(parameter: Any) -> str:
    """The help of a parameter, and its default where it has one that says something."""
    default = parameter.default if parameter.show_default is True else None
    if default is None or default is False or default in ("", []) or callable(default):
        return parameter.help or ""
    return f"{parameter.help} Default: {_shown(default)}."


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return ",".join(map(_shown, default))
    if isinstance(default, float):
        return f"{default:g}"
    return str(default.value if isinstance(default, Enum) else default)


def _summary(command: Any) -> str:
    return (command.help or "").partition("\n\n")[0]


def _beside(name: str, text: str, width: int) -> str:
    """``text`` in lines that begin behind the column of names."""
    lines = _wrapped(text, max(width - _NAMES, _LEAST))
    first = " " * (_NAMES - 2 - len(name))
    if len(name) > _NAMES - 4:
        first = "\n" + " " * _NAMES
    return first + ("\n" + " " * _NAMES).join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False
    )


def _width(ctx: typer.Context) -> int:
    return min(ctx.terminal_width or console.width, _WIDEST)


def _styled(page: Text) -> str:
    with console.capture() as captured:
        console.print(page, soft_wrap=True, end="")
    return captured.get()


def _refuse(error: Any) -> int:
    """Say what is wrong with the command line, and where it is described; the status for it."""
    message = error.format_message().replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":  # nothing is wrong, but nothing is asked
        typer.echo(message, err=True)
        return error.exit_code
    text = Text.assemble(("error: ", "bold red"), message[:1].lower() + message[1:])
    notes.print(text, **PLAIN)
    if error.ctx is not None:
        notes.print(f"see: {error.ctx.command_path} --help", **PLAIN)
    return error.exit_code
