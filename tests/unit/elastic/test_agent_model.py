"""Every way through SimpleElasticAgent's life, in simulated time, against the rules in `agent_model`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.core.assignment import Assignment
from agentd.elastic import (
    ProcessFailure,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
    events,
)
from agentd.elastic.agent.server.stopping import StopRequest
from agentd.elastic.rendezvous import (
    AssignedRendezvousInfo,
    RendezvousError,
    Verdict,
)
from agentd.elastic.rendezvous.coordinated import RunEnded
from agentd.elastic.utils.stores import InMemoryStore
from tests.support.simulation import SimulatedWaiter
from tests.unit.elastic.agent_model import ERRORS, GRACE_S, WORKERS, Account, Attempt, Model, Script

LOOK_S = 0.02
SLACK_S = 0.05
"""Up to two looks until a newcomer is seen."""
CAPTURED = "captured-by-test-agent-model"

OUTCOMES = {
    "fail": WorkerState.FAILED,
    "succeed": WorkerState.SUCCEEDED,
    "unhealthy": WorkerState.UNHEALTHY,
    "unknown": WorkerState.UNKNOWN,
}


class World:
    """Where the agent lives: the clock and the others of the run."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.waiter = SimulatedWaiter()
        self.attempts = 0
        self.failures = 0
        self.waiting = 0
        self.formed_rounds: list[int] = []
        self.gone_rounds: list[int] = []
        for moment in script.newcomers:
            self.waiter.at(moment, self._join)

    def _join(self) -> None:
        self.waiting += 1

    @property
    def attempt(self) -> Attempt:
        return self.script.attempt(self.attempts - 1)

    @property
    def run_is_over(self) -> bool:
        ends = self.script.run_ends
        return self.script.shared and ends is not None and self.waiter.now() >= ends

    def end_attempt(self) -> None:
        if self.attempt.ends in ERRORS:
            raise ERRORS[self.attempt.ends](self.attempt.ends)
        self.waiting = 0


class HandlerBase(RendezvousHandler):
    def __init__(self, world: World) -> None:
        self.world = world

    def get_backend(self) -> str:
        return "simulated"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        raise AssertionError("no agent closes the run for others")

    def get_run_id(self) -> str:
        return "run"

    def shutdown(self) -> bool:
        return True

    def num_nodes_waiting(self) -> int:
        return self.world.waiting


class PlainHandler(HandlerBase):
    """As torch's: knows no waiter, forms rounds and nothing else."""

    def next_rendezvous(self) -> RendezvousInfo:
        self.world.attempts += 1
        self.world.waiter.pass_time(self.world.attempt.takes)
        self.world.end_attempt()
        return RendezvousInfo(InMemoryStore(), 0, 1, RendezvousStoreInfo("here", 1))


class SharedHandler(HandlerBase):
    """Coordinates: counts failures for all, and can end the run."""

    def next_rendezvous(self) -> RendezvousInfo:
        world = self.world
        world.attempts += 1
        formed_at = world.waiter.now() + world.attempt.takes
        world.waiter.wait_until(lambda: world.run_is_over or world.waiter.now() >= formed_at, formed_at)
        self._raise_if_over()
        world.end_attempt()
        world.formed_rounds.append(world.attempts)
        place = Assignment(
            round=world.attempts,
            group_rank=0,
            group_world_size=1,
            rank_base=0,
            world_size=WORKERS,
            role_rank_base=0,
            role_world_size=WORKERS,
            restart_count=world.failures,
            max_restarts=world.script.budget,
            master_addr="here",
            master_port=1,
        )
        return AssignedRendezvousInfo(place)

    def on_workers_started(self, round: int, workers: object) -> None:
        raise AssertionError("only an agent with processes tells this")

    def on_worker_exit(self, round: int, worker: object) -> None:
        raise AssertionError("only an agent with processes tells this")

    def on_late_failure(self, round: int, failures: object) -> None:
        raise AssertionError("no failure is known here")

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        assert round == self.world.attempts
        if self.world.failures == self.world.script.budget:
            return Verdict.END
        self.world.failures += 1
        return Verdict.RESTART

    def on_done(self, round: int) -> Verdict:
        return Verdict.END

    def round_over(self) -> bool:
        self._raise_if_over()
        return self.world.waiting > 0

    def on_round_gone(self, round: int) -> None:
        self.world.gone_rounds.append(round)

    def _raise_if_over(self) -> None:
        if self.world.run_is_over:
            raise RunEnded(WorkerState.FAILED, "the run failed elsewhere")


