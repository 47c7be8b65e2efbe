"""What streaming kernels need, derived from the named blocks of a plain definition, with proofs."""

from .blocks import Rejected
from .gradient import Gradient, derive_gradient
from .recurrence import Recurrence, derive
from .states import State

__all__ = ["Gradient", "Recurrence", "Rejected", "State", "derive", "derive_gradient"]
