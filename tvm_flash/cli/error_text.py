"""What commands say of an error: the package's own in full, others in a line."""

from __future__ import annotations

from ..errors import TvmFlashError


def error_text(error: BaseException) -> str:
    """What ``error`` says; of those that are not the package's own the first line, cut short."""
    return str(error) if isinstance(error, TvmFlashError) else one_line(error)


def one_line(error: BaseException) -> str:
    """Kind and first line of an error that is not the package's own, at most 300 characters."""
    try:
        text = next(iter(str(error).strip().splitlines()), "")
    except Exception:  # of values that cannot be written either
        text = ""
    kind = type(error).__name__
    plain = isinstance(error, (ValueError, TypeError, OSError)) and text
    return text[:300] if plain else f"{kind}: {text[:300]}" if text else kind
