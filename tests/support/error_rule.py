"""The error rule (``tvm_flash.verify.rule``) on cases of the shared list."""

import tvm_flash
from tvm_flash.cases import make_inputs
from tvm_flash.verify.rule import judged


def check_case(case, **options) -> None:
    """Assert the rule for ``tvm_flash.attention`` with ``options`` on the inputs of ``case``."""
    for deviation in judged(tvm_flash.attention, make_inputs(case), **options):
        assert deviation.ok, str(deviation)
