"""A node's session with the hub of a run: says what its members do, hears what they are to do.

It outlives streams. When one breaks it dials again, tells the hub what its members have, and repeats what was
not answered. Running workers need no hub; how long a member that needs one waits is `hub_timeout`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

from agentd.api.errors import AgentError, Code, HubUnreachable, Unreachable
from agentd.api.patience import within
from agentd.api.types import Failure
from agentd.core import defaults
from agentd.core.moments import utc
from agentd.hub.away import HubAway
from agentd.hub.contacts import Contacts
from agentd.hub.links import HubLink, HubStream
from agentd.hub.listener import MemberListener
from agentd.hub.memberbook import MemberBook
from agentd.hub.messages import (
    Assignment,
    HubLeaving,
    HubMessage,
    MemberMessage,
    MemberState,
    MemberWaiting,
    NodeMessage,
    RunFinished,
    RunView,
    SessionHeartbeat,
    SessionHeartbeatAnswer,
    SessionHello,
    SessionWelcome,
    StopRound,
)
from agentd.hub.observer import Ear
from agentd.procs.boottime import boottime
from agentd.quickdata import dataclass

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
WELCOME_TIMEOUT = 15.0
"""Longest wait for the first word on a stream that stands: the hub may have thousands to welcome, and each
that gives up and comes again makes it more."""
FAREWELL_WAIT = 2.0
"""Longest `close` waits until what was said has left."""

_FINAL = frozenset(
    {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED}
)
"""Refusals that another try does not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Who this node is in its hellos."""

    node_id: str
    agent_uid: str
    address: str = ""
    node_name: str = ""
    version: str = ""


class MemberSession:
    """All members of this node in one run. Methods are for the event loop's thread and never wait."""

    def __init__(
        self,
        *,
        run_id: str,
        incarnation: int,
        identity: NodeIdentity,
        link: HubLink,
        listener: MemberListener,
        next_epoch: Callable[[], int],
        reattach_window: float = defaults.LEASE,
        hub_timeout: float = defaults.HUB_TIMEOUT,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`uniform` draws the part of a pause between two tries that is really waited."""
        self._run_id = run_id
        self._incarnation = incarnation
        self._identity = identity
        self._link = link
        self._listener = listener
        self._next_epoch = next_epoch
        self._reattach_window = reattach_window
        self._uniform = uniform
        self._away = HubAway(hub_timeout, uniform)
        self._book = MemberBook()
        self._contacts = Contacts(reattach_window)
        self._stop_grace = defaults.STOP_GRACE
        self._heartbeat = defaults.HEARTBEAT
        self._lease = defaults.LEASE
        self._beats = 0
        self._outbox: deque[NodeMessage] = deque()
        self._to_say = asyncio.Event()
        self._connected = False
        self._welcomed = False
        self._finished = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    # --- what the node says -----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to dial. What is said before is kept."""
        if self._task is None and not self._closing:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def resume(self, state: MemberState, restart_count: int = 0) -> None:
        """Speak for a member as another agentd of this node left it. Right after `start`, before any word.

        `restart_count`: of the run, as its newest place said.
        """
        self._book.resume(state)
        self._book.hear_place(restart_count)

    def ready(self, role: str, local_world_size: int, master_port: int, round_: int) -> None:
        """None of the member's workers run; it wants a place, and holds a port for rank 0.

        `round_` is the newest of which `on_assignment` has reached the caller, 0 if none: a newer one may be
        on its way from here to there.
        """
        self._say(self._book.ready(role, local_world_size, master_port, round_))

    def gone(self, role: str, round_: int, master_port: int, unkillable: str = "") -> None:
        """Nothing of the round runs here. Port 0: the member wants no other place."""
        self._say(self._book.gone(role, round_, master_port, unkillable))

    def failed(
        self, role: str, round_: int, failures: Sequence[tuple[Failure, float]], reason: str = ""
    ) -> None:
        """Workers failed (each with its age in seconds now), or the group itself cannot go on."""
        self._say(self._book.failed(role, round_, failures, reason, _now()))

    def done(self, role: str, round_: int) -> None:
        """All workers of the member succeeded."""
        self._say(self._book.done(role, round_))

    def leave(self, role: str, reason: str = "", *, failed: bool = False) -> None:
        """The member leaves the run. Say `gone` once nothing of it runs: others wait for that.

        `failed`: nobody asked it to, it cannot take part.
        """
        self._say(self._book.leave(role, reason, failed=failed))

    async def close(self) -> None:
        """End the session, after what was said has left or a short while. Nothing of the run may run here."""
        self._closing = True
        task, self._task = self._task, None
        if task is None:
            return
        if self._connected:
            self._to_say.set()
            await asyncio.wait([task], timeout=FAREWELL_WAIT)
        task.cancel()
        await asyncio.wait([task])

    async def wait_over(self) -> None:
        """Return once the session is over: the run ended and its last word was heard, or it was refused."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _say(self, message: MemberMessage | None) -> None:
        if message is not None and self._connected:
            self._put(message)

    def _put(self, message: NodeMessage) -> None:
        self._outbox.append(message)
        self._to_say.set()

    # --- streams ----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._one_stream()
                problem = "the hub ended the stream"
            except StopAsyncIteration:
                problem = "the hub ended the stream without a word"
            except asyncio.TimeoutError:
                problem = "no answer in time"
            except AgentError as error:
                # Without the advice of the error: whoever tells of the hub has its own.
                problem = error.facts.get("problem") or str(error)
                if self._is_refusal(error) and not self._over():
                    self._refused(error)
                    return
            if self._over():
                return
            self._stream_lost(problem)
            if self._waited_too_long(problem):
                return
            await asyncio.sleep(self._away.pause())

    def _is_refusal(self, error: AgentError) -> bool:
        if error.code not in _FINAL or self._away.may_yet_take_us(error, _now()):
            return False
        # The hub that took this node knows the call: where it is not known, a stranger has the hub's port.
        return not (self._welcomed and error.code is Code.UNIMPLEMENTED)

    def _over(self) -> bool:
        return self._finished or self._closing

    async def _one_stream(self) -> None:
        self._contacts.dialled(boottime())
        hello = SessionHello(
            run_id=self._run_id,
            incarnation=self._incarnation,
            node_id=self._identity.node_id,
            agent_uid=self._identity.agent_uid,
            session_epoch=self._next_epoch(),
            address=self._identity.address,
            node_name=self._identity.node_name,
            members=self._book.states(),
            reattach_window=self._reattach_window,
            version=self._identity.version,
            restart_count=self._book.restart_count,
            membership_changes=self._book.membership_changes,
            failure_counted=self._book.failure_counted,
        )
        stream = await within(CONNECT_TIMEOUT, self._link.connect(hello))
        try:
            self._hear(await within(WELCOME_TIMEOUT, stream.__anext__()))
            await self._talk(stream)
        finally:
            self._connected = False
            await stream.close()

    def _be_welcome(self, welcome: SessionWelcome) -> None:
        self._heartbeat, self._lease = welcome.heartbeat, welcome.lease
        grace = welcome.spec.stop_grace
        self._stop_grace = defaults.STOP_GRACE if grace is None else grace
        self._contacts.welcomed(welcome.lease)
        self._connected = True
        was_lost = self._away.found()
        self._outbox.clear()
        for message in self._book.unanswered(_now()):
            self._put(message)
        if not self._welcomed:
            self._welcomed = True
            self._tell(self._listener.on_welcome, welcome.spec)
        if was_lost:
            self._tell(self._listener.on_hub_found)

    async def _talk(self, stream: HubStream) -> None:
        """Speak, listen and count the hub's silence, until one of the three is over."""
        loop = asyncio.get_running_loop()
        ear = Ear(_now(), self._heartbeat)
        doing = [
            loop.create_task(self._listen(stream, ear)),
            loop.create_task(self._speak(stream)),
            loop.create_task(self._keep_alive(ear)),
        ]
        try:
            done, _ = await asyncio.wait(doing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in doing:
                task.cancel()
            await asyncio.wait(doing)
            self._outbox.clear()
        try:
            # In their order, not in that of a set: the same history is told in the same words each time.
            for task in doing:
                if task in done:
                    task.result()
        finally:
            # As in `within`: the error must not hold itself, and the stream with it.
            del task
            doing.clear()
            done.clear()

    async def _listen(self, stream: HubStream, ear: Ear) -> None:
        late: list[Assignment] = []
        async for message in stream:
            ear.heard(_now())
            if isinstance(message, HubLeaving):
                raise Unreachable(self._link.address, message.reason)
            if isinstance(message, Assignment) and self._contacts.lapsed(boottime()):
                # It lay unread, here or in the hub's queue. A hub that has counted this node out meanwhile
                # has ended the stream: one that answers on it has not.
                late.append(message)
                self._beat()
                continue
            self._hear(message)
            if self._finished:
                late.clear()
            elif late and not self._contacts.lapsed(boottime()):
                for place in late:
                    self._hear(place)
                late.clear()

    async def _speak(self, stream: HubStream) -> None:
        while True:
            while self._outbox:
                await stream.send(self._outbox.popleft())
            if self._closing:
                await stream.finish()
                return
            self._to_say.clear()
            await self._to_say.wait()

    async def _keep_alive(self, ear: Ear) -> None:
        if not self._book.runs_any:
            # Its hello was one. A thousand nodes that join together shall not beat together.
            await asyncio.sleep(self._heartbeat * self._uniform(0.5, 1.0))
        while ear.silence(_now()) <= self._lease:
            self._beat()
            await asyncio.sleep(self._heartbeat)
        raise Unreachable(self._link.address, f"no answer for {self._lease:g} s")

    def _beat(self) -> None:
        self._beats += 1
        self._contacts.sent(self._beats, boottime())
        self._put(SessionHeartbeat(sequence=self._beats))

    def _hear(self, message: HubMessage) -> None:
        self._away.heard(_now())
        self._note_contact(message)
        match message:
            case SessionWelcome():
                # The first word of most hubs, but not of all: until it comes nothing is said here.
                self._be_welcome(message)
            case Assignment():
                if self._book.assigned(message):
                    self._tell(self._listener.on_assignment, message.role, message)
            case StopRound(round=round_, reason=reason):
                answers, act = self._book.stop(message)
                for answer in answers:
                    self._say(answer)
                if act:
                    self._tell(self._listener.on_stop_round, round_, reason)
            case MemberWaiting(role=role, reason=reason):
                self._tell(self._listener.on_waiting, role, reason)
            case RunFinished():
                self._finished = True
                self._book.finish()
                self._tell(self._listener.on_finished, message)
            case RunView(status=status):
                self._book.hear_view(status)
                self._tell(self._listener.on_view, status)

    def _note_contact(self, message: HubMessage) -> None:
        contacts, now = self._contacts, boottime()
        match message:
            case SessionHeartbeatAnswer(sequence=sequence):
                contact = contacts.answered(sequence, now)
            case Assignment(round=round_):
                contact = contacts.placed(round_, now)
            case StopRound(round=round_):
                contact = contacts.stopped(round_, self._stop_grace, now)
            case RunFinished(stop_grace=grace):
                contact = contacts.finished(self._stop_grace if grace is None else grace, now)
            case _:
                return
        if contact is not None:
            self._tell(self._listener.on_contact, contact)

    # --- a hub that is not there --------------------------------------------------------------------------

    def _stream_lost(self, problem: str) -> None:
        if self._away.lost():
            log.warning("hub lost", extra={**self._who(), "problem": problem})
            self._tell(self._listener.on_hub_lost, problem, time.time() - self._away.silence(_now()))

    def _waited_too_long(self, problem: str) -> bool:
        now = _now()
        waited = self._away.waited_in_vain(now, needed=self._book.needs_hub)
        if waited is None:
            return False
        since = utc(time.time() - (self._away.silence(now) or waited))
        self._tell(self._listener.on_hub_timeout, HubUnreachable(self._link.address, since, problem))
        return True

    def _refused(self, error: AgentError) -> None:
        log.warning("hub refused the node", extra={**self._who(), "problem": str(error)})
        self._tell(self._listener.on_refused, error)

    def _tell(self, callback: Callable[..., None], *facts: object) -> None:
        try:
            callback(*facts)
        except Exception:
            # A fault of the listener must not cost the node its session.
            log.exception("listener failed", extra=self._who())

    def _who(self) -> dict[str, object]:
        return {"run_id": self._run_id, "incarnation": self._incarnation, "hub": self._link.address}


def _now() -> float:
    return asyncio.get_running_loop().time()
