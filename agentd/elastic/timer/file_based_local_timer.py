"""Timers over a named pipe, for workers on the machine of their agent: torch's names and torch's wire."""

from agentd.elastic.timer.file_client import FileTimerClient
from agentd.elastic.timer.file_server import FileTimerServer
from agentd.elastic.timer.pipe import TimerPipeError
from agentd.elastic.timer.wire import FileTimerRequest

__all__ = ["FileTimerClient", "FileTimerRequest", "FileTimerServer", "TimerPipeError"]
