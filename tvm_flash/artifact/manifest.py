"""What a manifest says of a library and its kernels, and what every field of it may hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..json_fields import Fields, field_problems, is_object, shown
from ..problem.arguments import TILE_SIZES, arguments, direction_reasons
from ..problem.lengths import DEFAULT_BUCKET, FORWARD_BUCKETS, check_buckets
from ..problem.spec import AttentionSpec

# 2: kernels list their arguments. 3: window ends and softcap are among these.
FORMAT = 3
# forward_split: the keys of a row in parts, which are merged. backward_deterministic: the same bits
# every run. On GPUs both are kernels of their own; on CPUs every backward gives the same bits, and
# the forward divides keys by itself. append: rows go into the pages of a cache. linear: linear
# attention (problem/linear.py). softmax, softmax_backward: of whole rows, without values.
# tables: the gradients of captured tables.
DIRECTIONS = {
    "forward": "fwd",
    "forward_split": "fwd_split",
    "backward": "bwd",
    "backward_deterministic": "bwd_det",
    "tables": "tables",
    "tables_deterministic": "tables_det",
    "append": "append",
    "linear": "fwd",
    "softmax": "fwd",
    "softmax_backward": "bwd",
}

# Rows or columns of a tile, also of several at once: far above any schedule's, far below what a
# workspace cannot be sized with.
MAX_TILE = 2**20
MAX_TEXT = 4096


def symbol_name(spec: AttentionSpec, direction: str, bucket: str = DEFAULT_BUCKET) -> str:
    """Name of the kernel's function in a library, for the kernel that serves ``bucket`` first.

    Raises ValueError for an unknown direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"{direction=} must be one of {list(DIRECTIONS)}")
    suffix = "" if bucket == DEFAULT_BUCKET else f"_{bucket}"
    return f"{spec.name}_{DIRECTIONS[direction]}{suffix}"


@dataclass(frozen=True)
class KernelRecord:
    """One kernel of a library: the problem, its direction and the numbers it was scheduled with.

    ``meta`` holds the sizes of its tile: block_q, block_k, block_v, head_dim_pad. ``launches``,
    for CUDA: name, archs, threads, shared_bytes and resources by arch of each kernel it launches.
    ``buckets``: the lengths it is meant for (tvm_flash.problem.lengths); none named: all of them.
    ``config_source``: the tuning record that the numbers come from, or "default".
    """

    symbol: str
    spec: AttentionSpec
    direction: str
    config: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    launches: tuple[dict[str, Any], ...] = ()
    buckets: tuple[str, ...] = ()
    config_source: str = ""

    def to_json(self) -> dict[str, Any]:
        known = {
            "symbol": self.symbol,
            "direction": self.direction,
            "config": self.config,
            "arguments": _arguments(self.spec, self.direction),
        }
        optional = {
            "launches": list(self.launches),
            "buckets": list(self.buckets),
            "config_source": self.config_source,
        }
        given = {name: value for name, value in optional.items() if value}
        return {**self.meta, **known, "spec": self.spec.to_json(), **given}

    @classmethod
    def from_json(cls, data: Any) -> KernelRecord:
        """The record that ``to_json`` wrote; ValueError or TypeError when it is not one."""
        data = _checked(data, _RECORD, _RECORD_OPTIONAL)
        known = {name: data.pop(name) for name in (*_RECORD, *_RECORD_OPTIONAL) if name in data}
        spec = AttentionSpec.from_json(known.pop("spec"))
        if reasons := direction_reasons(spec, known["direction"]):
            raise ValueError(f"direction={known['direction']!r} of {known['symbol']}: {reasons[0]}")
        if known.pop("arguments") != _arguments(spec, known["direction"]):
            raise ValueError(
                f"arguments of {known['symbol']} are not those that this version calls it with"
            )
        launches = tuple(_checked(entry, _LAUNCH) for entry in known.pop("launches", ()))
        buckets = check_buckets(known.pop("buckets", ()))
        return cls(spec=spec, meta=data, launches=launches, buckets=buckets, **known)

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction!r} must be one of {list(DIRECTIONS)}")
        _checked(self.meta, {}, _META)


@dataclass(frozen=True)
class Manifest:
    """Everything a loader must know before it opens the library.

    library: file name beside the manifest. sha256: of that file. target: name, mcpu (or archs, for
    CUDA), system and architecture. cpu_features: all of them are needed to run. versions: what it
    was built with. ptx_sha256: of the PTX beside a CUDA library, which is read only to verify it.
    """

    library: str
    sha256: str
    target: dict[str, Any]
    cpu_features: tuple[str, ...]
    versions: dict[str, str]
    kernels: tuple[KernelRecord, ...]
    ptx_sha256: str = ""

    @property
    def device(self) -> str:
        """What the kernels run on: "cpu" or "cuda"."""
        return "cuda" if self.target.get("name") == "cuda" else "cpu"

    def to_json(self) -> dict[str, Any]:
        ptx = {"ptx_sha256": self.ptx_sha256} if self.ptx_sha256 else {}
        return {
            **ptx,
            "format": FORMAT,
            "library": self.library,
            "sha256": self.sha256,
            "target": self.target,
            "cpu_features": list(self.cpu_features),
            "versions": self.versions,
            "kernels": [record.to_json() for record in self.kernels],
        }

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """The manifest that ``to_json`` wrote; ValueError or TypeError when it is not one."""
        if is_object(data) and not _is_format(found := data.get("format")):
            older = type(found) is int and found < FORMAT
            why = ", of an older version whose kernels took other arguments" if older else ""
            raise ValueError(f"format={shown(found)}{why}: this version reads format {FORMAT}")
        data = _checked(data, _MANIFEST, _MANIFEST_OPTIONAL)
        kernels = tuple(map(KernelRecord.from_json, data["kernels"]))
        _check_symbols(kernels)
        if data["target"].get("name") == "cuda":
            for record in kernels:
                _check_variants(record)
        return cls(
            **{name: data[name] for name in ("library", "sha256", "target", "versions")},
            cpu_features=tuple(data["cpu_features"]),
            kernels=kernels,
            ptx_sha256=data.get("ptx_sha256", ""),
        )


