"""What a user is told of a kernel that is not there: which, what is there, how it is made."""

from __future__ import annotations

from ..errors import UnsupportedSpec
from ..problem.presets import served_pairs
from ..problem.spec import AttentionSpec
from ..problem.text import FUNCTION, text_of
from .installed import refusals
from .loader import registered

# Specs that are named of those that are loaded.
_NAMED = 4

_DEVICES = {"cpu": "CPUs", "cuda": "CUDA"}
# What is built without --directions.
_USUAL = ("forward", "backward")
_NOTES = {
    "append": "paged libraries of older versions lack append, which tvm-flash build adds to them"
}


def missing_kernel(spec: AttentionSpec, direction: str, device: str, why: str) -> UnsupportedSpec:
    """The error for a kernel that no library has; ``why`` none is compiled, and what to install.

    direction: a name in artifact.DIRECTIONS. device: "cpu" or "cuda".
    """
    command = build_command(spec, direction, device)
    notes = [_NOTES[direction]] if direction in _NOTES else []
    yours = f", with your {FUNCTION}," * (FUNCTION in command)
    return UnsupportedSpec(
        [
            f"no loaded library has this kernel, {direction} of {text_of(spec)} ({spec.name}) for "
            f"{_DEVICES[device]}; loaded: {_loaded(device)}",
            *refusals,
            *notes,
            f'{why}; or build it elsewhere (`{command}`){yours} and tvm_flash.load("kernels")',
        ]
    )


def build_command(spec: AttentionSpec, direction: str, device: str = "cpu") -> str:
    """The command that builds a library with the kernel, into the folder "kernels"."""
    directions = ""
    if (spec, direction) not in served_pairs(spec, _USUAL):
        # Callers of the others need a forward too, where there is one.
        beside = ["forward"] * ((spec, "forward") in served_pairs(spec, ["forward"]))
        directions = f" --directions {','.join([*beside, direction])}"
    target = " --target cuda" * (device == "cuda")
    return f"tvm-flash build {text_of(spec)}{directions}{target} -o kernels"


def _loaded(device: str) -> str:
    """The kernels that there are, each spec with its directions."""
    held: dict[AttentionSpec, set[str]] = {}
    for (_, direction, place, _), kernel in registered.items():
        if place == device:
            held.setdefault(kernel.spec, set()).add(direction)
    if not held:
        return "none"
    named = [f"{text_of(s)} ({', '.join(sorted(d))})" for s, d in [*held.items()][:_NAMED]]
    more = len(held) - len(named)
    return ", ".join(named) + f" and {more} more" * bool(more)
