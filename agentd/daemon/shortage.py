"""What the event loop says when it has no descriptor for a caller: nothing, for the node's condition says it.

asyncio says it for each of a hundred tries at once, with a traceback each, and again every second.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from agentd.procs.resources import SHORTAGES

_log: Final = logging.getLogger(__name__)


def mute_shortages(loop: asyncio.AbstractEventLoop) -> None:
    """Callers whom a loop cannot take in wait in the kernel's queue; it tries again by itself."""
    loop.set_exception_handler(_handle)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    problem = context.get("exception")
    if "socket" in context and isinstance(problem, OSError) and problem.errno in SHORTAGES:
        _log.debug("a caller waits for a descriptor", extra={"problem": problem.strerror})
    else:
        loop.default_exception_handler(context)
