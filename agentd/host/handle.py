"""One host as agentd knows it: what it says is heard once and in order, whichever agentd it began under.

A report comes over the socket, or is read from `host.jsonl` if it was made while nobody listened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Protocol

from agentd.api.patience import within
from agentd.core.contact import Contact
from agentd.host.hostlog import last_line
from agentd.host.reports import read_reports
from agentd.host.wire import (
    VERSION,
    AgentFrame,
    Frame,
    Hello,
    HostSpec,
    HubContact,
    ReportFrame,
    Welcome,
    encode,
    since,
)
from agentd.procs.exits import ExitInfo, peek_exit
from agentd.procs.identity import ProcessIdentity, is_alive, send_signal
from agentd.procs.pidfd import open_process
from agentd.procs.spawn import Child

MEET_TIMEOUT_S = 20.0
"""A host that has not dialled in by then is ended; it gives up by itself before."""
REDIAL_TIMEOUT_S = 10.0
"""A host that was met, by this agentd or an earlier one, dials again each 100 ms: one that does not hangs."""
LAST_WORDS_S = 2.0
"""How long the frames of a host that has ended are waited for."""
CATCH_UP_S = 30.0
"""How long a disk may take to give what a host reported meanwhile."""

UNREAD_CONTACTS = 16 * 1024
"""Bytes a host may leave unread until it is told no more of the hub's answers."""

_POLL_S = 0.02


class HostListener(Protocol):
    """Hears one host. Called on the event loop; must not block."""

    def on_host_frame(self, frame: ReportFrame) -> None:
        """The host reports. Each report comes once, in the order of their numbers."""

    def on_host_met(self) -> None:
        """It has dialled in again, and all it said meanwhile was heard: what it was told last may be lost."""

    def on_host_exit(self, reason: str) -> None:
        """The host process is gone, and all it said was heard."""


