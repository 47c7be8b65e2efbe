"""Plain F.scaled_dot_product_attention on our kernels: torch's own operators, overridden.

torch.nn.functional.scaled_dot_product_attention, nn.MultiheadAttention, nn.Transformer*, traced and
exported programs all end in a pair of aten operators for each device; here are other kernels for
them.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch

from .sdpa_kernels import PAIRS


class Sdpa:
    """Switches the whole process over, and back: ``with tvm_flash.sdpa():``, or enable, disable.

    Counted: nested and threads' own uses add up, and the last exit restores torch's kernels, which
    also compute what ours do not serve (float64, head dimensions outside 8 to 512) and what torch
    sends elsewhere: dropout, an attn_mask that wants a gradient, values of another head_dim than
    keys. Meanwhile the inference fast path of nn.MultiheadAttention and of the encoder layer, which
    calls no operator of attention, is off.
    """

    def __init__(self):
        self._lock, self._uses, self._undo = threading.Lock(), 0, ()
        self._names: set[str] = set()

    def __call__(self):
        """A context in which torch's attention runs on these kernels."""
        return self._within()

    @contextmanager
    def _within(self) -> Iterator[None]:
        self.enable()
        try:
            yield
        finally:
            self.disable()

    @property
    def enabled(self) -> bool:
        """Whether torch's attention runs on these kernels now."""
        return self._uses > 0

    def enable(self) -> None:
        """Switch over, until ``disable`` was called as often."""
        with self._lock:
            if not self._uses:
                self._undo = _switched_over()
            self._uses += 1

    def disable(self) -> None:
        """Undo one ``enable``; RuntimeError where there is none."""
        with self._lock:
            if not self._uses:
                raise RuntimeError("sdpa.disable() without an sdpa.enable() before it")
            self._uses -= 1
            if not self._uses:
                for undo in self._undo:
                    undo()

    def register(self, name: str = "tvm") -> str:
        """Make ``name`` known to torch.nn.attention.activate_flash_attention_impl; returns it.

        To activate it is one ``enable``, torch's restore_flash_attention_impl the ``disable``.
        Raises ImportError where torch has no such list, TypeError for a name that is no str and
        ValueError for an empty one and for that of somebody else's.
        """
        if not isinstance(name, str):
            raise TypeError(f"{name=!r:.60} must be a str: torch sorts the names of its list")
        try:
            from torch.nn.attention import list_flash_attention_impls, register_flash_attention_impl
        except ImportError as error:
            raise ImportError(
                f"torch {torch.__version__} keeps no list of implementations: use sdpa.enable()"
            ) from error
        taken = set(list_flash_attention_impls()) - self._names
        if not name or name in taken:
            raise ValueError(f"{name=} must be a new name, not of {', '.join(sorted(taken))}")
        register_flash_attention_impl(name, register_fn=partial(_Activated, self))
        self._names.add(name)
        return name


class _Activated:
    """One use of ``sdpa``, as torch's list of implementations holds it."""

    def __init__(self, switch: Sdpa):
        self._switch = switch
        switch.enable()

    def remove(self) -> None:
        # Where somebody's disable() was one too many this use has ended. torch forgets it only if
        # nothing is raised here.
        with suppress(RuntimeError):
            self._switch.disable()


def _switched_over() -> tuple[Callable[[], None], ...]:
    """Override the operators; what restores them, in order."""
    library = torch.library.Library("aten", "IMPL")
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered")
        for name, key, ours in PAIRS:
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key):
                theirs = torch.library.get_kernel(f"aten::{name}", key)
                library.impl(name, partial(ours, theirs), key, with_keyset=True)
    torch.backends.mha.set_fastpath_enabled(False)
    return library._destroy, partial(torch.backends.mha.set_fastpath_enabled, fast_path)


sdpa = Sdpa()
