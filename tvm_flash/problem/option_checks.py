"""What the options of a call may be, whose arrays they are: torch's or JAX's."""

from __future__ import annotations

from collections.abc import Sequence

from .spec import SOFTMAXES, has_sum


def check_softmax(softmax: str, has_sink: bool, return_lse: bool) -> None:
    """ValueError unless a call may ask for this kind, with a sink or not, with lse or not."""
    kinds = [kind for kind in SOFTMAXES if kind != "sink"]
    if softmax not in kinds:
        raise ValueError(f"{softmax=} must be one of {', '.join(kinds)}; for a sink give sink")
    if return_lse and not has_sum(softmax):
        raise ValueError(f"{softmax=} has no lse: it has no sum over a row")
    if has_sink and softmax != "softmax":
        raise ValueError(f"sink is of softmax='softmax', not {softmax!r}")


def check_sink_shape(shape: Sequence[int], heads: int) -> None:
    """ValueError unless a sink is a logit for each head, (H,)."""
    if tuple(shape) != (heads,):
        raise ValueError(f"sink of shape {tuple(shape)} must be (num_heads,) = ({heads},)")


def check_slopes_shape(shape: Sequence[int], batch: int, heads: int) -> None:
    """ValueError unless ALiBi's slopes are (H,), or (B, H)."""
    # Not `in`: torch.compile compares no symbols there.
    if tuple(shape) != (heads,) and tuple(shape) != (batch, heads):
        raise ValueError(
            f"alibi_slopes of shape {tuple(shape)} must be (num_heads,) = ({heads},) or "
            f"(batch, num_heads) = ({batch}, {heads})"
        )
