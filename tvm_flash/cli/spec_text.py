"""Specs on the command line: compact text, the name of a listed case, or a JSON file."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from ..errors import TvmFlashError
from ..problem.dtype import DTYPES
from ..problem.field_checks import HEAD_DIM_RANGE
from ..problem.spec import SOFTMAXES, AttentionSpec
from ..problem.text import COMPUTED
from .error_text import one_line

# What files of specs are called.
_FILES = (".json", ".txt")
_ELEMENTS = {
    word: row.name for row in DTYPES.values() for word in (row.name, row.short, row.written)
}

GRAMMAR = """\
A spec is a list of words separated by commas:
  fp32 | bf16 | fp16          element type (required)
  d=64                        head_dim (required)
  dv=128                      head_dim_v, when it differs
  causal                      causal mask
  window                      sliding window; with causal, to the left only
  window=left | window=right  a window that is open on the other side
  softcap                     softcap * tanh(score / softcap)
  alibi                       ALiBi: bias by distance, a slope for each head
  sink | softmax1 | sigmoid   denominator with a learned logit, with a 1; none
  dropout                     weights dropped by chance
  top_left                    masks aligned at the first key (default: last)
  no_lse                      return the output only
  learned                     gradients of slopes and score_mod's tables alone
  learned=0+2                 those of some of the tables, by number
  packed | paged              sequences in one tensor; their keys in pages
  linear                      linear attention, of dtype, dimensions and causal
  row_softmax                 the softmax of rows, of dtype alone
  score_mod=FILE.py:FUNCTION  user function of (score, b, h, q_idx, k_idx)
  mask_mod=FILE.py:FUNCTION   user function of (b, h, q_idx, k_idx)
  blocks=128x128              lists of such blocks, given in a call
