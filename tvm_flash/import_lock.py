"""A lock for imports in the middle of a call, which forks wait for.

A child that is forked in the middle of an import has half a module, and no thread to finish it:
every later import of it would wait for that one, for ever.

Forks take the locks that were registered last first. Modules ask for loggers while they are
imported, so logging's lock has to be registered before this one, and is taken after it: held by a
fork that waits here, it would keep the import from its end.
"""

from __future__ import annotations

import logging  # noqa: F401
import os
import threading

importing = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=importing.acquire,
        after_in_parent=importing.release,
        after_in_child=importing.release,
    )
