"""MetaSchedule's tuning context, made without its Python constructor."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np


def tune_context(mod, target: str, generator=None, strategy=None, seed: int = 1) -> Any:
    """A ``TuneContext`` of one thread, so that the same ``seed`` gives the same search.

    target: LLVM's or CUDA's, as TVM's kind. The Python constructor of ``TuneContext`` imports every
    tensor intrinsic of TVM, 20 to 40 s; the object itself needs none of them.
    """
    import tvm
    from tvm.s_tir.meta_schedule import TuneContext, _ffi_api
    from tvm.s_tir.meta_schedule.logging import get_logging_func

    context = TuneContext.__new__(TuneContext)
    context.__init_handle_by_constructor__(
        _ffi_api.TuneContext,
        mod,
        tvm.target.Target({"kind": target}),
        generator,
        strategy,
        "main",
        1,  # threads
        seed % (2**31 - 2) + 1,  # TVM's generator wants 1 to 2^31 - 1
        get_logging_func(logging.getLogger("tvm_flash.metaschedule")),
    )
    _ffi_api.TuneContextInitialize(context)
    return context


def per_store_extract(mod) -> np.ndarray:
    """``PerStoreFeature`` of the one function in ``mod``, (n_stores, 164) float64."""
    import tvm
    from tvm.s_tir.meta_schedule.feature_extractor import PerStoreFeature
    from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

    (func,) = mod.functions.values()
    main = tvm.IRModule({"main": func})
    candidate = MeasureCandidate(tvm.s_tir.Schedule(main), [])
    (features,) = PerStoreFeature().extract_from(tune_context(main, "llvm"), [candidate])
    return features.numpy()
