"""The life of a function worker that has begun: load, call, send the value, wait until it is unpickled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from multiprocessing.reduction import ForkingPickler
from typing import Any

from agentd.elastic.multiprocessing.errors import record
from agentd.elastic.multiprocessing.functions import begin
from agentd.elastic.multiprocessing.functions.channel import HEADER
from agentd.elastic.multiprocessing.functions.errors import ReturnValueNotPicklable
from agentd.elastic.multiprocessing.functions.work import Work


def run_forked(work: Work, order: dict[str, Any]) -> None:
    """The same for a process made by fork, which has yet to begin."""
    begin.begin(order)
    begin.renew_streams(order["redirected"])
    run(work)


def run(work: Work) -> None:
    """Do the work. What the function raises is put into the error file and passes on."""
    begin.start_over()
    try:
        payload = record(_value_of)(work)
    except KeyboardInterrupt:
        _die_of_interrupt()
        raise
    # `record` answers None for sys.exit(0).
    _send(work.channel, memoryview(ForkingPickler.dumps(None)) if payload is None else payload)


def _value_of(work: Work) -> memoryview:
    if work.cwd is not None:
        os.chdir(work.cwd)
    function, args = work.load()
    value = function(*args)
    try:
        return memoryview(ForkingPickler.dumps(value))
    except Exception as error:
        raise ReturnValueNotPicklable(work.local_rank, work.function_name, value, error) from error


def _send(channel: int, payload: memoryview) -> None:
    """Send the value and wait until it is unpickled: what it shares with this process must last till then."""
    with contextlib.suppress(OSError), socket.socket(fileno=channel) as connection:
        connection.sendall(HEADER.pack(payload.nbytes))
        connection.sendall(payload)
        connection.recv(1)


def _die_of_interrupt() -> None:
    """End as a program does that nobody keeps from it: by the signal."""
    sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
