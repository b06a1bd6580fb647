"""A host's life: meet agentd, run the elastic agent, say how it ended. One thread, one `Waiter`."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping

from agentd.api.states import Phase
from agentd.core.contact import NO_CONTACT
from agentd.elastic import events
from agentd.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from agentd.elastic.agent.server.spec import WorkerSpec
from agentd.elastic.multiprocessing import RoundLogsSpecs, SignalException
from agentd.host.link import AgentLink
from agentd.host.recorded import JournalHandler
from agentd.host.rendezvous import HostRendezvous
from agentd.host.reports import ReportLog
from agentd.host.roundfile import ROUND_FILE
from agentd.host.wire import (
    OLDEST,
    VERSION,
    AgentFrame,
    Assigned,
    Ended,
    FinishHost,
    Hello,
    HostSpec,
    HubContact,
    Refused,
    ReportFrame,
    SignalWorkers,
    StopRound,
    Unkillable,
    Welcome,
)
from agentd.procs.crew import UnkillableWorkers
from agentd.procs.identity import ProcessIdentity, boot_id, identify
from agentd.procs.pidfd import open_process
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

MEET_TIMEOUT_S = 10.0
"""A host that nobody answers ends before it starts anything."""
FAREWELL_TIMEOUT_S = 2.0
LAST_WORDS_S = 7 * 86400.0
"""How long a host whose workers are gone waits for a disk or an agentd that takes its last reports."""
JOURNAL = "journal"
"""The event handler that leads to agentd's journal."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a host is told when it is started."""

    state_dir: str
    group_dir: str
    run_id: str
    incarnation: int
    role: str
    token: str
    parent: ProcessIdentity
    """The agentd that started it."""


class NotMet(Exception):
    """No agentd took this host on."""


