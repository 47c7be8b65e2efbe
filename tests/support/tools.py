"""Tests that need a program of CUDA's."""

from __future__ import annotations

import pytest

from tvm_flash.errors import BuildError


def needs(*finders):
    """A mark that skips, saying why, where one of ``finders`` finds nothing."""
    for find in finders:
        try:
            find()
        except BuildError as error:
            return pytest.mark.skip(reason=str(error))
    return pytest.mark.skipif(False, reason="")
