"""Strategies: one class each, of the protocol in ``tvm_flash.tune.strategy``."""
