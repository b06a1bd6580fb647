"""Where hosts dial in: `<state-dir>/hosts.sock`. Starts hosts, and waits for those of an earlier agentd."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import sys
from concurrent.futures import Executor
from pathlib import Path

import agentd
from agentd.api.patience import within
from agentd.host.handle import HostHandle, HostListener
from agentd.host.hostlog import HOST_LOG
from agentd.host.link import SOCKET_NAME
from agentd.host.stock import HostStock
from agentd.host.wire import (
    Frame,
    FrameReader,
    Hello,
    HostSpec,
    NoCommonVersion,
    Refused,
    WireError,
    agree,
    encode,
)
from agentd.procs import cgroups
from agentd.procs.identity import ProcessIdentity, identify
from agentd.procs.resources import SHORTAGES
from agentd.procs.spawn import Child, SpawnError, spawn
from agentd.procs.tree import TOKEN_VARIABLE

PACKAGES = str(Path(agentd.__file__).parent.parent)
"""Where hosts find agentd."""

_LAST_WORDS_S = 3.0
_HELLO_TIMEOUT_S = 10.0
_READ_SIZE = 65_536
TRY_AGAIN_S = 0.5
"""Between two tries to listen where the disk takes no file."""
STOCK_FROM = 2
"""Which host is followed by one in stock: an agentd that starts a second one will start a third."""
REFILL_S = 0.3
"""What a host has for its workers' start, before the next one is put in stock."""
_log = logging.getLogger(__name__)


class HostDoor:
    """Knows the hosts that may dial in; any other is told to end."""

    def __init__(self, state_dir: str, disk: Executor | None = None) -> None:
        """`disk` runs what may hang with a disk."""
        self._state_dir = state_dir
        self._disk = disk
        self._server: asyncio.Server | None = None
        self._name: tuple[int, int] | None = None
        """Device and inode of the socket's name, by which it is told from another one."""
        self._opening = asyncio.Lock()
        self._shut: OSError | None = None
        """Why nobody can dial in."""
        self._trying: asyncio.Task[None] | None = None
        self._expected: dict[str, HostHandle] = {}  # by token
        self._connections: set[asyncio.Task[None]] = set()
        self._stock = HostStock(_command(), _environment(), state_dir)
        self._started = 0
        self._refill: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Listen, or as soon as the disk takes the socket's name. Raises `OSError` for what does not pass."""
        try:
            await self._listen()
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            self._shut = error
            _log.warning("hosts cannot dial in now", extra={"problem": str(error)})
            for handle in self._expected.values():
                handle.expect_nothing()
            self._trying = asyncio.get_running_loop().create_task(self._open_later())

    async def _open_later(self) -> None:
        while self._shut is not None:
            await asyncio.sleep(TRY_AGAIN_S)
            with contextlib.suppress(OSError):
                await self._listen()
                self._shut = None
        for handle in self._expected.values():
            handle.expect_again()

    async def _listen(self) -> None:
        """Whoever holds the state directory's lock owns the socket's name."""
        loop = asyncio.get_running_loop()
        listening, self._name = await loop.run_in_executor(
            self._disk, _bound_below, self._state_dir, SOCKET_NAME
        )
        self._server = await asyncio.start_unix_server(self._serve, sock=listening)

    async def close(self) -> None:
        """Listen no more and hang up on everybody."""
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.wait([self._trying])
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):  # a disk that is read-only by now
                await asyncio.to_thread(Path(self._state_dir, SOCKET_NAME).unlink, missing_ok=True)
        if self._refill is not None:
            self._refill.cancel()
        self._stock.close()
        for handle in self._expected.values():
            handle.expect_nothing()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections, timeout=_LAST_WORDS_S)

    async def start_host(self, spec: HostSpec, group_dir: str, listener: HostListener) -> HostHandle:
        """Start a host that will be welcomed with `spec`. Raises `SpawnError`."""
        if self._shut is not None:
            raise SpawnError(
                self._shut.errno or 0, f"{self._state_dir}/{SOCKET_NAME}", self._shut.strerror or "shut"
            )
        await self._see_to_the_name()
        handle = HostHandle(spec, group_dir, listener, self._forget, self._disk)
        self._expected[spec.token] = handle
        try:
            loop = asyncio.get_running_loop()
            child = await loop.run_in_executor(
                self._disk, _host_of, self._stock, spec, self._state_dir, group_dir
            )
        except BaseException:
            self._forget(spec.token)
            raise
        handle.watch(child)
        self._started += 1
        if self._started >= STOCK_FROM and self._refill is None:
            self._refill = loop.call_later(REFILL_S, self._fill_stock)
        return handle

    def _fill_stock(self) -> None:
        self._refill = None
        asyncio.get_running_loop().run_in_executor(self._disk, self._stock.fill)

    def await_host(
        self, spec: HostSpec, group_dir: str, identity: ProcessIdentity, heard: int, listener: HostListener
    ) -> HostHandle:
        """Take over a host of an earlier agentd, dead or alive, of which the first `heard` reports are known.

        It dials in by itself, before this door is open or after.
        """
        handle = HostHandle(spec, group_dir, listener, self._forget, self._disk)
        self._expected[spec.token] = handle
        handle.take_over(identity, heard)
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
            try:
                await self._listen()
            except OSError as error:
                # Those who are connected stay; a host that is started now could not dial in.
                raise SpawnError(error.errno or 0, f"{self._state_dir}/{SOCKET_NAME}", str(error)) from error
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
        peer_pid, peer_uid = _peer(writer)
        if peer_uid != os.geteuid():
            raise WireError("it belongs to another user")
        frames = FrameReader()
        first = await within(_HELLO_TIMEOUT_S, _first_frames(reader, frames))
        hello = first[0]
        handle = self._expected.get(hello.token) if isinstance(hello, Hello) else None
        if handle is None or not isinstance(hello, Hello) or not handle.is_described_by(hello, peer_pid):
            _log.warning("an unknown host was told to end", extra={"pid": peer_pid})
            writer.write(encode(Refused(reason="this agentd knows no such host")))
            return
        try:
            protocol = agree(hello.protocol, hello.oldest_protocol)
        except NoCommonVersion as error:
            _log.error("a host of another version was told to end: %s", error, extra={"pid": peer_pid})
            writer.write(encode(Refused(reason=str(error))))
            return
        handle.meet(writer, protocol)
        try:
            await handle.catch_up(writer, hello.last_sequence)
            handle.take(writer, first[1:])
            while data := await reader.read(_READ_SIZE):
                handle.take(writer, list(frames.feed(data)))
        finally:
            handle.hang_up(writer)