def _arguments(spec: AttentionSpec, direction: str) -> list[dict[str, Any]]:
    return [argument.to_json() for argument in arguments(spec, direction)]


def _check_symbols(records: Sequence[KernelRecord]) -> None:
    """A function computes one problem: of two records that name it, one would be wrong."""
    (symbol, times), *_ = Counter(record.symbol for record in records).most_common(1)
    if times > 1:
        raise ValueError(f"symbol={symbol!r} stands in {times} kernels, must be of one")


def _check_variants(record: KernelRecord) -> None:
    """A CUDA kernel's config lists its variants, by which they are verified."""
    variants = record.config.get("variants")
    if not _is_list(variants) or not variants:
        raise ValueError(f"variants={shown(variants)} must be a list of what runs on which device")
    for variant in variants:
        _checked(_checked(variant, {"archs": _ARCHS, "meta": _OBJECT})["meta"], {}, _META)


def _checked(data: Any, fields: Fields, optional: Fields = MappingProxyType({})) -> dict[str, Any]:
    """A copy of ``data``; ValueError names the fields that it lacks, or the first wrong one."""
    if not is_object(data):
        raise ValueError(f"{shown(data)} must be an object")
    if problems := field_problems(data, fields, optional):
        raise ValueError(problems[0])
    return dict(data)


# By type(), because true is no 1 here.
def _is_list(value: Any) -> bool:
    return type(value) is list


def _is_format(value: Any) -> bool:
    return type(value) is int and value == FORMAT


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= MAX_TEXT and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _are_texts(value: Any) -> bool:
    return _is_list(value) and all(map(_is_text, value))


def _is_target(value: Any) -> bool:
    return is_object(value) and all(_is_text(x) or _are_texts(x) for x in value.values())


def _are_resources(value: Any) -> bool:
    return is_object(value) and all(
        is_object(one) and all(type(x) in (int, float) and 0 <= x < 2**31 for x in one.values())
        for one in value.values()
    )


def _is_spec(value: Any) -> bool:
    return is_object(value) and type(value.get("version")) is int


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: type(value) is str and re.fullmatch(pattern, value) is not None


_is_arch = _matches("sm_[0-9]{2,3}a?")

_OBJECT = ("an object", is_object)
_TEXT = (f"printable text of at most {MAX_TEXT} characters", _is_text)
_COUNT = ("a whole number below 2^31", _is_count)
_SHA256 = ("64 hexadecimal digits", _matches("[0-9a-f]{64}"))
_ARCHS = ("a list of sm_NN", lambda value: _is_list(value) and value and all(map(_is_arch, value)))
_TILE = (f"a whole number in 1..{MAX_TILE}", lambda x: type(x) is int and 1 <= x <= MAX_TILE)
_META = dict.fromkeys(TILE_SIZES, _TILE)
_SYMBOL = ("a C identifier", _matches("[A-Za-z_][A-Za-z0-9_]{0,499}"))

_MANIFEST = {
    "library": _TEXT,
    "sha256": _SHA256,
    "target": ("an object of texts", _is_target),
    "cpu_features": ("a list of names", _are_texts),
    "versions": (
        "an object of texts",
        lambda value: is_object(value) and all(map(_is_text, value.values())),
    ),
    "kernels": ("a list of at least one kernel", lambda value: _is_list(value) and value),
}
_MANIFEST_OPTIONAL = {"ptx_sha256": _SHA256}

_RECORD = {
    "symbol": _SYMBOL,
    "direction": (f"one of {', '.join(DIRECTIONS)}", DIRECTIONS.__contains__),
    "config": _OBJECT,
    "arguments": ("a list", _is_list),
    "spec": ("an object with the version of its fields", _is_spec),
}
_RECORD_OPTIONAL = {
    "launches": ("a list", _is_list),
    "buckets": (
        f"a list of {', '.join(FORWARD_BUCKETS)}",
        lambda value: _are_texts(value) and len(set(value)) == len(value),
    ),
    "config_source": _TEXT,
}
_LAUNCH = {
    "name": _SYMBOL,
    "archs": _ARCHS,
    "threads": _COUNT,
    "shared_bytes": _COUNT,
    "resources": ("an object of numbers by architecture", _are_resources),
}
