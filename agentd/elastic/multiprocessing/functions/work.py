"""What a function worker is to do, and how that travels: in a memory file, so that no pipe can be full."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import IO, Any, Protocol, TypeAlias

from agentd.elastic.multiprocessing.functions.errors import ArgumentNotPicklable, FunctionNotLoadable
from agentd.quickdata import dataclass

Function: TypeAlias = "Callable[..., Any]"


def name_of(function: Function) -> str:
    """Its module and name, for people."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', None) or '?'}.{name}"


class Work(Protocol):
    """A function to call in a worker's process."""

    @property
    def local_rank(self) -> int:
        """Whose work it is."""

    @property
    def function_name(self) -> str:
        """Its module and name."""

    @property
    def channel(self) -> int:
        """The descriptor that takes the value."""

    @property
    def cwd(self) -> str | None:
        """The directory to call it in; `None`: as it is."""

    def load(self) -> tuple[Function, tuple[Any, ...]]:
        """The function and its arguments; raises `FunctionNotLoadable`."""


@dataclass(frozen=True)
class InheritedWork:
    """For a forked process, which has everything already."""

    local_rank: int
    function_name: str
    channel: int
    cwd: str | None
    function: Function
    args: tuple[Any, ...]

    def load(self) -> tuple[Function, tuple[Any, ...]]:
        return self.function, self.args


@dataclass(frozen=True)
class ArrivedWork:
    """In a process that began empty: pickled in a memory file, from `offset` on."""

    local_rank: int
    function_name: str
    channel: int
    cwd: str | None
    memory: int
    offset: int

    def load(self) -> tuple[Function, tuple[Any, ...]]:
        with open(self.memory, "rb") as file:
            file.seek(self.offset)
            function = self._read("the function", file)
            return function, self._read("the arguments", file)

    def _read(self, what: str, file: IO[bytes]) -> Any:
        try:
            return pickle.load(file)
        except Exception as error:
            raise FunctionNotLoadable(self.local_rank, self.function_name, what, error) from error


class Descriptors:
    """Descriptors on their way into a process that is being started.

    `multiprocessing` takes each once, however often it is pickled.
    """

    def __init__(self, fds: dict[str, int]) -> None:
        self._fds = fds
        self._taken: dict[str, Any] = {}

    def taken(self) -> dict[str, Any]:
        """What to pickle for them. Only while `multiprocessing` starts the process."""
        for name, fd in self._fds.items():
            if name not in self._taken:
                self._taken[name] = DupFd(fd)
        return self._taken


@dataclass(frozen=True)
class SentWork:
    """Becomes `ArrivedWork` by being pickled, which happens once, while its process is being started.

    Then and only then queues, locks and shared tensors can be pickled, too.
    """

    local_rank: int
    cwd: str | None
    function: Function
    args: tuple[Any, ...]
    memory: IO[bytes]
    """The memory file, at the place where function and arguments are to go."""
    descriptors: Descriptors
    """`memory` and `channel`, at least."""

    def __reduce__(self) -> tuple[Any, ...]:
        offset = self.memory.tell()
        self._write("the function", self.function)
        self._write_args()
        self.memory.flush()
        taken = self.descriptors.taken()
        facts = self.local_rank, name_of(self.function), taken["channel"], self.cwd, taken["memory"], offset
        return _arrive, facts

    def _write_args(self) -> None:
        try:
            ForkingPickler(self.memory).dump(self.args)
        except Exception as error:
            # Which of them it is, is worth a second try.
            for position, value in enumerate(self.args):
                self._write(f"argument {position}", value)
            raise ArgumentNotPicklable(self.local_rank, "their tuple", self.args, error) from error

    def _write(self, what: str, value: object) -> None:
        try:
            ForkingPickler(self.memory).dump(value)
        except Exception as error:
            raise ArgumentNotPicklable(self.local_rank, what, value, error) from error


def _arrive(
    local_rank: int, function_name: str, channel: Any, cwd: str | None, memory: Any, offset: int
) -> ArrivedWork:
    return ArrivedWork(local_rank, function_name, channel.detach(), cwd, memory.detach(), offset)


def new_memory() -> IO[bytes]:
    """A file that lives in memory for as long as somebody has it open."""
    return os.fdopen(os.memfd_create("agentd-function", os.MFD_CLOEXEC), "w+b")
