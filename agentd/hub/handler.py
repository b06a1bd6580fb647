"""The rendezvous of agentd: an agent of the elastic library, in its user's own process, joins a run's hub.

The hub is any agentd, which needs to run no worker of it. It forms the rounds, hands out ranks, counts the
restarts of all agents as one and says when the run is over. Running workers do not need it.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from agentd.api.errors import InvalidSpec
from agentd.api.targets import parse_target
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousClosedError, RendezvousHandler, RendezvousInfo
from agentd.elastic.rendezvous.coordinated import AssignedRendezvousInfo, Verdict, WorkerExit, WorkerStart
from agentd.elastic.utils.ports import RoundPort
from agentd.hub.failures import reported
from agentd.hub.handler_options import HandlerOptions
from agentd.hub.hearing import Hearing, Word
from agentd.hub.mailbox import Mailbox
from agentd.procs.waiter import Waiter

if TYPE_CHECKING:
    from agentd.elastic.agent.server.spec import WorkerSpec
    from agentd.elastic.rendezvous.api import RendezvousParameters
    from agentd.hub.line import HubLine, Say
    from agentd.hub.links import ChannelFactory

__all__ = ["BACKEND", "AgentdRendezvousHandler", "HandlerOptions", "create_handler"]

BACKEND = "agentd"
"""The name of this backend in `RendezvousParameters`."""

log = logging.getLogger(__name__)


def create_handler(parameters: RendezvousParameters) -> AgentdRendezvousHandler:
    """The handler for these parameters: what the entry point "agentd" names.

    `endpoint` is an agentd, as `agentctl --nodes` takes it: `host`, `host:port` or `unix:/path`. It is the
    same for all agents of a run and becomes the run's hub. For the options see `HandlerOptions`; ValueError
    for one that cannot be read.
    """
    return AgentdRendezvousHandler(
        parameters.run_id,
        parameters.endpoint,
        parameters.min_nodes,
        parameters.max_nodes,
        HandlerOptions.read(parameters),
        local_addr=parameters.local_addr,
    )


class AgentdRendezvousHandler(RendezvousHandler):
    """One agent's part in a run whose hub is an agentd. For who calls what see `CoordinatedRendezvous`.

    The first agent opens the run at the hub, the others find it there; one that asks for another size,
    budget or time is refused with the names of the fields that differ. `shutdown` gives everything back;
    without it that is done at the end of the process.
    """

    def __init__(
        self,
        run_id: str,
        endpoint: str,
        min_nodes: int,
        max_nodes: int,
        options: HandlerOptions | None = None,
        *,
        local_addr: str | None = None,
        channel_factory: ChannelFactory | None = None,
    ) -> None:
        """`local_addr` is where workers here are reached, found out if not given.

        `channel_factory(target)` makes the gRPC channels to the hub, for a hub behind TLS; by default they
        are without. ValueError for an endpoint that is no target.
        """
        try:
            self._endpoint = str(parse_target(endpoint))
        except InvalidSpec as error:
            raise ValueError(f"the rendezvous endpoint is an agentd: {error.facts['problem']}") from None
        self._run_id = run_id
        self._sizes = min_nodes, max_nodes
        self._options = options or HandlerOptions()
        self._local_addr = local_addr
        self._channel_factory = channel_factory
        self._role = self._options.role
        self._local_world_size = self._options.local_world_size
        self._max_restarts = self._options.max_restarts
        self._waiter: Waiter | None = None
        self._own_waiter: Waiter | None = None
        self._request_stop: Callable[[float | None], object] = _nobody_to_stop
        self._mailbox: Mailbox[Word] | None = None
        self._line: HubLine | None = None
        self._port = RoundPort()
        self._heard = Hearing(run_id, self._options.node_id)
        self._open_round = 0  # the round that may have processes here
        self._told_to_stop = False  # the agent knows that the round must go, or the run is over
        self._own_failures: dict[int, ProcessFailure] = {}  # of the newest round
        self._log_dirs: dict[int, str] = {}
        self._shut = False

    @property
    def node_id(self) -> str:
        """This agent's name in the run, as `agentctl status` shows it."""
        return self._options.node_id

    # What the agent offers, before anything else.

    def attach(
        self, spec: WorkerSpec, waiter: Waiter, request_stop: Callable[[float | None], object]
    ) -> None:
        """Serve the agent of this spec: wait in its waiter, stop it with the grace of the run's end."""
        self._wait_in(waiter)
        self._request_stop = request_stop
        self._role = self._options.role or spec.role
        self._local_world_size = self._options.local_world_size or spec.local_world_size
        if self._options.max_restarts is None:
            self._max_restarts = spec.max_restarts
        self._local_addr = self._local_addr or spec.local_addr

    # The interface of torch.

    def get_backend(self) -> str:
        """The name `agentd`."""
        return BACKEND

    def get_run_id(self) -> str:
        """The run's id, as the user chose it."""
        return self._run_id

    def is_closed(self) -> bool:
        """Whether the run is over, or this agent has no part in it any more."""
        return self._shut or self._heard.over

    def set_closed(self) -> None:
        """Does nothing: one agent's end is not the end of the run. `agentctl stop` ends it for all."""

    def num_nodes_waiting(self) -> int:
        """1 if the running round must go. Agents beyond `max_nodes` wait unseen."""
        return int(self._heard.must_go)

    def next_rendezvous(self) -> RendezvousInfo:
        """Take a place in the next round, or wait for one as a spare.

        Raises RunEnded when the run is over, RendezvousTimeoutError if too few agents came,
        RendezvousConnectionError if the hub could not be reached for `hub_timeout`, at the first contact for
        a shorter `join_timeout`, RendezvousStateError if the run is there with other parameters,
        RendezvousClosedError after `shutdown`.
        """
        self._raise_if_over(forming=True)
        former = self._heard.round
        self._told_to_stop = False
        self._own_failures, self._log_dirs = {}, {}
        role, size, port = self._member_role, self._member_size, self._port.next()
        self._say(lambda session: session.ready(role, size, port, former))
        self._wait_until(lambda: self._heard.round > former, forming=True)
        place = self._heard.place
        assert place is not None
        self._open_round = place.round
        return AssignedRendezvousInfo(place)

    def shutdown(self) -> bool:
        """Leave the run if it still lives, and give everything back; tells whether that was done in time.

        The others go on without this agent. Takes some seconds at most, and nothing when called again.
        """
        if self._shut:
            return True
        self._shut = True
        if not self._heard.over and self._line is not None:
            self._leave("its rendezvous was shut down", unkillable=self._open_round > 0)
        line, self._line = self._line, None
        ended = line is None or line.close()
        self._wait_in(None)
        mailbox, self._mailbox = self._mailbox, None
        if ended and mailbox is not None:
            mailbox.close()
        if self._own_waiter is not None:
            self._own_waiter.close()
        self._port.close()
        atexit.unregister(self.shutdown)
        return ended

    # What the agent tells and asks beyond it.

    def on_workers_started(self, round: int, workers: Sequence[WorkerStart]) -> None:
        """Remember where their logs are, for the report of a failure."""
        self._log_dirs = {worker.rank: worker.log_dir for worker in workers}

    def on_worker_exit(self, round: int, worker: WorkerExit) -> None:
        """The hub knows of members only; who failed is told by `on_failure`."""

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        """Tell the hub, which decides for all agents: answers RESTART, or raises RunEnded."""
        self._say_failed(round, failures, reason)
        self._wait_until(lambda: self._heard.must_go)
        self._told_to_stop = True
        return Verdict.RESTART

    def on_late_failure(self, round: int, failures: Mapping[int, ProcessFailure]) -> None:
        """Tell the hub, which compares the ages of all failures of the round."""
        self._say_failed(round, failures, "")

    def on_done(self, round: int) -> Verdict:
        """Wait until the workers of all agents succeeded, or a failure elsewhere needs this agent again."""
        role = self._member_role
        self._say(lambda session: session.done(role, round))
        self._wait_until(lambda: self._heard.must_go or self._heard.succeeded)
        if self._heard.succeeded:
            return Verdict.END
        self._told_to_stop = True
        return Verdict.RESTART

    def round_over(self) -> bool:
        """Whether the running round must go; raises RunEnded when the whole run is over."""
        self._hear()
        self._raise_if_over()
        self._told_to_stop = self._told_to_stop or self._heard.must_go
        return self._heard.must_go

    def on_round_gone(self, round: int) -> None:
        """Tell the hub if that was the end of this agent's part; else `next_rendezvous` tells it."""
        self._open_round = 0
        role = self._member_role
        if self.is_closed():
            self._say(lambda session: session.gone(role, round, 0))
        elif not self._told_to_stop:
            # Nobody wanted the round to end but the agent itself, so that it will not come back.
            self._leave("its agent ended", gone=round)

    # What the hub says.

    def _hear(self) -> None:
        before = self._heard.finished
        for word in self._mailbox.take() if self._mailbox is not None else ():
            self._heard.hear(word)
        if self._told_to_stop and self._heard.finished is not before:
            # The agent is stopping its workers already: it may have less time for that from now on.
            self._pass_grace_on()

    def _raise_if_over(self, *, forming: bool = False) -> None:
        if self._shut:
            raise RendezvousClosedError(f"run {self._run_id}: the handler was shut down")
        if not self._heard.over:
            return
        if not self._told_to_stop:
            # Not before: the stop alone would end the agent too, but without the reason and the failures.
            self._pass_grace_on()
        self._told_to_stop = True
        raise self._heard.end(self._own_failures, forming=forming)

    def _pass_grace_on(self) -> None:
        finished = self._heard.finished
        if finished is not None and finished.stop_grace is not None:
            self._request_stop(finished.stop_grace)

    # What is said to the hub.

    def _say(self, word: Say) -> None:
        if self._line is None and not self._shut:
            self._line = self._open_line()
        if self._line is not None:
            self._line.say(word)

    def _say_failed(self, round_: int, failures: Mapping[int, ProcessFailure], reason: str) -> None:
        self._own_failures = dict(failures)
        role, told = self._member_role, reported(failures, self._log_dirs)
        self._say(lambda session: session.failed(role, round_, told, reason))

    def _leave(self, reason: str, *, gone: int = 0, unkillable: bool = False) -> None:
        role, round_ = self._member_role, gone or self._open_round
        stuck = "processes of its round cannot be ended" if unkillable else ""
        self._say(lambda session: session.leave(role, reason))
        if round_:
            self._say(lambda session: session.gone(role, round_, 0, stuck))

    def _open_line(self) -> HubLine:
        # Read by gRPC at its first import; with its handlers a fork of this process could hang.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        from agentd.hub.line import HubLine, LineEnds
        from agentd.hub.links import insecure_channel
        from agentd.hub.opening import Opening

        options = self._options
        opening = Opening(
            run_id=self._run_id,
            roles=options.roles or (self._member_role,),
            rendezvous=options.rendezvous(*self._sizes),
            max_restarts=self._max_restarts or 0,
            max_membership_changes=options.max_membership_changes,
            stop_grace=options.stop_grace,
            **({"request_id": options.request_id} if options.request_id else {}),
        )
        ends = LineEnds(
            endpoint=self._endpoint,
            node_id=options.node_id,
            local_addr=self._local_addr or "",
            open_timeout=options.first_patience,
            hub_timeout=options.patience,
            reattach_window=options.reattach_window,
            channel_factory=self._channel_factory or insecure_channel,
        )
        self._mailbox = Mailbox()
        self._wait_in(self._waiter)
        line = HubLine(opening, ends, self._mailbox)
        line.start()
        atexit.register(self.shutdown)
        return line

    @property
    def _member_role(self) -> str:
        return self._role or "default"

    @property
    def _member_size(self) -> int:
        if self._local_world_size is None:
            raise ValueError(
                "how many workers has this agent? Give the rendezvous option local_world_size, or let an "
                "agent attach its WorkerSpec"
            )
        return self._local_world_size

    # Waiting.

    def _wait_until(self, condition: Callable[[], bool], *, forming: bool = False) -> None:
        """Serve the agent's waiter until the condition holds; raises if the run ends otherwise.

        Bounded by the hub's join_timeout, and by hub_timeout where there is no hub.
        """
        if self._waiter is None:
            self._own_waiter = Waiter()
            self._wait_in(self._own_waiter)
        waiter = self._waiter
        assert waiter is not None
        waiter.wait_until(lambda: condition() or self.is_closed(), None)
        if not condition() or (self._heard.over and not self._heard.succeeded):
            self._raise_if_over(forming=forming)

    def _wait_in(self, waiter: Waiter | None) -> None:
        former, self._waiter = self._waiter, waiter
        if self._mailbox is None:
            return
        if former is not None:
            former.remove(self._mailbox)
        if waiter is not None:
            waiter.add(self._mailbox, self._hear)


def _nobody_to_stop(_grace_s: float | None) -> None:
    """A handler that serves no agent has nothing to hurry."""
