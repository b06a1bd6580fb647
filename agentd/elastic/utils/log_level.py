"""The level of loggers where nobody chose one, under torch's name."""

from __future__ import annotations

__all__ = ["get_log_level"]


def get_log_level() -> str:
    """`WARNING`, as in torch. LOGLEVEL is read by `agentd.elastic.utils.logging.get_logger`."""
    return "WARNING"
