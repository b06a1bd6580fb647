"""What others say when agentd has no descriptor left: nothing, for the node's condition says it.

asyncio says it for each of a hundred tries at once to take in one caller, with a traceback each, and again
every second; gRPC does with each call that it then cannot decode its own words for it.
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
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_legible)


def _is_legible(record: logging.LogRecord) -> bool:
    return not isinstance((record.exc_info or (None, None))[1], UnicodeDecodeError)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    problem = context.get("exception")
    if "socket" in context and isinstance(problem, OSError) and problem.errno in SHORTAGES:
        _log.debug("a caller waits for a descriptor", extra={"problem": problem.strerror})
    else:
        loop.default_exception_handler(context)
