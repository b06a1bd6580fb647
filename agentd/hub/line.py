"""An agent's line to the hub of its run: a `MemberSession` on an event loop in a thread of its own.

What the agent says goes to the loop, what the hub says comes back through a `Mailbox`; neither side ever
waits for the other, except `close`, for a bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from agentd import __version__
from agentd.api.errors import AgentError, HubUnreachable
from agentd.api.types import RunSpec, RunStatus
from agentd.core.contact import Contact
from agentd.hub.hearing import Word
from agentd.hub.links import ChannelFactory, GrpcHubLink
from agentd.hub.mailbox import Mailbox
from agentd.hub.member import CONNECT_TIMEOUT, FAREWELL_WAIT, MemberSession, NodeIdentity
from agentd.hub.messages import Assignment, MemberWaiting, RunFinished, StopRound
from agentd.hub.opening import Opening, open_run
from agentd.hub.route import address_of_agent
from agentd.quickdata import dataclass

CLOSE_TIMEOUT = FAREWELL_WAIT + CONNECT_TIMEOUT
"""Longest `close` waits for the thread."""

Say: TypeAlias = Callable[[MemberSession], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineEnds:
    """Who speaks with which hub."""

    endpoint: str
    node_id: str
    local_addr: str
    """Where workers here are reached; empty: to be found out."""
    open_timeout: float
    """How long the run may take to be opened."""
    hub_timeout: float
    reattach_window: float
    channel_factory: ChannelFactory


class HubLine:
    """Opens the run, or finds it, and speaks for one member of it until it is closed."""

    def __init__(self, opening: Opening, ends: LineEnds, mailbox: Mailbox[Word]) -> None:
        self._opening = opening
        self._ends = ends
        self._mailbox = mailbox
        self._closing = asyncio.Event()
        self._session: MemberSession | None = None
        self._unsaid: list[Say] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="agentd-hub-line", daemon=True)

    # For the agent's thread.

    def start(self) -> None:
        """Begin to dial."""
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise

    def say(self, word: Say) -> None:
        """Tell the session something, as soon as there is one; nothing once the line is over."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._pass_on, word)

    def close(self) -> bool:
        """End the session once what was said has left, then the thread. Tells whether that was in time."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(CLOSE_TIMEOUT)
        return not self._thread.is_alive()

    # In the thread of the line.

    def _work(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except Exception as error:  # whatever it is, the agent must not wait for ever
            log.exception("the line to the hub failed")
            self._mailbox.put(AgentError(f"the line to hub {self._ends.endpoint} failed: {error!r}"))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _live(self) -> None:
        run = await self._unless_closed(self._open())
        if run is not None:
            self._session = self._make_session(run)
            for word in self._unsaid:
                word(self._session)
            self._session.start()
        await self._closing.wait()
        if self._session is not None:
            await self._session.close()

    async def _open(self) -> RunStatus | None:
        ends = self._ends
        try:
            return await open_run(ends.endpoint, self._opening, ends.channel_factory, ends.open_timeout)
        except AgentError as error:
            self._mailbox.put(error)
            return None

    async def _unless_closed(self, work: Coroutine[Any, Any, RunStatus | None]) -> RunStatus | None:
        doing, closing = asyncio.ensure_future(work), asyncio.ensure_future(self._closing.wait())
        await asyncio.wait([doing, closing], return_when=asyncio.FIRST_COMPLETED)
        for task in (doing, closing):
            task.cancel()
        await asyncio.wait([doing, closing])
        return None if doing.cancelled() else doing.result()

    def _make_session(self, run: RunStatus) -> MemberSession:
        ends, epochs = self._ends, itertools.count(1)
        return MemberSession(
            run_id=run.run_id,
            incarnation=run.incarnation,
            identity=NodeIdentity(
                node_id=ends.node_id,
                agent_uid=secrets.token_hex(16),
                address=address_of_agent(ends.local_addr, ends.endpoint, run.hub_address),
                version=__version__,
            ),
            link=GrpcHubLink(ends.endpoint, ends.channel_factory),
            listener=_Listener(self._mailbox),
            next_epoch=lambda: next(epochs),
            reattach_window=ends.reattach_window,
            hub_timeout=ends.hub_timeout,
        )

    def _pass_on(self, word: Say) -> None:
        if self._session is None:
            self._unsaid.append(word)
        else:
            word(self._session)


class _Listener:
    """Puts what the session hears into the mailbox."""

    def __init__(self, mailbox: Mailbox[Word]) -> None:
        self._mailbox = mailbox

    def on_welcome(self, spec: RunSpec) -> None:
        """What the run is was settled when it was opened."""

    def on_assignment(self, role: str, assignment: Assignment) -> None:
        self._mailbox.put(assignment)

    def on_stop_round(self, round_: int, reason: str) -> None:
        self._mailbox.put(StopRound(round=round_, reason=reason))

    def on_waiting(self, role: str, reason: str) -> None:
        self._mailbox.put(MemberWaiting(role=role, reason=reason))

    def on_finished(self, finished: RunFinished) -> None:
        self._mailbox.put(finished)

    def on_view(self, status: RunStatus) -> None:
        """The agent shows no status."""

    def on_contact(self, contact: Contact) -> None:
        """Agents of the library keep no round file."""

    def on_hub_lost(self, problem: str, since: float) -> None:
        """Workers need no hub; the session dials again, and logs both."""

    def on_hub_found(self) -> None:
        """Nothing had stopped."""

    def on_hub_timeout(self, error: HubUnreachable) -> None:
        self._mailbox.put(error)

    def on_refused(self, error: AgentError) -> None:
        self._mailbox.put(error)