class HostHandle:
    """One host process as agentd knows it."""

    def __init__(
        self,
        spec: HostSpec,
        group_dir: str,
        listener: HostListener,
        forget: Callable[[str], None],
        disk: Executor | None = None,
    ) -> None:
        self._spec = spec
        self._group_dir = group_dir
        self._listener = listener
        self._forget = forget
        self._disk = disk
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: deque[AgentFrame] = deque()
        self._contact: Contact | None = None
        self._protocol = 1
        """The version that is spoken with it, once it has said hello."""
        self._admitted = False
        self._heard: int | None = None
        """The last report that was passed on. None: it was never met, and has reported nothing."""
        self._process: _Process | None = None
        self._pidfd: int | None = None
        self._exit: ExitInfo | None = None
        self._ending: asyncio.Task[None] | None = None
        self._over = False
        self._expected = True
        """Whether there is a door for it."""
        self._patience: asyncio.TimerHandle | None = None
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def token(self) -> str:
        """What marks the host and everything it starts."""
        return self._spec.token

    @property
    def identity(self) -> ProcessIdentity | None:
        """The process; None while it is being started."""
        return self._process.identity if self._process else None

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

    def tell_contact(self, contact: Contact) -> None:
        """Tell the host how it stands with the hub. What it does not read is left out."""
        self._contact = contact
        writer = self._writer
        if self._over or not self._admitted or writer is None or self._unsent:
            return
        if writer.transport.get_write_buffer_size() <= UNREAD_CONTACTS:
            self._unsent.append(HubContact(contact=contact))
            self._flush()

    def admit(self) -> None:
        """The host is journalled: welcome it as soon as it dials in, or now. It starts nothing before."""
        self._admitted = True
        if self._writer is not None:
            self._welcome()

    def kill(self) -> None:
        """SIGKILL. Its workers die with it."""
        if self._process is not None and self._exit is None:
            send_signal(self._process.identity, signal.SIGKILL)

    def abandon(self) -> None:
        """Hear of it no more, although it may still be there."""
        self._unwatch()
        self._let_go()
        if self._ending is not None:
            self._ending.cancel()

    # Its process.

    def watch(self, child: Child) -> None:
        """This agentd has started it: notice its end."""
        self._watch(_OwnChild(child))
        self._be_patient(MEET_TIMEOUT_S)

    def take_over(self, identity: ProcessIdentity, heard: int) -> None:
        """An earlier agentd started and welcomed it; its first `heard` reports are known."""
        self._heard, self._admitted = heard, True
        self._watch(_AnothersChild(identity))
        self._be_patient(REDIAL_TIMEOUT_S)

    def expect_nothing(self) -> None:
        """Nobody listens any more: that it does not dial in says nothing about it."""
        self._expected = False
        self._be_patient(None)

    def expect_again(self) -> None:
        """There is a door now."""
        self._expected = True
        if self._writer is None and self._process is not None and self._exit is None:
            self._be_patient(REDIAL_TIMEOUT_S)

    def _watch(self, process: _Process) -> None:
        self._process = process
        try:
            self._pidfd = open_process(process.identity)
        except ProcessLookupError:
            self._loop.call_soon(self._look)
            return
        if self._pidfd is None:
            self._poll()
        else:
            self._loop.add_reader(self._pidfd, self._look)

    def _poll(self) -> None:
        """For sandboxes that forbid pidfd_open."""
        self._look()
        if self._exit is None:
            self._timers.append(self._loop.call_later(_POLL_S, self._poll))

    def _look(self) -> None:
        assert self._process is not None
        if self._over or self._exit is not None:
            return
        self._exit = self._process.peek()
        if self._exit is None:
            return
        self._unwatch()
        self._process.reap()
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

    # Its connection.

    def is_described_by(self, hello: Hello, peer_pid: int) -> bool:
        """Whether it is this very host that dialled in; `peer_pid` as the kernel knows it."""
        spec = self._spec
        told = (hello.run_id, hello.incarnation, hello.role)
        known = self.identity is None or self.identity == ProcessIdentity(hello.pid, hello.start_time)
        return known and peer_pid == hello.pid and told == (spec.run_id, spec.incarnation, spec.role)

    def meet(self, writer: asyncio.StreamWriter, protocol: int) -> None:
        """It has dialled in and understands frames of `protocol`; later ones it is not sent.

        Of two connections the later one counts: the other's end is not yet seen.
        """
        former, self._writer = self._writer, writer
        self._protocol = protocol
        if former is not None:
            former.close()
        self._be_patient(None)
        if self._admitted:
            self._welcome()

    async def catch_up(self, writer: asyncio.StreamWriter, last_sequence: int) -> None:
        """Pass on what it reported while it had no connection. Raises `OSError`, `asyncio.TimeoutError`."""
        if self._heard is None:
            # What is there is of earlier hosts: this one waits for its welcome.
            self._heard = last_sequence
            return
        await within(CATCH_UP_S, self._read_on())
        # What a full disk did not take is lost; what comes next has higher numbers.
        self._heard = max(self._heard, last_sequence)
        if self._writer is writer and not self._over:
            self._listener.on_host_met()

    def take(self, writer: asyncio.StreamWriter, frames: list[Frame]) -> None:
        """Pass on what it reports over its newest connection."""
        if self._writer is writer:
            self._pass_on(frame for frame in frames if isinstance(frame, ReportFrame))

    def hang_up(self, writer: asyncio.StreamWriter) -> None:
        """A connection has ended; all that was said over it was heard."""
        if self._writer is not writer:
            return
        self._writer = None
        if self._exit is not None:
            self._end()
        else:
            self._be_patient(REDIAL_TIMEOUT_S)

    def _welcome(self) -> None:
        if self._contact is not None:
            # A place among what waits is not to be read without it.
            self._unsent.appendleft(HubContact(contact=self._contact))
        self._unsent.appendleft(Welcome(spec=self._spec, protocol=VERSION))
        self._flush()

    def _flush(self) -> None:
        while self._unsent and self._admitted and self._writer is not None:
            frame = self._unsent.popleft()
            if since(frame) <= self._protocol:
                self._writer.write(encode(frame))

    def _be_patient(self, seconds: float | None) -> None:
        """Wait that long for the host to dial in; None: it is here, or cannot."""
        if self._patience is not None:
            self._patience.cancel()
        if seconds is None or self._over or not self._expected:
            self._patience = None
        else:
            self._patience = self._loop.call_later(seconds, self.kill)

    async def _read_on(self) -> None:
        heard = self._heard or 0
        self._pass_on(await self._loop.run_in_executor(self._disk, read_reports, self._group_dir, heard))

    def _pass_on(self, reports: Iterable[ReportFrame]) -> None:
        for report in reports:
            if self._heard is not None and report.sequence > self._heard:
                self._heard = report.sequence
                self._listener.on_host_frame(report)

    # Its end.

    def _end(self) -> None:
        if not self._over and self._ending is None:
            self._ending = self._loop.create_task(self._hear_last_words())

    async def _hear_last_words(self) -> None:
        if self._heard is not None and self._expected:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await within(LAST_WORDS_S, self._read_on())
        reason = await self._cause_of_death()
        self._let_go()
        self._listener.on_host_exit(reason)

    async def _cause_of_death(self) -> str:
        """How it ended; of one that could not go on, also what it wrote of that."""
        assert self._exit is not None
        words = ""
        if self._exit.exit_code and self._expected:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                reading = self._loop.run_in_executor(self._disk, last_line, self._group_dir)
                words = await within(LAST_WORDS_S, reading)
        return f"{self._exit.summary}: {words}" if words else self._exit.summary

    def _let_go(self) -> None:
        self._over = True
        self._be_patient(None)
        for timer in self._timers:
            timer.cancel()
        self._forget(self._spec.token)
        if self._writer is not None:
            self._writer.close()


class _Process(Protocol):
    """How the end of a host is seen."""

    @property
    def identity(self) -> ProcessIdentity: ...

    def peek(self) -> ExitInfo | None: ...

    def reap(self) -> None: ...


class _OwnChild:
    def __init__(self, child: Child) -> None:
        self._child = child
        self.identity = child.identity

    def peek(self) -> ExitInfo | None:
        return peek_exit(self._child.pid)

    def reap(self) -> None:
        self._child.reap()


class _AnothersChild:
    """How it ended only its parent of now could tell; its reports say what matters."""

    def __init__(self, identity: ProcessIdentity) -> None:
        self.identity = identity

    def peek(self) -> ExitInfo | None:
        return None if is_alive(self.identity) else ExitInfo(None, None)

    def reap(self) -> None:
        """Whoever is its parent now does."""
