"""`record`: what a worker's main function raises reaches the agent, by the error file."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from agentd.elastic.multiprocessing.errors.child_failed import ChildFailedError
from agentd.elastic.multiprocessing.errors.error_handler import ErrorHandler
from agentd.elastic.multiprocessing.errors.failure import NOT_AVAILABLE
from agentd.elastic.multiprocessing.errors.handlers import get_error_handler

__all__ = ["record"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


def record(fn: Callable[P, R], error_handler: ErrorHandler | None = None) -> Callable[P, R | None]:
    """Have what `fn` raises written to the error file before it passes on. For a process' main function.

    `error_handler` is a new `ErrorHandler` by default, chosen when decorating. What `fn` raises:

    - `SystemExit` with status 0, which `sys.exit()` means too: `None` is returned. With another status it
      passes; its text, if it has one instead of a number, is recorded.
    - `ChildFailedError`: the first failure's error file is copied up; the error itself is not recorded.
    - `KeyboardInterrupt`, `GeneratorExit`: pass unrecorded. Everything else is recorded and passes.

    A handler that fails is logged and hides nothing.
    """
    handler = get_error_handler() if error_handler is None else error_handler

    @functools.wraps(fn)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R | None:
        handler.initialize()
        try:
            return fn(*args, **kwargs)
        except SystemExit as exit_:
            if exit_.code is None or exit_.code == 0:
                return None
            if isinstance(exit_.code, str):
                _safely(handler.record_exception, exit_)
            raise
        except ChildFailedError as error:
            _safely(_pass_on, handler, error)
            raise
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            _safely(handler.record_exception, error)
            raise

    return wrapper


def _pass_on(handler: ErrorHandler, error: ChildFailedError) -> None:
    rank, failure = error.get_first_failure()
    if failure.error_file != NOT_AVAILABLE:
        handler.dump_error_file(failure.error_file, failure.exitcode)
        return
    log.info(
        "rank %d (local rank %d) failed and left no error file; decorate its main function with "
        "agentd.elastic.multiprocessing.errors.record to get one",
        rank,
        failure.local_rank,
    )


def _safely(action: Callable[Q, object], *args: Q.args, **kwargs: Q.kwargs) -> None:
    try:
        action(*args, **kwargs)
    except Exception:
        log.exception("the error handler failed; what it was to record is raised all the same")
