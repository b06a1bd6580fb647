"""Where `record` finds its error handler."""

from agentd.elastic.multiprocessing.errors.error_handler import ErrorHandler

__all__ = ["get_error_handler"]


def get_error_handler() -> ErrorHandler:
    """A new `ErrorHandler`, as torch gives; `record` uses it unless it is given another."""
    return ErrorHandler()
