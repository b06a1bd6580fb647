"""The synchronous client: `AgentClient` for one node, `Fleet` for many, `RunHandle` for a run.

Safe to use from several threads. Every call has a deadline; a call that may be repeated is, when its
connection broke. Errors are those of `agentd_client`: types that carry facts and tell the next step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any

from agentd.api.history import Event, EventsRequest
from agentd.api.types import (
    ControllerLease,
    Drain,
    DrainMode,
    DrainReport,
    DrainRequest,
    LogChunk,
    LogsRequest,
    LogStream,
    NodeInfo,
    RunRequest,
    RunSpec,
    RunStatus,
    StopRequest,
    StopScope,
)
from agentd_client.calls import DEFAULT_TIMEOUT_S
from agentd_client.drains import DrainEvent
from agentd_client.drive_sync import SyncDriver
from agentd_client.environment import PassedEnvironment
from agentd_client.follow import PATIENCE_S
from agentd_client.history import DEFAULT_LIMIT
from agentd_client.keeping import LeaseKeeper
from agentd_client.launch import Launched
from agentd_client.nodes import Node, local_node, node_of, some_nodes_of
from agentd_client.report import HistoryItem, LogReceived, PerNode, RunEvent, RunReport, Start, StatusChanged
from agentd_client.surface import AgentPlans, FleetPlans, RunPlans


class _Closing:
    """A context manager that closes its channels."""

    _driver: SyncDriver

    def close(self) -> None:
        """Close the channels. Runs go on."""
        self._driver.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AgentClient(_Closing):
    """One node's agentd, one method for each of its RPCs."""

    def __init__(self, target: str | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """`target`: `unix:/path`, `host` or `host:port`. None: the agentd of this machine and user."""
        node = local_node() if target is None else node_of(target)
        self._plans = AgentPlans(node=node, timeout_s=timeout_s)
        self._driver = SyncDriver()

    def __enter__(self) -> AgentClient:
        return self

    @property
    def target(self) -> str:
        """Where calls go."""
        return self._plans.node.target

    def run(self, request: RunRequest) -> Start:
        """Start this node's part of a run. Repeating the same request changes nothing."""
        return self._driver.run(self._plans.run(request))

    def status(self, run_id: str) -> RunStatus:
        """The run as this node knows it."""
        return self._driver.run(self._plans.status(run_id))

    def list_runs(self, *, include_ended: bool = False) -> tuple[RunStatus, ...]:
        """Every run this node knows."""
        return self._driver.run(self._plans.list_runs(include_ended))

    def watch(
        self, run_id: str = "", *, incarnation: int = 0, after_revision: int = 0
    ) -> Generator[RunStatus, None, Any]:
        """Snapshots as they change, until the node ends the stream; an empty `run_id` watches all runs."""
        return self._driver.iterate(self._plans.watch(run_id, incarnation, after_revision))

    def stop(
        self,
        run_id: str,
        *,
        incarnation: int = 0,
        grace: float | None = None,
        scope: StopScope = StopScope.TERMINATE,
        reason: str = "",
    ) -> RunStatus:
        """Ask for the end of a run, or of this node's part. Answers at once; `watch` tells when it came."""
        request = StopRequest(run_id=run_id, incarnation=incarnation, grace=grace, scope=scope, reason=reason)
        return self._driver.run(self._plans.stop(request))

    def logs(self, request: LogsRequest) -> Generator[LogChunk, None, Any]:
        """Worker output of this node."""
        return self._driver.iterate(self._plans.logs(request))

    def signal(
        self, run_id: str, signum: int, ranks: Sequence[int] = (), *, incarnation: int = 0
    ) -> tuple[int, ...]:
        """Signal workers of this node; gives the ranks that got it. Never repeated by itself."""
        return self._driver.run(self._plans.signal(run_id, signum, ranks, incarnation))

    def get_node(self) -> NodeInfo:
        """Who the node is and how it is."""
        return self._driver.run(self._plans.get_node())

    def handover(self, pid: int) -> int:
        """End the agentd of this pid (see `get_node`), and leave hosts and workers to the next one.

        Gives the pid that answered: another one means that a next agentd is there. Raises `HandoverRefused`
        where workers end with their agentd.
        """
        return self._driver.run(self._plans.handover(pid))

    def drain(
        self,
        *,
        mode: DrainMode = DrainMode.WAIT,
        deadline: float | None = None,
        grace: float | None = None,
        reason: str = "",
    ) -> DrainReport:
        """Have the node take no new run, until `undrain` and whatever becomes of its agentd.

        WAIT lets its runs go on to their end, or for `deadline` seconds; MOVE makes the node leave them at
        once. Answers at once: `get_node` tells what is left. Repeated, it replaces all that was asked before.
        """
        request = DrainRequest(mode=mode, deadline=deadline, grace=grace, reason=reason)
        return self._driver.run(self._plans.drain(request))

    def undrain(self) -> Drain | None:
        """Have the node take runs again; gives what was in force. What has left it does not come back."""
        return self._driver.run(self._plans.undrain())

    def renew_lease(self, run_id: str, *, incarnation: int = 0) -> ControllerLease:
        """Say that somebody looks after a run with a controller lease. Any node of the run passes it on.

        Raises `NoControllerLease`, `RunEnded`.
        """
        return self._driver.run(self._plans.renew_lease(run_id, incarnation))

    def list_events(
        self, run_id: str = "", *, incarnation: int = 0, after_id: int = 0, tail: int = 0
    ) -> tuple[Event, ...]:
        """What happened, oldest first, from the node's journal: to a run or, without one, to all of the node.

        `after_id`: only what came after that event. `tail`: only so many, the newest.
        """
        request = EventsRequest(run_id=run_id, incarnation=incarnation, after_id=after_id, tail=tail)
        return self._driver.run(self._plans.list_events(request))

    def list_ended_runs(self, *, limit: int = DEFAULT_LIMIT) -> tuple[RunStatus, ...]:
        """The runs that ended last, the newest end first, from the node's journal."""
        return self._driver.run(self._plans.list_ended_runs(limit))

    def describe(self, run_id: str, *, incarnation: int = 0) -> tuple[RunStatus, RunSpec]:
        """The run as a whole and its spec. Only its hub answers."""
        return self._driver.run(self._plans.describe(run_id, incarnation))

    def terminate(
        self, run_id: str, *, incarnation: int = 0, grace: float | None = None, reason: str = ""
    ) -> RunStatus:
        """End the run on every node. Only its hub answers."""
        return self._driver.run(self._plans.terminate(run_id, incarnation, grace, reason))

    def health(self, service: str = "") -> str:
        """`SERVING`, `NOT_SERVING` or `UNKNOWN`, by grpc.health.v1."""
        return self._driver.run(self._plans.health(service))


class Fleet(_Closing):
    """Many nodes. What each said stands beside what others failed to say."""

    def __init__(
        self,
        targets: Iterable[str] | Mapping[str, str] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`targets`: a list, or a mapping from names to targets. None: the agentd of this machine and user.

        `patience_s`: how long a run is followed while nobody answers.
        """
        nodes = (local_node(),) if targets is None else some_nodes_of(targets)
        self._plans = FleetPlans(nodes=nodes, timeout_s=timeout_s, patience_s=patience_s)
        self._driver = SyncDriver()

    def __enter__(self) -> Fleet:
        return self

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Names and targets."""
        return self._plans.nodes

    def run(
        self,
        spec: RunSpec,
        *,
        hub: str | None = None,
        request_id: str | None = None,
        environment: PassedEnvironment | Mapping[str, str] | None = None,
    ) -> RunHandle:
        """Start a run on the nodes of its spec, or on all of the fleet if the spec names none.

        `hub`: the node that coordinates; the first by default. `request_id`: give the same one to repeat
        the same wish. `environment`: passed on to the workers; None chooses from this process's own.
        """
        launched = self._driver.run(self._plans.run(spec, hub, request_id, environment))
        return RunHandle(self._driver, self._plans.started(launched))

    def find(self, run_id: str, *, incarnation: int = 0) -> RunHandle:
        """A run that lives or has ended, started by anyone."""
        return RunHandle(self._driver, self._driver.run(self._plans.find(run_id, incarnation)))

    def list_runs(self, *, include_ended: bool = False) -> PerNode[tuple[RunStatus, ...]]:
        """The runs each node knows."""
        return self._driver.run(self._plans.runs(include_ended))

    def list_ended_runs(self, *, limit: int = DEFAULT_LIMIT) -> PerNode[tuple[RunStatus, ...]]:
        """The runs that ended last on each node, the newest end first, from the nodes' journals."""
        return self._driver.run(self._plans.ended_runs(limit))

    def events(
        self, run_id: str = "", *, incarnation: int = 0, tail: int = 0, follow: bool = False
    ) -> Generator[HistoryItem, None, Any]:
        """What happened, by time, from the nodes' journals: to a run or, without one, to all of the nodes.

        `tail`: only so many of each node, the newest. With `follow` also what comes, to the end of the run.
        Problems of nodes stand between the events.
        """
        request = EventsRequest(run_id=run_id, incarnation=incarnation, tail=tail)
        return self._driver.iterate(self._plans.events(request, follow))

    def drain(
        self,
        *,
        mode: DrainMode = DrainMode.WAIT,
        deadline: float | None = None,
        grace: float | None = None,
        reason: str = "",
    ) -> PerNode[DrainReport]:
        """Have all nodes of the fleet take no new run; see `AgentClient.drain`."""
        request = DrainRequest(mode=mode, deadline=deadline, grace=grace, reason=reason)
        return self._driver.run(self._plans.drain(request))

    def undrain(self) -> PerNode[Drain | None]:
        """Have all nodes of the fleet take runs again."""
        return self._driver.run(self._plans.undrain())

    def follow_drain(self) -> Generator[DrainEvent, None, Any]:
        """What is left on each node, as it changes, until all are empty or were given back.

        A node that does not answer for `patience_s` is followed no more.
        """
        return self._driver.iterate(self._plans.follow_drain())

    def get_nodes(self) -> PerNode[NodeInfo]:
        """Who the nodes are and how they are."""
        return self._driver.run(self._plans.get_nodes())


class RunHandle:
    """A run. Needs no closing: it uses its fleet's channels."""

    def __init__(self, driver: SyncDriver, plans: RunPlans) -> None:
        self._driver = driver
        self._plans = plans

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._plans.place.run_id

    @property
    def incarnation(self) -> int:
        """Which use of the id this is."""
        return self._plans.place.incarnation

    @property
    def launched(self) -> Launched | None:
        """How each node took the run. None where the run was found, not started, here."""
        return self._plans.launched

    def status(self) -> RunReport:
        """The run by its hub and all its nodes."""
        return self._driver.run(self._plans.status())

    def watch(self) -> Generator[RunStatus, None, Any]:
        """Snapshots as they change, over broken streams, to the end of the run."""
        with closing(self.follow()) as events:
            for event in events:
                if isinstance(event, StatusChanged):
                    yield event.status

    def follow(self, *, logs: LogsRequest | None = None) -> Generator[RunEvent, None, Any]:
        """All that happens to the run, to its end: snapshots, output if asked for, problems of nodes."""
        return self._driver.iterate(self._plans.follow(logs, None))

    def logs(
        self,
        *,
        ranks: Sequence[int] = (),
        streams: Sequence[LogStream] = (),
        tail_lines: int | None = None,
        follow: bool = False,
        all_rounds: bool = False,
        role: str = "",
    ) -> Generator[LogChunk, None, Any]:
        """Worker output of all nodes; with `follow` also what comes, to the end of the run."""
        request = LogsRequest(
            run_id=self.run_id,
            ranks=tuple(ranks),
            streams=tuple(streams),
            tail_lines=tail_lines,
            follow=follow,
            all_rounds=all_rounds,
            role=role,
        )
        with closing(self.log_events(request)) as events:
            for event in events:
                if isinstance(event, LogReceived):
                    yield event.chunk

    def log_events(self, request: LogsRequest) -> Generator[RunEvent, None, Any]:
        """Like `logs`, with the problems of nodes beside the output."""
        plan = self._plans.follow(request, None) if request.follow else self._plans.read_logs(request)
        return self._driver.iterate(plan)

    def events(self, *, tail: int = 0, follow: bool = False) -> Generator[HistoryItem, None, Any]:
        """What happened to the run, by time, from the journals of all its nodes; see `Fleet.events`."""
        return self._driver.iterate(self._plans.events(tail, follow))

    def wait(self, timeout_s: float | None = None) -> RunReport:
        """The run's end. Raises `StillRunning` when it has not come in time."""
        return self._driver.run(self._plans.follow(None, timeout_s))

    def stop(self, *, grace: float | None = None, reason: str = "") -> RunReport:
        """Ask for the end on every node. Answers at once; `wait` tells when it came."""
        return self._driver.run(self._plans.stop(grace, reason))

    def renew_lease(self) -> ControllerLease:
        """Say that somebody looks after the run. Raises `NoControllerLease`, `RunEnded`."""
        return self._driver.run(self._plans.renew_lease())

    def keep_lease(self) -> LeaseKeeper:
        """A context manager that renews the run's controller lease while its block runs."""
        return LeaseKeeper(self.run_id, self.renew_lease)

    def join(
        self,
        targets: Iterable[str],
        *,
        environment: PassedEnvironment | Mapping[str, str] | None = None,
    ) -> PerNode[Start]:
        """Add nodes to the live run."""
        return self._driver.run(self._plans.join(targets, environment))

    def leave(
        self, nodes: Iterable[str], *, grace: float | None = None, reason: str = ""
    ) -> PerNode[RunStatus]:
        """Take nodes out; the others go on."""
        return self._driver.run(self._plans.leave(nodes, grace, reason))

    def signal(self, signum: int, ranks: Sequence[int] = ()) -> PerNode[tuple[int, ...]]:
        """Signal workers, all or those of `ranks`; gives the ranks that got it, by node."""
        return self._driver.run(self._plans.signal(signum, ranks))


__all__ = ["AgentClient", "Fleet", "RunHandle"]
