"""Presets: lists of kernels for a library, by what the library is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from .arguments import OWN_DIRECTIONS, TABLES, own_directions
from .linear import gradient_spec
from .spec import AttentionSpec

HALVES = ("bfloat16", "float16")
HEAD_DIMS = (64, 96, 128, 192, 256)
_BF16 = ("bfloat16",)

_CAUSAL = {"causal": True}
_LOCAL = {"causal": True, "window_left": True}
_COME_WITH = {"forward": ("forward_split",)}
_PACKED, _PAGED = {"sequences": "packed"}, {"sequences": "paged"}
_LINEAR = {"computes": "linear"}


class Use(NamedTuple):
    """A kind of attention: fields of its specs, the head dimensions it comes in, who calls it."""

    fields: Mapping[str, Any]
    head_dims: tuple[int, ...]
    why: str
    dtypes: tuple[str, ...] = HALVES

    @property
    def specs(self) -> list[AttentionSpec]:
        """One for each dtype and head dimension."""
        return [
            AttentionSpec(dtype=dtype, head_dim=head_dim, **self.fields)
            for dtype in self.dtypes
            for head_dim in self.head_dims
        ]


@dataclass(frozen=True)
class Preset:
    """Specs and directions for a library.

    directions: of "forward", "forward_split" and "backward".
    """

    name: str
    directions: tuple[str, ...]
    uses: tuple[Use, ...]

    @cached_property
    def specs(self) -> tuple[AttentionSpec, ...]:
        """The specs, use by use."""
        return tuple(spec for use in self.uses for spec in use.specs)

    def pairs(self, directions: Iterable[str]) -> list[tuple[AttentionSpec, str]]:
        """(spec, direction) of each kernel; a preset without a backward has no ordered one.

        Where it has a forward that divides keys, that comes with the forward. Packed sequences
        are prompts, whose queries are many.
        """
        asked = (name for d in directions for name in (d, *_COME_WITH.get(d, ())))
        bases = {d: d.removesuffix("_deterministic") for d in asked}
        kept = [d for d, base in bases.items() if base in self.directions]
        return [
            (spec, direction)
            for spec in self.specs
            for spec, direction in served_pairs(spec, kept)
            if (spec.sequences, direction) != ("packed", "forward_split")
        ]


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "training",
            ("forward", "backward"),
            (
                Use(_CAUSAL, HEAD_DIMS, "decoders: Llama, Qwen, Phi, Nemotron-4 (192), Gemma"),
                Use({}, HEAD_DIMS, "encoders, vision towers, diffusion transformers"),
                Use({**_CAUSAL, **_PACKED}, HEAD_DIMS, "decoders on packed documents"),
                Use(_PACKED, HEAD_DIMS, "encoders on packed texts and images"),
            ),
        ),
        Preset(
            "serving",
            ("forward", "forward_split"),
            (
                Use(_CAUSAL, HEAD_DIMS, "prompts: Llama, Qwen, Phi, Nemotron-4 (192), Gemma"),
                Use({}, HEAD_DIMS, "encoders, vision towers, embeddings, diffusion"),
                Use({**_CAUSAL, **_PACKED}, HEAD_DIMS, "prompts of a batch, packed"),
                Use(_PACKED, HEAD_DIMS, "texts and images of a batch, packed"),
                Use(
                    {**_CAUSAL, **_PAGED}, HEAD_DIMS, "decoding and parts of prompts, over a cache"
                ),
                # gpt-oss's sinks: its output is ours times sigmoid(lse - sink).
                Use(
                    _LOCAL,
                    (64, 96, 128, 256),
                    "local layers: gpt-oss (64), Phi-3-mini (96), Mistral 7B, Gemma 3 (128, 256)",
                ),
                Use(
                    {**_CAUSAL, "softcap": True},
                    (128, 256),
                    "Gemma 2's global layers: 27B (128), 2B and 9B (256)",
                ),
                Use({**_LOCAL, "softcap": True}, (128, 256), "Gemma 2's local layers"),
                Use({**_LOCAL, **_PAGED}, (64, 96, 128, 256), "local layers over a cache"),
                Use(
                    {**_CAUSAL, **_PAGED, "softcap": True},
                    (128, 256),
                    "Gemma 2's global layers over a cache",
                ),
                Use(
                    {**_LOCAL, **_PAGED, "softcap": True},
                    (128, 256),
                    "Gemma 2's local layers over a cache",
                ),
                Use(
                    {**_CAUSAL, "head_dim_v": 128},
                    (192,),
                    "prompts of DeepSeek-V2 and V3: latent attention, Q and K of 192, V of 128",
                ),
            ),
        ),
        Preset(
            "linear",
            ("forward", "backward"),
            (
                Use({**_LINEAR, **_CAUSAL}, (64, 128), "decoders: MiniMax-01 (128), retention"),
                Use(_LINEAR, (64, 128), "encoders: Katharopoulos et al., Performer"),
            ),
        ),
        Preset(
            "benchmark",
            ("forward", "forward_split", "backward"),
            (
                Use(_CAUSAL, (64, 128, 256), "`bench --suite gpu`: causal, all lengths", _BF16),
                Use({}, (64, 128, 256), "`bench --suite gpu`: all lengths, decoding", _BF16),
                Use({**_CAUSAL, **_PACKED}, (128,), "`bench --suite gpu`: packed", _BF16),
                Use(_PAGED, (128,), "`bench --suite gpu`: a cache in pages", _BF16),
            ),
        ),
    )
}


def served_pairs(spec: AttentionSpec, directions: Sequence[str]) -> list[tuple[AttentionSpec, str]]:
    """(spec, direction) of the kernels that serve who asks ``spec`` for ``directions``.

    What its callers need besides too: to append to its pages; of linear attention that goes back,
    other dimensions. All of ``directions``, where it has none: it is then refused by name.
    """
    served = [pair for direction in directions for pair in _serving(spec, direction)]
    if "append" in TABLES[spec.sequences] and not {"forward", "append"}.isdisjoint(directions):
        served.append((spec.append_spec, "append"))
    return list(dict.fromkeys(served)) or [(spec, direction) for direction in directions]


def _serving(spec: AttentionSpec, direction: str) -> list[tuple[AttentionSpec, str]]:
    """The kernels of ``direction``, which have another name where a spec has its own directions."""
    own = own_directions(spec)
    if not own:
        is_served = direction in TABLES[spec.sequences] and direction not in OWN_DIRECTIONS
        return [(spec, direction)] if is_served and direction != "append" else []
    if spec.learned:
        direction = direction.replace("backward", "tables")
    elif direction == "backward" and spec.computes == "linear":
        return [(one, "linear") for one in (spec, gradient_spec(spec))]
    elif direction in ("forward", "backward"):
        direction = own[direction == "backward"]
    return [(spec, direction)] if direction in own else []


def preset_named(name: str) -> Preset:
    """The preset called ``name``; ValueError, with the names, where there is none."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} must be one of {', '.join(PRESETS)}")
    return PRESETS[name]


def all_pairs(
    specs: Iterable[AttentionSpec], presets: Sequence[str], directions: Iterable[str]
) -> list[tuple[AttentionSpec, str]]:
    """(spec, direction) of ``specs`` in all ``directions`` and of ``presets`` in theirs, each once.

    directions: as in artifact.DIRECTIONS. Raises ValueError for an unknown preset.
    """
    directions = tuple(directions)
    own = [pair for spec in specs for pair in served_pairs(spec, directions)]
    listed = [pair for name in presets for pair in preset_named(name).pairs(directions)]
    return list(dict.fromkeys([*own, *listed]))
