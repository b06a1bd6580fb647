"""One group's life: told as tables, then against hosts, hubs and callers that do what they like."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agentd.api.types import (
    TERMINAL,
    Command,
    Failure,
    Phase,
    RoleSpec,
    RunSpec,
    WorkerState,
    WorkerStatus,
)
from agentd.core import group_events as ev
from agentd.core.assignment import Assignment
from agentd.core.group import MAX_HOST_LOSSES, STOP_MARGIN, GroupState, HostState, step
from agentd.groups.left import state_text
from agentd.host.shaped import build
from agentd.hub.plan import make_plan

NEW = GroupState(role="default", local_world_size=1, stop_grace=30.0)
FAILURE = Failure(rank=0, pid=7, exit_code=3)


def placement(round: int, **changes: Any) -> Assignment:
    fields = dict.fromkeys(Assignment.__dataclass_fields__, 0)
    return Assignment(**{**fields, "round": round, "master_addr": "a", **changes})


def workers(round: int) -> tuple[WorkerStatus, ...]:
    worker = WorkerStatus(
        role="default", rank=0, local_rank=0, role_rank=0, pid=round, state=WorkerState.HEALTHY
    )
    return (worker,)


def played(
    *events: ev.GroupEvent, state: GroupState = NEW, now: float = 0.0
) -> tuple[GroupState, list[ev.Effect]]:
    """The state and the effects of the last event."""
    effects: tuple[ev.Effect, ...] = ()
    for event in events:
        state, effects = step(state, event, now)
    return state, list(effects)


READY = (ev.Begin(), ev.HostSpawned(1), ev.HostReady(500))
RUNNING = (*READY, ev.Placed(placement(1)), ev.WorkersStarted(1, workers(1)))
RESTARTED = (*RUNNING, ev.RoundStopped(1, "b failed"), ev.HostReady(501))
DIED = ev.HostDied("SIGKILL")
STOP = ev.Finish(Phase.STOPPED, "asked", 5.0)


@pytest.mark.parametrize(
    ("events", "phase", "effects"),
    [
        ((ev.Begin(),), Phase.PENDING, [ev.StartHost()]),
        (READY, Phase.RENDEZVOUS, [ev.HubReady(500)]),
        ((*READY, ev.MadeSpare("full")), Phase.WAITING, []),
        (
            (*READY, ev.MadeSpare("full"), ev.Placed(placement(3))),
            Phase.RENDEZVOUS,
            [ev.SendPlacement(placement(3))],
        ),
        (RUNNING, Phase.RUNNING, []),
        ((*RUNNING, ev.RoundStopped(1, "b failed")), Phase.RESTARTING, [ev.SendStopRound(1, "b failed")]),
        (RESTARTED, Phase.RENDEZVOUS, [ev.HubGone(1, 501)]),
        ((*RESTARTED, ev.Placed(placement(2))), Phase.RENDEZVOUS, [ev.SendPlacement(placement(2))]),
        ((*RUNNING, ev.WorkersDone(1)), Phase.DONE, [ev.HubDone(1)]),
        ((*RUNNING, STOP), Phase.STOPPING, [ev.SendFinish(Phase.STOPPED, "asked", 5.0)]),
        ((*RUNNING, STOP, DIED), Phase.STOPPING, [ev.Sweep()]),
        ((*RUNNING, STOP, DIED, ev.Swept()), Phase.STOPPED, [ev.HubGone(1, 0)]),
        ((*READY, STOP, DIED, ev.Swept()), Phase.STOPPED, []),
    ],
)
def test_the_ordinary_life(events: tuple[ev.GroupEvent, ...], phase: Phase, effects: list[ev.Effect]) -> None:
    state, last = played(*events)
    assert (state.phase, last) == (phase, effects)


def test_a_failure_goes_to_the_hub_and_the_group_is_unhealthy_until_its_workers_are_gone() -> None:
    state, effects = played(*RUNNING, ev.WorkersFailed(1, (FAILURE,), (0.5,)))
    assert effects == [ev.HubFailed(1, (FAILURE,), (0.5,), "")]
    assert state.as_status().worker_state is WorkerState.UNHEALTHY
    assert state.as_status().failures == (FAILURE,)
    state, _ = played(ev.RoundStopped(1, ""), ev.HostReady(2), state=state)
    assert state.as_status().worker_state is WorkerState.INIT


def test_a_lost_host_counts_once_and_a_new_one_comes_when_the_hub_has_judged() -> None:
    state, effects = played(*RUNNING, DIED)
    assert effects == [ev.HubFailed(1, (), (), "the host was lost: SIGKILL"), ev.Sweep()]
    assert state.workers[0].state is WorkerState.STOPPED
    state, effects = played(ev.Swept(), state=state)
    assert effects == []
    state, effects = played(ev.RoundStopped(1, "restart"), state=state)
    assert effects == [ev.StartHost()]
    _, effects = played(ev.HostReady(9), state=state)
    assert effects == [ev.HubGone(1, 9)]


def test_a_host_lost_while_its_round_is_stopped_is_no_further_failure() -> None:
    state, effects = played(*RUNNING, ev.RoundStopped(1, ""), DIED)
    assert effects == [ev.Sweep()]
    assert played(ev.Swept(), state=state)[1] == [ev.StartHost()]


def test_a_place_for_a_host_that_is_lost_fails_its_round() -> None:
    lost, _ = played(*READY, DIED, ev.Swept())
    _, effects = played(ev.Placed(placement(1)), state=lost)
    assert effects == [ev.HubFailed(1, (), (), "the host was lost while the round formed")]


def test_hosts_that_never_start_a_worker_are_not_tried_for_ever() -> None:
    state, effects = played(ev.Begin())
    for _ in range(MAX_HOST_LOSSES):
        assert effects == [ev.StartHost()]
        state, effects = played(ev.HostReady(1), DIED, ev.Swept(), state=state)
    assert state.phase is Phase.FAILED
    assert isinstance(effects[0], ev.HubLeave)


def test_a_done_group_is_hosted_again_when_the_run_restarts() -> None:
    done, _ = played(*RUNNING, ev.WorkersDone(1), ev.HostDied("exit code 0"), ev.Swept())
    assert (done.phase, done.host) == (Phase.DONE, HostState.NONE)
    state, effects = played(ev.RoundStopped(1, "b failed"), state=done)
    assert (state.phase, effects) == (Phase.RESTARTING, [ev.StartHost()])
    assert played(ev.HostReady(9), state=state)[1] == [ev.HubGone(1, 9)]


def test_a_stop_that_crosses_success_restarts_the_group() -> None:
    state, effects = played(*RUNNING, ev.RoundStopped(1, ""), ev.WorkersDone(1))
    assert effects == []
    state, effects = played(ev.HostDied("exit code 0"), ev.Swept(), state=state)
    assert effects == [ev.StartHost()]


@pytest.mark.parametrize("events", [READY, RUNNING, RESTARTED], ids=["ready", "running", "restarted"])
def test_what_is_about_an_older_round_changes_nothing(events: tuple[ev.GroupEvent, ...]) -> None:
    before, _ = played(*events)
    stale: list[ev.GroupEvent] = [
        ev.Placed(placement(before.round)),
        ev.WorkersStarted(before.round - 1, ()),
        ev.WorkerExited(before.round - 1, 0, 1, None, torn_down=False),
        ev.WorkersFailed(before.round - 1, (FAILURE,), (0.0,)),
        ev.WorkersDone(before.round - 1),
        ev.RoundStopped(before.round - 1, "late"),
    ]
    for event in stale:
        assert step(before, event, 0.0) == (before, ())


def test_only_a_shorter_grace_is_passed_on() -> None:
    state, _ = played(*RUNNING, STOP, now=100.0)
    assert step(state, ev.Finish(Phase.STOPPED, "again", 60.0), 101.0) == (state, ())
    state, effects = step(state, ev.Finish(Phase.FAILED, "again", 1.0), 101.0)
    assert effects == (ev.SendFinish(Phase.STOPPED, "asked", 1.0),)


def test_a_stuck_host_is_ended_before_the_hub_gives_its_group_up() -> None:
    spec = RunSpec(run_id="job", roles=(RoleSpec(command=Command(entrypoint="x")),))
    assert make_plan(spec, 1, hub_node_id="a").answer_limit - STOP_MARGIN >= 2.0


@pytest.mark.parametrize("ask", [ev.RoundStopped(1, ""), ev.Finish(Phase.STOPPED, "")])
def test_a_host_that_does_not_stop_in_time_is_swept(ask: ev.GroupEvent) -> None:
    state, _ = played(*RUNNING, ask, now=100.0)
    in_time = 100.0 + NEW.stop_grace + STOP_MARGIN - 0.1
    assert step(state, ev.Tick(), in_time) == (state, ())
    assert step(state, ev.Tick(), in_time + 0.2)[1] == (ev.Sweep(),)


def test_unkillable_workers_end_the_group_lost_and_nothing_starts_again() -> None:
    state, effects = played(*RUNNING, ev.RoundStopped(1, ""), ev.WorkersUnkillable("4711 (nfs_wait)"))
    assert effects[0] == ev.HubGone(1, 0, "4711 (nfs_wait)")
    state, effects = played(ev.HostDied("exit code 0"), ev.Swept("4711"), state=state)
    assert (state.phase, effects) == (Phase.LOST, [])
    assert "UNKILLABLE" in state.reason


def test_an_exit_is_shown_by_its_cause() -> None:
    seen = {}
    for torn_down, exit_code, signum in (
        (False, 0, None),
        (False, 1, None),
        (False, None, 9),
        (True, None, 15),
    ):
        state, _ = played(*RUNNING, ev.WorkerExited(1, 0, exit_code, signum, torn_down))
        seen[torn_down, exit_code, signum] = state.workers[0].state
    assert list(seen.values()) == [
        WorkerState.SUCCEEDED,
        WorkerState.FAILED,
        WorkerState.FAILED,
        WorkerState.STOPPED,
    ]


rounds = st.integers(0, 4)


class AnyOrder(RuleBasedStateMachine):
    """Processes behave as processes do; what they, the hub and callers say comes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.state = NEW
        self.now = 0.0
        self.hosts = 0  # processes that are there
        self.sweeping = False
        self.offered = False  # the host said ready and got no place since
        self.gone: list[int] = []
        self.again = False  # a new agentd says what the last one may have said
        self.feed(ev.Begin())

    def feed(self, event: ev.GroupEvent) -> None:
        before = self.state
        self.state, effects = step(before, event, self.now)
        if before.phase in TERMINAL:
            assert (self.state, effects) == (before, ())
        for effect in effects:
            self.check(effect)

    def check(self, effect: ev.Effect) -> None:
        if isinstance(effect, ev.StartHost):
            assert self.hosts == 0
            assert not self.sweeping
            self.hosts, self.offered = 1, False
        elif isinstance(effect, ev.Sweep):
            self.sweeping = True
        elif isinstance(effect, ev.SendPlacement):
            assert self.hosts == 1
            assert self.offered or self.again
            assert effect.placement.round not in self.gone
            self.offered = False
        elif isinstance(effect, ev.HubGone):
            assert effect.round not in self.gone or self.again
            self.gone.append(effect.round)

    @rule()
    @precondition(lambda self: self.hosts)
    def host_ready(self) -> None:
        self.offered = self.state.ending is None
        self.feed(ev.HostReady(500))

    @rule()
    @precondition(lambda self: self.hosts)
    def host_dies(self) -> None:
        self.hosts, self.offered = 0, False
        self.feed(DIED)

    @rule(leftover=st.sampled_from(["", "", "", "4711"]))
    @precondition(lambda self: self.sweeping and not self.hosts)
    def swept(self, leftover: str) -> None:
        self.sweeping = False
        self.feed(ev.Swept(leftover))

    @rule(
        event=st.one_of(
            st.builds(ev.WorkersStarted, rounds, rounds.map(workers)),
            st.builds(ev.WorkerExited, rounds, st.just(0), st.just(1), st.none(), st.booleans()),
            st.builds(ev.WorkersFailed, rounds),
            st.builds(ev.WorkersDone, rounds),
            st.builds(ev.WorkersUnkillable, st.just("1")),
            st.builds(ev.HostEnding, st.just("words")),
            st.builds(ev.Placed, rounds.map(placement)),
            st.builds(ev.MadeSpare, st.just("full")),
            st.builds(ev.RoundStopped, rounds, st.just("r")),
            st.just(ev.HostSpawned(1)),
        )
    )
    def said(self, event: ev.GroupEvent) -> None:
        self.feed(event)

    @rule()
    def agentd_begins_again(self) -> None:
        self.state = build(GroupState, json.loads(state_text(self.state)), "state")
        self.again = True
        self.feed(ev.Resumed())
        if self.hosts:
            self.feed(ev.HostMet())
        self.again = False

    @rule(phase=st.sampled_from(sorted(TERMINAL)), grace=st.sampled_from([None, 0.0, 5.0]))
    def finish(self, phase: Phase, grace: float | None) -> None:
        self.feed(ev.Finish(phase, "asked", grace))

    @rule(seconds=st.sampled_from([0.1, 10.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(ev.Tick())

    @invariant()
    def nothing_runs_after_the_end(self) -> None:
        if self.state.phase in TERMINAL:
            assert self.hosts == 0
            assert not any(WorkerState.is_running(worker.state) for worker in self.state.workers)

    @invariant()
    def a_group_that_was_asked_to_end_does(self) -> None:
        """Kill what is left, sweep, and see."""
        if self.state.ending is None:
            return
        state = self.state
        if self.hosts:
            state, _ = step(state, DIED, self.now)
        if self.hosts or self.sweeping:
            state, _ = step(state, ev.Swept(), self.now)
        assert state.phase in TERMINAL


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def resumed(*events: ev.GroupEvent, now: float = 0.0) -> tuple[GroupState, list[ev.Effect]]:
    """What the next agentd says and does first, having read the state from the journal."""
    state, _ = played(*events)
    return played(ev.Resumed(), state=build(GroupState, json.loads(state_text(state)), "state"), now=now)


@pytest.mark.parametrize(
    ("events", "effects"),
    [
        ((ev.Begin(),), []),
        (READY, [ev.HubReady(500)]),
        (RUNNING, []),
        ((*RUNNING, ev.WorkersDone(1)), []),
        ((*RUNNING, ev.WorkersFailed(1, (FAILURE,), (0.5,))), [ev.HubFailed(1, (FAILURE,), (2.5,), "")]),
        (RESTARTED, [ev.HubGone(1, 501)]),
        ((*RUNNING, DIED), [ev.HubFailed(1, (), (), "the host was lost: SIGKILL"), ev.Sweep()]),
        ((*RUNNING, ev.RoundStopped(1, "r"), DIED, ev.Swept()), []),
        ((*RUNNING, STOP), []),
        ((*RUNNING, STOP, DIED, ev.Swept()), []),
    ],
)
def test_the_next_agentd_says_again_what_may_be_lost(
    events: tuple[ev.GroupEvent, ...], effects: list[ev.Effect]
) -> None:
    assert resumed(*events, now=2.0)[1] == effects


def test_a_host_that_never_reported_is_replaced_by_the_next_agentd_and_costs_nothing() -> None:
    state = replace(played(ev.Begin(), ev.HostSpawned(1))[0], host=HostState.NONE)
    state, effects = played(ev.Resumed(), state=state)
    assert (effects, state.host_losses) == ([ev.StartHost()], 0)


@pytest.mark.parametrize(
    ("events", "effects"),
    [
        (READY, []),
        ((*READY, ev.Placed(placement(1))), [ev.SendPlacement(placement(1))]),
        (RUNNING, []),
        ((*RUNNING, ev.RoundStopped(1, "b failed")), [ev.SendStopRound(1, "b failed")]),
        (RESTARTED, []),
        ((*RUNNING, STOP), [ev.SendFinish(Phase.STOPPED, "asked", 3.0)]),
        ((*RUNNING, ev.WorkersDone(1)), []),
    ],
)
def test_a_host_that_dials_in_again_is_told_again_what_it_may_not_know(
    events: tuple[ev.GroupEvent, ...], effects: list[ev.Effect]
) -> None:
    state, _ = resumed(*events)
    assert played(ev.HostMet(), state=state, now=2.0)[1] == effects


def test_a_round_that_the_journal_did_not_hear_of_is_learnt_from_the_host() -> None:
    state, _ = played(*RESTARTED, ev.WorkersStarted(2, workers(2)))
    assert (state.phase, state.round, state.workers) == (Phase.RUNNING, 2, workers(2))
    assert not state.awaiting_place


def test_a_status_has_all_of_the_state() -> None:
    state = replace(
        NEW, phase=Phase.RUNNING, group_rank=2, round=3, host_pid=9, reason="r", workers=workers(3)
    )
    status = state.as_status()
    assert (status.role, status.group_rank, status.round, status.host_pid) == ("default", 2, 3, 9)
    assert status.worker_state is WorkerState.HEALTHY
