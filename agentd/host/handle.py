"""agentd's side of a host: start it, meet it when it dials in, hear it, know when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import agentd
from agentd.host.link import SOCKET_NAME
from agentd.host.wire import (
    AgentFrame,
    Frame,
    FrameReader,
    Hello,
    HostSpec,
    Refused,
    ReportFrame,
    Welcome,
    WireError,
    encode,
)
from agentd.procs.exits import ExitInfo, peek_exit
from agentd.procs.identity import ProcessIdentity, identify, send_signal
from agentd.procs.pidfd import open_process
from agentd.procs.spawn import Child, SpawnError, spawn
from agentd.procs.tree import TOKEN_VARIABLE

HOST_LOG = "host.log"
MEET_TIMEOUT_S = 20.0
"""A host that has not dialled in by then is ended; it gives up by itself before."""
LAST_WORDS_S = 2.0
"""How long the frames of a host that has ended are waited for."""

_HELLO_TIMEOUT_S = 10.0
_POLL_S = 0.02
_READ_SIZE = 65_536
_log = logging.getLogger(__name__)


class HostListener(Protocol):
    """Hears one host. Called on the event loop; must not block."""

    def on_host_frame(self, frame: ReportFrame) -> None:
        """The host reports."""

    def on_host_exit(self, reason: str) -> None:
        """The host process is gone, and all it said was heard."""


class HostDoor:
    """Where hosts dial in: `<state-dir>/hosts.sock`."""

    def __init__(self, state_dir: str, disk: Executor | None = None) -> None:
        """`disk` runs what may hang with a disk."""
        self._state_dir = state_dir
        self._disk = disk
        self._server: asyncio.Server | None = None
        self._name: tuple[int, int] | None = None
        """Device and inode of the socket's name, by which it is told from another one."""
        self._opening = asyncio.Lock()
        self._expected: dict[str, HostHandle] = {}  # by token
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen. Whoever holds the state directory's lock owns the socket's name."""
        loop = asyncio.get_running_loop()
        listening, self._name = await loop.run_in_executor(
            self._disk, _bound_below, self._state_dir, SOCKET_NAME
        )
        self._server = await asyncio.start_unix_server(self._serve, sock=listening)

    async def close(self) -> None:
        """Listen no more and hang up on everybody."""
        if self._server is not None:
            self._server.close()
            await asyncio.to_thread(Path(self._state_dir, SOCKET_NAME).unlink, missing_ok=True)
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def start_host(self, spec: HostSpec, group_dir: str, listener: HostListener) -> HostHandle:
        """Start a host that will be welcomed with `spec`. Raises `SpawnError`."""
        await self._see_to_the_name()
        handle = HostHandle(spec, listener, self._forget)
        self._expected[spec.token] = handle
        try:
            loop = asyncio.get_running_loop()
            child = await loop.run_in_executor(self._disk, _spawn_host, spec, self._state_dir, group_dir)
        except BaseException:
            self._forget(spec.token)
            raise
        handle.watch(child)
        return handle

    async def _see_to_the_name(self) -> None:
        """Listen under the name again if somebody deleted it; who dialled in before stays connected."""
        async with self._opening:
            loop = asyncio.get_running_loop()
            here = await loop.run_in_executor(self._disk, _name_of, self._state_dir, SOCKET_NAME)
            if self._server is None or here == self._name:
                return
            _log.warning("the hosts' socket was deleted; listening again", extra={"folder": self._state_dir})
            former = self._server
            await self.open()
            former.close()

    def _forget(self, token: str) -> None:
        self._expected.pop(token, None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (WireError, OSError, asyncio.TimeoutError) as error:
            _log.warning(
                "a host's connection was dropped", extra={"problem": str(error) or "it said nothing"}
            )
        except asyncio.CancelledError:
            # Ends quietly: only `close` cancels, and it waits for the task, not for its result.
            pass
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if _peer_uid(writer) != os.geteuid():
            raise WireError("it belongs to another user")
        frames = FrameReader()
        first = await asyncio.wait_for(_first_frames(reader, frames), _HELLO_TIMEOUT_S)
        hello = first[0]
        handle = self._expected.get(hello.token) if isinstance(hello, Hello) else None
        if handle is None or not isinstance(hello, Hello) or not handle.is_described_by(hello):
            writer.write(encode(Refused(reason="this agentd knows no such host")))
            return
        handle.meet(writer)
        try:
            handle.take(first[1:])
            while data := await reader.read(_READ_SIZE):
                handle.take(list(frames.feed(data)))
        finally:
            handle.hang_up()


class HostHandle:
    """One host process as agentd knows it."""

    def __init__(self, spec: HostSpec, listener: HostListener, forget: Callable[[str], None]) -> None:
        self._spec = spec
        self._listener = listener
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: deque[AgentFrame] = deque()
        self._admitted = False
        self._child: Child | None = None
        self._pidfd: int | None = None
        self._exit: ExitInfo | None = None
        self._over = False
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def token(self) -> str:
        """What marks the host and everything it starts."""
        return self._spec.token

    @property
    def identity(self) -> ProcessIdentity | None:
        """The process; None while it is being started."""
        return self._child.identity if self._child else None

    @property
    def over(self) -> bool:
        """Whether the process is gone, and its listener knows."""
        return self._over

    def send(self, frame: AgentFrame) -> None:
        """Tell the host, once it is welcomed; a host that is gone hears nothing."""
        if self._over:
            return
        self._unsent.append(frame)
        self._flush()

    def admit(self) -> None:
        """The host is journalled: welcome it as soon as it dials in, or now. It starts nothing before."""
        self._admitted = True
        self._unsent.appendleft(Welcome(spec=self._spec))
        self._flush()

    def kill(self) -> None:
        """SIGKILL. Its workers die with it."""
        if self._child is not None and self._exit is None:
            send_signal(self._child.identity, signal.SIGKILL)

    def abandon(self) -> None:
        """Hear of it no more, although it may still be there."""
        self._unwatch()
        self._let_go()

    def is_described_by(self, hello: Hello) -> bool:
        """Whether it is this very host that dialled in."""
        spec = self._spec
        told = (hello.run_id, hello.incarnation, hello.role)
        known = self._child is None or self._child.identity == ProcessIdentity(hello.pid, hello.start_time)
        return known and told == (spec.run_id, spec.incarnation, spec.role) and self._writer is None

    def meet(self, writer: asyncio.StreamWriter) -> None:
        """It has dialled in."""
        self._writer = writer
        self._flush()

    def take(self, frames: list[Frame]) -> None:
        """Pass on what it reports."""
        for frame in frames:
            if isinstance(frame, ReportFrame):
                self._listener.on_host_frame(frame)

    def hang_up(self) -> None:
        """Its connection has ended; all it said was heard."""
        self._writer = None
        if self._exit is not None:
            self._end()

    def _flush(self) -> None:
        while self._unsent and self._admitted and self._writer is not None:
            self._writer.write(encode(self._unsent.popleft()))

    def watch(self, child: Child) -> None:
        """The process exists: notice its end."""
        self._child = child
        self._timers.append(self._loop.call_later(MEET_TIMEOUT_S, self._give_up_meeting))
        self._pidfd = open_process(child.identity)
        if self._pidfd is None:
            self._poll()
        else:
            self._loop.add_reader(self._pidfd, self._look)

    def _give_up_meeting(self) -> None:
        if self._writer is None:
            self.kill()

    def _poll(self) -> None:
        """For sandboxes that forbid pidfd_open."""
        self._look()
        if self._exit is None:
            self._timers.append(self._loop.call_later(_POLL_S, self._poll))

    def _look(self) -> None:
        assert self._child is not None
        self._exit = peek_exit(self._child.pid)
        if self._exit is None:
            return
        self._unwatch()
        self._child.reap()
        if self._writer is None:
            self._end()
        else:
            # What it said before it ended may still be on its way.
            self._timers.append(self._loop.call_later(LAST_WORDS_S, self._end))

    def _unwatch(self) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _end(self) -> None:
        if self._over:
            return
        self._let_go()
        assert self._exit is not None
        self._listener.on_host_exit(self._exit.summary)

    def _let_go(self) -> None:
        self._over = True
        for timer in self._timers:
            timer.cancel()
        self._forget(self._spec.token)
        if self._writer is not None:
            self._writer.close()


async def _first_frames(reader: asyncio.StreamReader, frames: FrameReader) -> list[Frame]:
    while True:
        data = await reader.read(_READ_SIZE)
        if not data:
            raise WireError("it hung up before it said who it is")
        if found := list(frames.feed(data)):
            return found


def _spawn_host(spec: HostSpec, state_dir: str, group_dir: str) -> Child:
    own = identify(os.getpid())
    assert own is not None
    arguments = [state_dir, group_dir, spec.run_id, str(spec.incarnation), spec.role]
    # -S: a host needs the standard library and agentd, and is there sooner without the site packages.
    argv = [sys.executable, "-S", "-m", "agentd.host", *arguments, str(own.pid), str(own.start_time)]
    env = {
        **os.environ,
        TOKEN_VARIABLE: spec.token,
        "PYTHONPATH": str(Path(agentd.__file__).parent.parent),
    }
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        log = os.open(f"{group_dir}/{HOST_LOG}", flags, 0o600)
    except OSError as error:
        problem = error.strerror or str(error)
        raise SpawnError(error.errno or 0, f"{group_dir}/{HOST_LOG}", problem) from error
    try:
        return spawn(argv, env=env, cwd=group_dir, stdout_fd=log, stderr_fd=log, parent_death_signal=None)
    finally:
        os.close(log)


def _bound_below(directory: str, name: str) -> tuple[socket.socket, tuple[int, int]]:
    """A Unix socket for this user only, and its file; the path of its directory may be long."""
    folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        listening.bind(f"/proc/self/fd/{folder}/{name}")
        os.chmod(name, 0o600, dir_fd=folder)
        found = os.stat(name, dir_fd=folder)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(folder)
    return listening, (found.st_dev, found.st_ino)


def _name_of(directory: str, name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(os.path.join(directory, name))
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)
