"""How workers report why they failed, and how an agent reads it, in torch's error file format."""

from agentd.elastic.multiprocessing.errors.child_failed import ChildFailedError
from agentd.elastic.multiprocessing.errors.error_handler import ErrorHandler
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.multiprocessing.errors.handlers import get_error_handler
from agentd.elastic.multiprocessing.errors.recording import record

__all__ = ["ChildFailedError", "ErrorHandler", "ProcessFailure", "get_error_handler", "record"]
