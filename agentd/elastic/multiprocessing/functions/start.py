"""Start function workers on the standard library's `multiprocessing`."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import operator
import os
import runpy
import signal
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from agentd.elastic.multiprocessing.functions import begin, worker
from agentd.elastic.multiprocessing.functions.channel import ValueChannel
from agentd.elastic.multiprocessing.functions.child import FunctionChild
from agentd.elastic.multiprocessing.functions.work import (
    Descriptors,
    Function,
    InheritedWork,
    SentWork,
    name_of,
    new_memory,
)
from agentd.elastic.multiprocessing.owner import Launch
from agentd.procs.lifeline import Lifeline
from agentd.quickdata import dataclass


@dataclass(frozen=True, kw_only=True)
class FunctionStart:
    """One worker to be started."""

    method: str
    """`spawn`, `fork` or `forkserver`."""
    name: str
    """Of its process."""
    function: Function
    args: tuple[Any, ...]
    launch: Launch

    def run(self, channel: ValueChannel, unwanted: frozenset[int]) -> FunctionChild:
        """Start it; its value will come through `channel`. It dies with the calling thread.

        `unwanted` are descriptors that a forked process must not keep. Raises `ArgumentNotPicklable`, and
        what `multiprocessing` raises.
        """
        try:
            with Lifeline() as lifeline:
                fds = {"channel": channel.theirs, "lifeline": lifeline.theirs, **self._log_fds()}
                process = self._started(fds, unwanted)
                return FunctionChild(process, is_child=self.method != "forkserver", lifeline=lifeline)
        finally:
            channel.handed_over()

    def _started(self, fds: dict[str, int], unwanted: frozenset[int]) -> BaseProcess:
        if self.method == "fork":
            return self._fork(fds, unwanted)
        if self.method == "forkserver":
            # The server's streams are those of the moment it was started: they may be others by now. Its
            # child's death is tied to the server by the kernel, and to this process by the lifeline alone.
            return self._send({"stdout": 1, "stderr": 2, **fds}, parent=0)
        return self._send(fds, parent=os.getpid())

    def _fork(self, fds: dict[str, int], unwanted: frozenset[int]) -> BaseProcess:
        order = self._order(fds, parent=os.getpid(), env=self.launch.env, unwanted=sorted(unwanted))
        work = InheritedWork(
            local_rank=self.launch.local_rank,
            function_name=name_of(self.function),
            channel=fds["channel"],
            cwd=self.launch.cwd,
            function=self.function,
            args=self.args,
        )
        process = self._process(self.name, worker.run_forked, work, order)
        # What comes before the child has begun waits until then: a handler of this process must not take it.
        with _signals_blocked():
            process.start()
        return process

    def _send(self, fds: dict[str, int], parent: int) -> BaseProcess:
        with new_memory() as memory:
            memory.write(json.dumps(self.launch.env).encode() + b"\n")
            sent = Descriptors({**fds, "memory": memory.fileno()})
            work = SentWork(
                local_rank=self.launch.local_rank,
                cwd=self.launch.cwd,
                function=self.function,
                args=self.args,
                memory=memory,
                descriptors=sent,
            )
            beginning = Beginning.of(self.name, self._order(sent, parent=parent, unwanted=[]))
            process = self._process(beginning, worker.run, work)
            process.start()
        return process

    def _order(self, fds: object, **more: object) -> dict[str, Any]:
        """What `begin` needs to know."""
        redirected = (self.launch.stdout_fd is not None, self.launch.stderr_fd is not None)
        return {"fds": fds, "redirected": redirected, "cpus": self.launch.cpus, **more}

    def _log_fds(self) -> dict[str, int]:
        found = {"stdout": self.launch.stdout_fd, "stderr": self.launch.stderr_fd}
        return {name: fd for name, fd in found.items() if fd is not None}

    def _process(self, name: str, target: Function, *args: object) -> BaseProcess:
        context: Any = multiprocessing.get_context(self.method)
        process: BaseProcess = context.Process(target=target, name=name, args=args, daemon=False)
        return process


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    former = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # Within: the handler of a signal that came just before runs here, and may raise.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class Beginning(str):
    """A process' name that runs `begin.py` when the process reads it.

    The name is the first thing that a process of `multiprocessing` unpickles, before it imports the user's
    main module: that may take long, or never return, and must not do so outside of the worker's session.
    """

    __slots__ = ("_order",)
    _order: dict[str, Any] | None

    @classmethod
    def of(cls, name: str, order: dict[str, Any]) -> Beginning:
        """`name`, with what to do first; see `begin.begin`."""
        beginning = cls(name)
        beginning._order = order
        return beginning

    def __reduce__(self) -> tuple[Any, ...]:
        # It is pickled twice, as the process' name and as a part of the process object; one begins once.
        order, self._order = self._order, None
        if order is None:
            return str, (str(self),)
        return operator.getitem, (_Script({"ORDER": order, "NAME": str(self)}), "NAME")


class _Script:
    def __init__(self, variables: dict[str, Any]) -> None:
        order = variables["ORDER"]
        self._variables = {**variables, "ORDER": {**order, "fds": order["fds"].taken()}}

    def __reduce__(self) -> tuple[Any, ...]:
        return runpy.run_path, (begin.__file__, self._variables, "agentd_function_begin")
