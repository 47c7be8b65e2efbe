"""The ``tvm-flash`` command line: one file per command."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .streams import INTERRUPTED, NOBODY_READS, any_encoding, finished


def main() -> None:
    """Run the command line and leave with its status.

    Without its libraries it says how to get them (2), and of the commands knows ``doctor``. Output
    that nobody reads any more ends the run (141), without a word.
    """
    any_encoding()
    output = sys.stdout
    try:
        _command()()
    except SystemExit as leaving:
        # click wraps a pipe that nobody reads, to be silent about it.
        status = leaving.code if sys.stdout is output else NOBODY_READS
        sys.exit(finished(status if isinstance(status, int) else bool(status)))
    except BrokenPipeError:
        sys.exit(finished(NOBODY_READS))
    except OSError as error:  # help that does not fit, for one: commands report theirs
        print(f"error: {error}", file=sys.stderr)
        sys.exit(finished(2))
    except KeyboardInterrupt:  # commands tell of theirs
        print("stopped", file=sys.stderr)
        sys.exit(finished(INTERRUPTED))


def _command() -> Callable[[], object]:
    """What the words of the command line are given to: the app, where its libraries are."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"typer", "rich"}:
            raise
        return lambda: sys.exit(_without(package))
    from .console import keep_wide

    keep_wide()
    return app


def _without(package: str) -> int:
    """What can be done without ``package``: the status of ``doctor`` in plain lines, or 2."""
    if sys.argv[1:] == ["doctor"]:
        from .plain_doctor import report

        return report()
    print(
        f"error: the command line needs {package}, which is not installed; install it with: pip "
        f"install {package}, or, to compile kernels too, pip install 'tvm-flash[compile]'\n"
        "`tvm-flash doctor` works without it",
        file=sys.stderr,
    )
    return 2
