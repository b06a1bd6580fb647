"""Worker processes: start, logs, failures."""

from agentd.elastic.multiprocessing.api import SignalException

__all__ = ["SignalException"]