A kernel takes any window ends, softcap, slopes and share of dropped weights:
they are given in a call.
Also the name of a listed case's spec (attn_...), or a .json or .txt file.
Example: bf16,d=64,causal,window,softcap,alibi"""


_SEE = " (`tvm-flash show --help` lists the words)"


class SpecTextError(TvmFlashError, ValueError):
    """A spec text that cannot be read; the message names the word and what is allowed."""


def parse_spec(text: str) -> AttentionSpec:
    """The one spec that ``text`` means (see GRAMMAR); raises SpecTextError."""
    specs = parse_specs(text)
    if len(specs) != 1:
        raise SpecTextError(f"{text} holds {len(specs)} specs, expected one")
    return specs[0]


def parse_specs(text: str) -> list[AttentionSpec]:
    """Every spec that ``text`` means: a JSON or text file may hold several."""
    try:
        path = Path(text)
        if path.suffix in _FILES:
            return _read_file(path)
        return [_listed(text) if text.startswith("attn_") else _parse_words(text)]
    except TvmFlashError:
        raise
    except Exception as error:  # a foreign file, or a user's function, may fail in any way
        raise SpecTextError(f"{text:.200} cannot be read as specs: {one_line(error)}") from error


def is_spec_text(text: str) -> bool:
    """Whether ``text`` is meant as a spec, right or wrong, and not as a place on disk."""
    known = {*_ELEMENTS, *_FLAGS}
    words = [word.strip().lower() for word in text.split(",")]
    return (
        len(words) > 1
        or "=" in text
        or words[0] in known
        or text.startswith("attn_")
        or Path(text).suffix in _FILES
    )


def specs_of(texts: Iterable[str]) -> list[AttentionSpec]:
    """Every spec that ``texts`` mean; SpecTextError where there is none."""
    found = []
    for text in texts:
        own = parse_specs(text)
        if not own:
            raise SpecTextError(f"{text} holds no specs")
        found += own
    if not found:
        raise SpecTextError(
            "no specs: name some, as bf16,d=64,causal, or give --specs FILE or --preset NAME"
        )
    return found


def _read_file(path: Path) -> list[AttentionSpec]:
    if not path.is_file():
        raise SpecTextError(f"{path} is not a file")
    content = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".txt":
        lines = (line.split("#")[0].strip() for line in content.splitlines())
        return [_parse_words(line) for line in lines if line]
    document = json.loads(content)
    entries = document if isinstance(document, list) else [document]
    return [spec for number, entry in enumerate(entries, 1) for spec in _entry(number, entry)]


def _entry(number: int, entry: object) -> list[AttentionSpec]:
    if isinstance(entry, str):
        return [_parse_words(entry)]
    if not isinstance(entry, dict):
        kind = type(entry).__name__
        raise ValueError(f"entry {number} is a {kind}, not a spec's text or object")
    try:
        return [AttentionSpec.from_json(entry)]
    except Exception as error:
        raise ValueError(f"entry {number}: {one_line(error)}") from error


def _listed(name: str) -> AttentionSpec:
    from ..cases import CASES

    for case in CASES:
        if case.spec.name == name:
            return case.spec
    near = _nearest(name, [case.spec.name for case in CASES])
    raise SpecTextError(f"no listed case has a spec called {name}{near}")


def _parse_words(text: str) -> AttentionSpec:
    fields: dict = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        _add(fields, *_read_word(word, text), text)
    if fields.get("computes") == "softmax":  # of rows, which have no head dimension
        fields.setdefault("head_dim", HEAD_DIM_RANGE[0])
    for name, example in (("dtype", "bf16"), ("head_dim", "d=64")):
        if name not in fields:
            raise SpecTextError(f"{text!r} names no {name}: add for example {example}{_SEE}")
    learned = fields.pop("learned", ())
    try:
        spec = AttentionSpec(**_WINDOWS.get(fields.pop("window", ""), {}), **fields)
        return spec.learning() if learned is True else replace(spec, learned=learned)
    except (ValueError, TypeError) as error:
        raise SpecTextError(f"{text!r}: {error}") from error


def _add(fields: dict, name: str, value, text: str) -> None:
    if name in fields:
        raise SpecTextError(f"{text!r} gives {name} twice")
    fields[name] = value


def _read_word(word: str, text: str) -> tuple[str, object]:
    key, equals, value = word.partition("=")
    key = key.strip().lower()
    try:
        if not equals and key in _ELEMENTS:
            return "dtype", _ELEMENTS[key]
        if not equals and key in _FLAGS:
            return _FLAGS[key]
        if equals and key in _VALUES:
            field, read = _VALUES[key]
            return field, read(value.strip())
    except SpecTextError:
        raise
    except ValueError as error:
        raise SpecTextError(f"{word!r} in {text!r}: {error}{_SEE}") from error
    near = _nearest(key, [*_ELEMENTS, *_FLAGS, *_VALUES])
    raise SpecTextError(f"{word!r} in {text!r} is not understood{near}{_SEE}")


def _nearest(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word, dict.fromkeys(known))
    return f": did you mean {' or '.join(near)}?" if near else ""


def _window(value: str) -> str:
    if value not in _WINDOWS:
        raise SpecTextError(
            f"window={value}: its ends are given in a call; write window, window=left "
            "or window=right"
        )
    return value


def _softcap(value: str) -> NoReturn:
    raise SpecTextError(f"softcap={value}: the cap is given in a call; write softcap")


def _blocks(value: str) -> tuple[int, int]:
    queries, times, keys = value.partition("x")
    if not (times and queries.isdecimal() and keys.isdecimal()):
        raise SpecTextError(f"blocks={value}: write queries and keys of a block, as blocks=128x128")
    return int(queries), int(keys)


def _numbers(value: str) -> tuple[int, ...]:
    return tuple(int(word) for word in value.split("+"))


def _traced(trace_name: str) -> Callable[[str], object]:
    def read(value: str):
        from ..score import trace as score_mod

        program, _ = getattr(score_mod, trace_name)(_load_function(value))
        return program

    return read


def _load_function(reference: str) -> Callable:
    """The function that FILE.py:FUNCTION names; runs the file."""
    file, _, name = reference.rpartition(":")
    if not file or not Path(file).is_file():
        raise SpecTextError(f"{reference!r} is not FILE.py:FUNCTION of an existing file")
    module_spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if module_spec is None or module_spec.loader is None:
        raise SpecTextError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SpecTextError(f"{file} cannot be run: {one_line(error)}") from error
    if not callable(getattr(module, name, None)):
        raise SpecTextError(f"{file} has no function {name!r}")
    return getattr(module, name)


_WINDOWS = {
    "both": {"window_left": True, "window_right": True},
    "left": {"window_left": True},
    "right": {"window_right": True},
}
_FLAGS: dict[str, tuple[str, object]] = {
    "causal": ("causal", True),
    "window": ("window", "both"),
    "softcap": ("softcap", True),
    "alibi": ("alibi", True),
    **{kind: ("softmax", kind) for kind in SOFTMAXES},
    "dropout": ("dropout", True),
    "top_left": ("alignment", "top_left"),
    "bottom_right": ("alignment", "bottom_right"),
    "no_lse": ("returns", "out"),
    "packed": ("sequences", "packed"),
    "paged": ("sequences", "paged"),
    "learned": ("learned", True),
    **{word: ("computes", kind) for kind, word in COMPUTED.items()},
}
_VALUES: dict[str, tuple[str, Callable[[str], object]]] = {
    "d": ("head_dim", int),
    "head_dim": ("head_dim", int),
    "dv": ("head_dim_v", int),
    "head_dim_v": ("head_dim_v", int),
    "window": ("window", _window),
    "softcap": ("softcap", _softcap),
    "score_mod": ("score_mod", _traced("trace_score_mod")),
    "mask_mod": ("mask_mod", _traced("trace_mask_mod")),
    "blocks": ("block_mask", _blocks),
    "learned": ("learned", _numbers),
}