class HostSession:
    """One group's host from its start to its end."""

    def __init__(self, birth: Birth, waiter: Waiter) -> None:
        self._birth = birth
        self._waiter = waiter
        self._parent_fd = _open_process(birth.parent)
        self._reports = ReportLog(birth.group_dir)
        self._link = AgentLink(
            waiter,
            birth.state_dir,
            self._hello,
            self._on_frame,
            self._on_lost,
            lambda: self._reports.unwritten,
        )
        self._spec: HostSpec | None = None
        self._refusal = ""
        self._contact = NO_CONTACT
        self._finish: FinishHost | None = None
        self._rendezvous: HostRendezvous | None = None
        self._agent: LocalElasticAgent | None = None
        events.register(JOURNAL, JournalHandler(self._report), replace=True)
        waiter.add_pump(self._reports.pump)
        if self._parent_fd is not None:
            waiter.add(self._parent_fd, self._on_parent_gone)

    def run(self) -> None:
        """Meet agentd and run the group to its end. Raises `NotMet`."""
        spec = self._meet()
        ended = self._run_group(spec)
        if ended is not None:
            self._report(ended)
        if spec.mode == "keep":
            self._keep_last_words()
        self._link.leave(FAREWELL_TIMEOUT_S)

    def close(self) -> None:
        """Give everything back."""
        events.register(JOURNAL, logging.NullHandler, replace=True)
        self._link.close()
        self._unwatch_parent()
        if self._rendezvous is not None:
            self._rendezvous.shutdown()
        self._waiter.remove_pump(self._reports.pump)
        self._reports.close()

    def _keep_last_words(self) -> None:
        """Without agentd and without a disk, how it ended is known here only."""
        deadline = time.monotonic() + LAST_WORDS_S
        self._waiter.wait_until(lambda: self._link.connected or not self._reports.unwritten, deadline)

    def _meet(self) -> HostSpec:
        deadline = time.monotonic() + MEET_TIMEOUT_S
        self._waiter.wait_until(lambda: self._spec is not None or bool(self._refusal), deadline)
        if self._spec is None:
            raise NotMet(self._refusal or f"no agentd answered in {MEET_TIMEOUT_S:g} s: {self._link.problem}")
        return self._spec

    def _run_group(self, spec: HostSpec) -> Ended | None:
        """The last report; none if the workers are done, which was reported already."""
        agent = self._make_agent(spec)
        if self._finish is not None:
            agent.request_stop(self._finish.grace_s)
        try:
            result = agent.run(spec.role)
        except SignalException as stop:
            return self._ended(Phase.STOPPED, f"the host got {signal.Signals(stop.sigval).name}")
        except UnkillableWorkers as stuck:
            round_ = agent.get_worker_group().round
            self._report(Unkillable(round=round_, pids=stuck.pids, wait_channels=stuck.wait_channels))
            return self._ended(Phase.LOST, str(stuck))
        except Exception as error:  # noqa: BLE001 - whatever it is, agentd and the operator must hear of it
            with contextlib.suppress(OSError):  # its log may be on the very disk that is full
                traceback.print_exc()
            return Ended(state=Phase.FAILED.value, reason=f"{type(error).__name__}: {error}")
        if result.state.name == "SUCCEEDED":
            return None
        return self._ended(Phase.FAILED, result.reason)

    def _make_agent(self, spec: HostSpec) -> LocalElasticAgent:
        group_dir = self._birth.group_dir
        rendezvous = HostRendezvous(spec, group_dir, self._waiter, self._report, self._contact)
        self._rendezvous = rendezvous
        worker_spec = WorkerSpec(
            role=spec.role,
            local_world_size=spec.local_world_size,
            rdzv_handler=rendezvous,
            entrypoint=spec.argv[0],
            args=spec.argv[1:],
            max_restarts=spec.max_restarts,
            monitor_interval=spec.monitor_interval_s,
            event_log_handler=JOURNAL,
            master_addr=spec.master_addr or None,
            master_port=spec.master_port or None,
            preload=spec.preload,
            standby=spec.standby,
        )
        self._agent = LocalElasticAgent(
            worker_spec,
            RoundLogsSpecs(spec.log_root),
            shutdown_timeout=spec.stop_grace_s,
            waiter=self._waiter,
            signals=_STOP_SIGNALS,
            base_env=_worker_env(spec, group_dir),
            cwd=spec.cwd,
            token=spec.token,
            cgroup=spec.cgroup,
            owns_descendants=True,
        )
        agent = self._agent
        rendezvous.preload_problem = lambda: agent.preload_problem
        return agent

    def _hello(self) -> Hello:
        own = identify(os.getpid())
        assert own is not None
        return Hello(
            run_id=self._birth.run_id,
            incarnation=self._birth.incarnation,
            role=self._birth.role,
            token=self._birth.token,
            pid=own.pid,
            start_time=own.start_time,
            boot_id=boot_id(),
            # What it does not know of the others it reads there; these come over the socket.
            last_sequence=self._reports.written_sequence,
            protocol=VERSION,
            oldest_protocol=OLDEST,
        )

    def _report(self, report: ReportFrame) -> None:
        self._link.send(self._reports.append(report))

    def _on_frame(self, frame: AgentFrame) -> None:
        if isinstance(frame, Welcome):
            # Said again after each redial; what the group is does not change while it lives.
            self._spec = self._spec or frame.spec
            self._link.protocol = min(frame.protocol, VERSION)
        elif isinstance(frame, Refused):
            self._refusal = frame.reason
            self._stop_alone(frame.reason)
        elif isinstance(frame, FinishHost):
            self._stop(frame)
        elif isinstance(frame, HubContact):
            self._contact = frame.contact
            if self._rendezvous is not None:
                self._rendezvous.on_contact(frame.contact)
        elif self._rendezvous is not None and self._agent is not None:
            self._obey(frame, self._rendezvous, self._agent)

    def _obey(self, frame: AgentFrame, rendezvous: HostRendezvous, agent: LocalElasticAgent) -> None:
        if isinstance(frame, Assigned):
            rendezvous.on_assigned(frame.place)
        elif isinstance(frame, StopRound):
            rendezvous.on_stop_round(frame)
        elif isinstance(frame, SignalWorkers):
            agent.signal_workers(frame.signal, frame.ranks)

    def _on_lost(self) -> None:
        if self._spec is not None and self._spec.mode == "stop":
            self._stop_alone(f"agentd is gone: {self._link.problem}")

    def _on_parent_gone(self) -> None:
        self._unwatch_parent()
        if self._spec is None:
            self._refusal = "agentd ended before it answered"
        elif self._spec.mode == "stop":
            self._stop_alone("agentd is gone")

    def _unwatch_parent(self) -> None:
        watched, self._parent_fd = self._parent_fd, None
        if watched is not None:
            self._waiter.remove(watched)
            os.close(watched)

    def _stop_alone(self, reason: str) -> None:
        grace_s = self._spec.stop_grace_s if self._spec else 0.0
        self._stop(FinishHost(state=Phase.STOPPED.value, reason=reason, grace_s=grace_s))

    def _stop(self, finish: FinishHost) -> None:
        """The first one says how it ends; a later one can only shorten the grace."""
        self._finish = self._finish or finish
        if self._agent is not None:
            self._agent.request_stop(finish.grace_s)

    def _ended(self, phase: Phase, reason: str) -> Ended:
        if self._finish is not None and phase is not Phase.LOST:
            return Ended(state=self._finish.state, reason=self._finish.reason)
        return Ended(state=phase.value, reason=reason)


def live(birth: Birth) -> int:
    """Be the host of one group. The exit code is for agentd's log; what happened is in the reports."""
    # A collection would touch all that was imported, and with it what forked children share.
    gc.freeze()
    try:
        with Waiter() as waiter, contextlib.closing(HostSession(birth, waiter)) as session:
            session.run()
    except NotMet as problem:
        print(f"host: {problem}", file=sys.stderr)
        return 1
    return 0


def _worker_env(spec: HostSpec, group_dir: str) -> Mapping[str, str]:
    """What agentd adds to torch's contract and the elastic library cannot know."""
    return {
        **spec.env,
        "AGENTD_INCARNATION": str(spec.incarnation),
        "AGENTD_NODE_ID": spec.node_id,
        "AGENTD_ROUND_FILE": f"{group_dir}/{ROUND_FILE}",
    }


def _open_process(process: ProcessIdentity) -> int | None:
    """A pidfd of agentd; None where there are none: the socket tells too. Raises `NotMet` if it is gone."""
    try:
        return open_process(process)
    except ProcessLookupError:
        raise NotMet("agentd ended at once") from None