class SimulatedAgent(SimpleElasticAgent):
    """Workers are an entry in a script."""

    def __init__(self, world: World) -> None:
        handler = SharedHandler(world) if world.script.shared else PlainHandler(world)
        spec = WorkerSpec(
            "trainer",
            WORKERS,
            handler,
            entrypoint="nothing",
            max_restarts=world.script.budget,
            monitor_interval=LOOK_S,
            event_log_handler=CAPTURED,
        )
        super().__init__(spec, shutdown_timeout=GRACE_S, waiter=world.waiter, signals=())
        self.world = world
        self.account = Account()
        self.running: int | None = None
        """The attempt whose workers run."""
        self.ends_at = math.inf
        """When the workers have ended, by the stop that is under way."""
        self.state = WorkerState.INIT

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        assert self.running is None, "workers of two rounds beside each other"
        attempt, number = self.world.attempt, self.world.attempts
        if attempt.ends == "cannot start":
            raise OSError("cannot start")
        self.running, self.state, self.ends_at = number, WorkerState.HEALTHY, math.inf
        self.account.rounds.append(self._restart_count)
        if attempt.outcome is not None:
            state = OUTCOMES[attempt.outcome]
            self.world.waiter.at(
                math.floor(self._now()) + attempt.after, lambda: self._worker_ends(number, state)
            )
        return dict.fromkeys(range(WORKERS), number)

    def _worker_ends(self, number: int, state: WorkerState) -> None:
        if self.running == number:
            self.state = state

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        assert [worker.global_rank for worker in worker_group.workers] == list(range(WORKERS))
        if self.state is WorkerState.SUCCEEDED:
            self.running = None
            return RunResult(self.state, return_values=dict.fromkeys(range(WORKERS)))
        return RunResult(self.state)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._end(self._grace_deadline())

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> None:
        self._end(self._now() + timeout)

    def _end(self, deadline: float) -> None:
        if self.running is None:
            return
        self.ends_at = min(deadline, self._now() + self.world.attempt.stop_takes)
        while self._now() < self.ends_at:
            self.world.waiter.wait(self.ends_at)
        self.running = None

    def _hasten_stop(self, request: StopRequest) -> None:
        self.ends_at = min(self.ends_at, request.deadline)
        self.world.waiter.at(self.ends_at, self.world.waiter.wake)


@contextlib.contextmanager
def simulated(script: Script) -> Iterator[tuple[World, SimulatedAgent]]:
    world = World(script)
    with contextlib.closing(world.waiter):
        agent = SimulatedAgent(world)
        for moment, grace in script.stops:
            world.waiter.at(moment, partial(agent.request_stop, grace))
        if script.run_ends is not None:
            world.waiter.at(script.run_ends, world.waiter.wake)
        yield world, agent


class EventList(logging.Handler):
    """Keeps the states of events, for one script after another."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.states.append(json.loads(record.getMessage())["metadata"]["state"])


@pytest.fixture(scope="module", autouse=True)
def captured() -> EventList:
    handler = EventList()
    events.register(CAPTURED, lambda: handler)
    return handler


def observed(world: World, agent: SimulatedAgent) -> Account:
    try:
        agent.account.end = agent.run().state.name
    except (RendezvousError, OSError, RuntimeError) as error:
        agent.account.end = type(error).__name__
    agent.account.seconds = world.waiter.now()
    return agent.account


attempts = st.builds(
    Attempt,
    takes=st.integers(0, 5),
    ends=st.sampled_from(["formed"] * 12 + ["cannot start", *ERRORS]),
    outcome=st.sampled_from([None, "fail", "fail", "fail", "succeed", "unhealthy", "unknown"]),
    after=st.integers(1, 9),
    stop_takes=st.sampled_from([0, 0, 1, 7, 60]),
)
moments = st.integers(0, 40)
scripts = st.builds(
    Script,
    shared=st.booleans(),
    budget=st.integers(0, 4),
    attempts=st.lists(attempts, max_size=12),
    newcomers=st.lists(moments.map(lambda second: second + 0.75), max_size=3),
    stops=st.lists(st.tuples(moments.map(lambda s: s + 0.5), st.sampled_from([0.0, 3.0, 100.0])), max_size=3),
    run_ends=st.none() | moments.map(lambda second: second + 0.25),
)


@given(scripts)
@settings(deadline=None, max_examples=250)
def test_an_agent_does_what_the_rules_say_in_every_order_of_events(
    captured: EventList, script: Script
) -> None:
    if not script.stops and any(attempt.outcome is None for attempt in script.attempts):
        script = Script(script.shared, script.budget, script.attempts, script.newcomers, ((50.5, 3.0),))
    model = Model(script).follow()
    with simulated(script) as (world, agent):
        account = observed(world, agent)
        account.events[:], captured.states = captured.states, []
        assert (account.end, account.rounds, account.events) == (model.end, model.rounds, model.events)
        assert account.seconds == pytest.approx(model.seconds, abs=SLACK_S)
        assert agent.running is None, "workers were left"
        if script.shared:
            assert world.gone_rounds == world.formed_rounds, "whoever was given a place is told gone from it"
