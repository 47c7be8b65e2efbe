"""``python -m tvm_flash.masks NAME``: a picture of a mask, on the terminal or in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TvmFlashError
from ..score.mask_examples import COMPOSED
from . import EXAMPLES, in_characters, save, visible_pairs

_DRAWN = EXAMPLES | COMPOSED

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Masks; all if none is given.")] = None,
    seqlen: Annotated[int, typer.Option(min=1, max=2048, help="Queries and keys.")] = 40,
    path: Annotated[Path | None, typer.Option("--save", help="A file: .png, .svg, .pdf.")] = None,
) -> None:
    """Draw masks: a row for each query, from its first key on the left to the last."""
    if unknown := [name for name in names or () if name not in _DRAWN]:
        typer.echo(f"no mask {', '.join(unknown)}: there are {', '.join(_DRAWN)}", err=True)
        raise typer.Exit(2)
    seen = {name: visible_pairs(_DRAWN[name](seqlen), seqlen) for name in names or _DRAWN}
    if path is None:
        for name, pairs in seen.items():
            typer.echo(f"{name}: {pairs.float().mean():.0%} visible\n{in_characters(pairs)}\n")
        return
    try:
        save(seen, path)
    except (TvmFlashError, OSError, ValueError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(2) from error
    typer.echo(f"wrote {path}")


if __name__ == "__main__":
    app(prog_name="python -m tvm_flash.masks")