async def _first_frames(reader: asyncio.StreamReader, frames: FrameReader) -> list[Frame]:
    while True:
        data = await reader.read(_READ_SIZE)
        if not data:
            raise WireError("it hung up before it said who it is")
        if found := list(frames.feed(data)):
            return found


def _command() -> list[str]:
    # -S: a host needs the standard library and agentd, and is there sooner without the site packages.
    return [sys.executable, "-S", "-m", "agentd.host"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": PACKAGES}


def _host_of(stock: HostStock, spec: HostSpec, state_dir: str, group_dir: str) -> Child:
    own = identify(os.getpid())
    assert own is not None
    arguments = [state_dir, group_dir, spec.run_id, str(spec.incarnation), spec.role]
    arguments += [str(own.pid), str(own.start_time)]
    log = _opened_log(group_dir)
    try:
        child = stock.take(spec.token, arguments, log) or spawn(
            [*_command(), *arguments],
            env={**_environment(), TOKEN_VARIABLE: spec.token},
            cwd=group_dir,
            stdout_fd=log,
            stderr_fd=log,
            parent_death_signal=None,
        )
    finally:
        os.close(log)
    # It starts nothing before it is welcomed, so that all of the group is in there.
    if spec.cgroup and not cgroups.enter(spec.cgroup, child.pid):
        _log.warning("a host is not in its cgroup", extra={"pid": child.pid, "cgroup": spec.cgroup})
    return child


def _opened_log(group_dir: str) -> int:
    """What the host writes beside its reports: to nowhere, on a disk that takes no file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(f"{group_dir}/{HOST_LOG}", flags, 0o600)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            problem = error.strerror or str(error)
            raise SpawnError(error.errno or 0, f"{group_dir}/{HOST_LOG}", problem) from error
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


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


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """The process at the other end and its user, as the kernel knows them."""
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return pid, uid
