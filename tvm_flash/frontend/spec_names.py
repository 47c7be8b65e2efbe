"""A spec as text, which is how operators take it.

Its name, or its JSON where the text may outlive this process.
"""

from __future__ import annotations

import json
from functools import lru_cache

from ..problem.spec import AttentionSpec

_specs: dict[str, AttentionSpec] = {}


def spec_name(spec: AttentionSpec) -> str:
    """The short text by which the operators of this process know ``spec``."""
    return spec.name if spec.name in _specs else _remember(spec.name, spec).name


def spec_json(spec: AttentionSpec) -> str:
    """The text by which the operators of any process know ``spec``."""
    return json.dumps(spec.to_json(), sort_keys=True)


@lru_cache(maxsize=1024)
def lasting_text(text: str) -> str:
    """The JSON of the spec that ``text``, its name or JSON, stands for."""
    return spec_json(spec_of(text))


def spec_of(text: str) -> AttentionSpec:
    """The spec of a text from ``spec_name`` or ``spec_json``; ValueError for another's name."""
    spec = _specs.get(text)
    if spec is not None:
        return spec
    if not text.startswith("{"):
        raise ValueError(f"spec={text!r} was made in another process: pass its JSON (spec_json)")
    return _remember(text, AttentionSpec.from_json(json.loads(text)))


def _remember(text: str, spec: AttentionSpec) -> AttentionSpec:
    return _specs.setdefault(text, spec)
