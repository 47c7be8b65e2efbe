"""Cost models: from the features of candidates to a score, higher for faster ones.

Each learns the throughput relative to the best, ``min(seconds) / seconds`` in (0, 1], and 0 where a
candidate failed: the label of Ansor (Zheng et al., OSDI 2020), which spends a model's capacity on
the fast end. A score means nothing but the order it gives.
"""

from __future__ import annotations

import importlib

from ...errors import TvmFlashError
from .base import CostModel

# Name -> module and class. Imported when asked for: their libraries take a second or more, and
# belong to an extra.
COST_MODELS = {
    "random": ("base", "Random"),
    "ridge": ("scikit_learn", "Ridge"),
    "gp": ("scikit_learn", "GaussianProcess"),
    "xgb": ("trees", "Xgb"),
    "mlp": ("scikit_learn", "Mlp"),
}


def cost_model(name: str, seed: int) -> CostModel:
    """A model by name: ``random``, ``ridge``, ``gp``, ``xgb`` or ``mlp``.

    Raises ValueError for another name, TvmFlashError where the model's library is missing.
    """
    if name not in COST_MODELS:
        raise ValueError(f"cost model {name!r} must be one of {', '.join(COST_MODELS)}")
    module, model = COST_MODELS[name]
    try:
        found = importlib.import_module(f".{module}", __name__)
    except ModuleNotFoundError as error:
        raise TvmFlashError(
            f"cost model {name!r} needs {error.name}, which is missing: "
            "pip install 'tvm-flash[compile]'"
        ) from error
    return getattr(found, model)(seed)
