"""The handler of agentd against a real one: rounds, refusals, ends, and what it gives back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agentd.elastic import StopRequested, WorkerSpec, WorkerState
from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.rendezvous import (
    AssignedRendezvousInfo,
    Assignment,
    CoordinatedRendezvous,
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousStateError,
    RendezvousTimeoutError,
    Verdict,
)
from agentd.elastic.rendezvous.api import RendezvousParameters
from agentd.elastic.rendezvous.coordinated import AttachedRendezvous, RunEnded
from agentd.elastic.rendezvous.registry import get_rendezvous_handler
from agentd.hub.handler import AgentdRendezvousHandler
from agentd.procs.waiter import Waiter
from tests.support.fleet import Node, agentctl, agentd
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

T = TypeVar("T")
SOON_S = 30.0
HTTP2_SETTINGS = bytes.fromhex("000000 04 00 00000000")
"""What a server says first: so many, none."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Node]:
    with agentd(tmp_path, "hub") as node:
        yield node


class Party:
    """Handlers of one test, each used on a thread of its own, as agents in processes of their own would."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.handlers: list[AgentdRendezvousHandler] = []
        self._threads = ThreadPoolExecutor(8)

    def make(
        self, min_nodes: int = 2, max_nodes: int = 2, *, run_id: str = "job", **options: Any
    ) -> AgentdRendezvousHandler:
        options = {"local_world_size": 1, "last_call_timeout": 0.5, **options}
        endpoint = options.pop("endpoint", self.endpoint)
        wish = RendezvousParameters("agentd", endpoint, run_id, min_nodes, max_nodes, None, **options)
        handler = get_rendezvous_handler(wish)
        assert isinstance(handler, AgentdRendezvousHandler)
        self.handlers.append(handler)
        return handler

    def begin(self, work: Callable[[], T]) -> Future[T]:
        return self._threads.submit(work)

    def join(self, *handlers: AgentdRendezvousHandler) -> list[Assignment]:
        """The places of these handlers in the next round."""
        joining = [self.begin(handler.next_rendezvous) for handler in handlers]
        return [place_of(joined.result(SOON_S)) for joined in joining]

    def close(self) -> None:
        closing = [self.begin(handler.shutdown) for handler in self.handlers]
        assert all(closed.result(SOON_S) for closed in closing)
        self._threads.shutdown()


def place_of(info: object) -> Assignment:
    assert isinstance(info, AssignedRendezvousInfo)
    return info.assignment


@pytest.fixture
def party(hub: Node) -> Iterator[Party]:
    made = Party(hub.target)
    with contextlib.closing(made):
        yield made


def failure(exitcode: int = 3) -> ProcessFailure:
    return ProcessFailure(0, 4711, exitcode, "")


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "agentd-hub-line"]


def test_handlers_form_a_round_and_leave_nothing(hub: Node) -> None:
    with contextlib.closing(Party(hub.target)) as party:
        one, other = party.make(local_world_size=2), party.make(local_world_size=3)
        assert isinstance(one, CoordinatedRendezvous)
        assert isinstance(one, AttachedRendezvous)
        places = sorted(party.join(one, other), key=lambda place: place.group_rank)
        assert [(p.group_rank, p.group_world_size, p.world_size) for p in places] == [(0, 2, 5), (1, 2, 5)]
        assert places[1].rank_base in (2, 3)
        assert len({(place.master_addr, place.master_port) for place in places}) == 1
        assert places[0].master_port > 0
        with pytest.raises(RendezvousStateError):
            _ = AssignedRendezvousInfo(places[0]).store
        assert len(own_threads()) == 2
    assert own_threads() == []


def test_one_failure_restarts_all_and_counts_once(party: Party) -> None:
    one, other = (party.make(max_restarts=1) for _ in range(2))
    (first, _) = party.join(one, other)
    deciding = party.begin(lambda: one.on_failure(first.round, {first.rank_base: failure()}, ""))
    assert deciding.result(SOON_S) is Verdict.RESTART
    wait_until(other.round_over, SOON_S)
    for handler in (one, other):
        handler.on_round_gone(first.round)
    assert [place.restart_count for place in party.join(one, other)] == [1, 1]


def test_the_last_failure_ends_the_run_for_all_with_one_cause(party: Party) -> None:
    one, other = (party.make() for _ in range(2))
    (place, _) = party.join(one, other)
    own = failure()
    deciding = party.begin(lambda: one.on_failure(place.round, {place.rank_base: own}, ""))
    with pytest.raises(RunEnded) as here:
        deciding.result(SOON_S)
    with pytest.raises(RunEnded) as there:
        wait_until(other.round_over, SOON_S)
    for ended in (here.value, there.value):
        assert ended.state is WorkerState.FAILED
        assert "exited with code 3; restarts used: 0 of 0" in ended.reason
        assert next(iter(ended.failures)) == place.rank_base
    assert here.value.failures[place.rank_base] is own
    remote = there.value.failures[place.rank_base]
    assert (remote.pid, remote.exitcode) == (4711, 3)
    assert one.is_closed()
    assert other.is_closed()


def test_done_waits_for_the_others_and_ends(party: Party) -> None:
    one, other = (party.make() for _ in range(2))
    (place, _) = party.join(one, other)
    waiting = party.begin(lambda: one.on_done(place.round))
    assert party.begin(lambda: other.on_done(place.round)).result(SOON_S) is Verdict.END
    assert waiting.result(SOON_S) is Verdict.END


def test_a_done_agent_is_needed_again_when_the_run_restarts(party: Party) -> None:
    one, other = (party.make(max_restarts=1) for _ in range(2))
    (place, _) = party.join(one, other)
    waiting = party.begin(lambda: one.on_done(place.round))
    failing = party.begin(lambda: other.on_failure(place.round, {}, "no such program"))
    assert failing.result(SOON_S) is Verdict.RESTART
    assert waiting.result(SOON_S) is Verdict.RESTART
    for handler in (one, other):
        handler.on_round_gone(place.round)
    assert {again.round for again in party.join(one, other)} == {place.round + 1}


def test_an_agent_beyond_the_most_is_a_spare_and_steps_in(party: Party) -> None:
    one, other, spare = (party.make(1, 2, last_call_timeout=300) for _ in range(3))
    (place, _) = party.join(one, other)
    waiting = party.begin(spare.next_rendezvous)
    wait_until(lambda: "spares" in _status(party), SOON_S)
    assert not waiting.done()
    assert party.begin(other.shutdown).result(SOON_S)
    wait_until(one.round_over, SOON_S)
    one.on_round_gone(place.round)
    (again,) = party.join(one)
    assert again.group_world_size == place_of(waiting.result(SOON_S)).group_world_size == 2


def test_two_roles_take_their_ranks_in_the_order_of_the_run(party: Party) -> None:
    reader = party.make(roles="trainer,reader", role="reader", local_world_size=1)
    trainer = party.make(roles="trainer,reader", role="trainer", local_world_size=4)
    read, train = party.join(reader, trainer)
    assert (train.rank_base, train.role_rank_base, train.role_world_size) == (0, 0, 4)
    assert (read.rank_base, read.role_rank_base, read.role_world_size) == (4, 0, 1)


def test_too_few_agents_is_a_timeout_that_says_so(party: Party) -> None:
    handler = party.make(join_timeout=0.5)
    with pytest.raises(RendezvousTimeoutError, match=r"only 1 of at least 2 members joined within 0\.5 s"):
        party.begin(handler.next_rendezvous).result(SOON_S)
    assert handler.is_closed()


@pytest.mark.parametrize("options", [{"hub_timeout": 0.5}, {"join_timeout": 0.5}])
def test_a_hub_that_nobody_runs_is_a_connection_error_in_its_time(
    party: Party, options: dict[str, Any]
) -> None:
    handler = party.make(endpoint="127.0.0.1:1", **options)
    with pytest.raises(RendezvousConnectionError, match=r"127\.0\.0\.1:1"):
        party.begin(handler.next_rendezvous).result(SOON_S)


def test_an_endpoint_that_never_answers_is_given_up_in_its_time(party: Party) -> None:
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        handler = party.make(endpoint=f"127.0.0.1:{frozen.getsockname()[1]}", join_timeout=1)
        joining = party.begin(handler.next_rendezvous)
        with frozen.accept()[0] as connection:
            connection.sendall(HTTP2_SETTINGS)
            with pytest.raises(RendezvousConnectionError, match="did not answer within 1 s"):
                joining.result(SOON_S)


def test_other_parameters_are_refused_by_name_and_change_nothing(party: Party) -> None:
    one, other = party.make(), party.make()
    stranger = party.make(1, 2, lease=9)
    joining = party.begin(one.next_rendezvous)
    wait_until(lambda: _status(party), SOON_S)
    with pytest.raises(RendezvousStateError, match=r"rendezvous\.lease, rendezvous\.min_members"):
        party.begin(stranger.next_rendezvous).result(SOON_S)
    party.join(other)
    joining.result(SOON_S)


def test_a_late_agent_of_the_same_launch_does_not_begin_the_run_again(party: Party) -> None:
    first = party.make(1, 1, request_id="launch-7")
    (place,) = party.join(first)
    assert party.begin(lambda: first.on_done(place.round)).result(SOON_S) is Verdict.END
    wait_until(lambda: _status(party)["phase"] == "PHASE_SUCCEEDED", SOON_S)
    late = party.make(1, 1, request_id="launch-7")
    with pytest.raises(RunEnded) as ended:
        party.begin(late.next_rendezvous).result(SOON_S)
    assert ended.value.state is WorkerState.SUCCEEDED
    another = party.make(1, 1, request_id="launch-8")
    (again,) = party.join(another)
    assert again.round == 1


def test_a_stop_of_the_agent_passes_through_the_wait_and_the_others_go_on(party: Party) -> None:
    stopping = party.make(1, 2, last_call_timeout=300)
    with Waiter() as waiter:
        stopping.attach(spec_of(stopping), waiter, lambda _grace: None)

        def stop(_now: float) -> None:
            if "nodes" in _status(party):
                raise StopRequested

        waiter.add_pump(stop)
        with pytest.raises(StopRequested):
            stopping.next_rendezvous()
        assert stopping.shutdown()
    wait_until(lambda: _status(party)["nodes"][0]["phase"] == "PHASE_STOPPED", SOON_S)


def test_an_attached_handler_takes_size_role_and_budget_from_its_agent(party: Party) -> None:
    handler = party.make(1, 1, local_world_size=None)
    with Waiter() as waiter:
        spec = WorkerSpec("learner", 6, handler, entrypoint="true", max_restarts=5, local_addr="10.1.2.3")
        handler.attach(spec, waiter, lambda _grace: None)
        place = place_of(handler.next_rendezvous())
        assert (place.world_size, place.max_restarts, place.master_addr) == (6, 5, "10.1.2.3")
        shown = _status(party)["nodes"][0]["groups"][0]
        assert (shown["role"], shown["local_world_size"]) == ("learner", 6)
        assert handler.shutdown()


def test_the_end_of_the_run_hands_its_grace_to_the_agent(party: Party) -> None:
    handler = party.make(1, 1)
    graces: list[float | None] = []
    with Waiter() as waiter:
        handler.attach(spec_of(handler), waiter, graces.append)
        place = place_of(handler.next_rendezvous())
        stopped = agentctl("stop", "job", "--grace", "7", "--nodes", party.endpoint)
        assert stopped.returncode == 0, stopped.stderr
        with pytest.raises(RunEnded) as ended:
            _serve_until_over(handler, waiter)
        assert (ended.value.state, graces) == (WorkerState.STOPPED, [7.0])
        # The agent is stopping its workers now: a shorter grace reaches it at once.
        stopped = agentctl("stop", "job", "--grace", "2", "--nodes", party.endpoint)
        assert stopped.returncode == 0, stopped.stderr
        assert waiter.wait_until(lambda: len(graces) > 1, time.monotonic() + SOON_S)
        assert graces == [7.0, 2.0]
        handler.on_round_gone(place.round)
        wait_until(lambda: _status(party)["phase"] == "PHASE_STOPPED", SOON_S)
        assert handler.shutdown()


def test_a_handler_shut_down_over_processes_that_remain_says_so(party: Party) -> None:
    # So long that both come before it has passed: the one that is left waits for it.
    one, stuck = (party.make(1, 2, last_call_timeout=5) for _ in range(2))
    (place, _) = party.join(one, stuck)
    assert party.begin(stuck.shutdown).result(SOON_S)
    wait_until(one.round_over, SOON_S)
    one.on_round_gone(place.round)
    (alone,) = party.join(one)
    assert alone.group_world_size == 1


def test_agents_of_one_machine_meet_over_its_socket(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:
        socket = f"unix:{short}/agentd.sock"
        with agentd(tmp_path, "hub", listen=socket), contextlib.closing(Party(socket)) as party:
            places = party.join(party.make(), party.make())
    assert {place.master_addr for place in places} == {"127.0.0.1"}


def test_a_handler_without_a_size_says_what_is_missing(party: Party) -> None:
    with pytest.raises(ValueError, match="local_world_size"):
        party.make(local_world_size=None).next_rendezvous()


def test_after_shutdown_the_handler_is_closed(party: Party) -> None:
    handler = party.make(1, 1)
    party.join(handler)
    assert party.begin(handler.shutdown).result(SOON_S)
    assert party.begin(handler.shutdown).result(SOON_S)
    with pytest.raises(RendezvousClosedError):
        handler.next_rendezvous()
    with pytest.raises(RendezvousClosedError):
        handler.round_over()


def test_fifty_handlers_come_and_go_without_a_trace(party: Party) -> None:
    def live_once() -> None:
        handler = party.make(1, 1, run_id=f"run-{len(party.handlers)}")
        (place,) = party.join(handler)
        assert party.begin(lambda: handler.on_done(place.round)).result(SOON_S) is Verdict.END
        assert handler.shutdown()

    live_once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(49):
        live_once()
    assert own_threads() == []
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, SOON_S)


def spec_of(handler: AgentdRendezvousHandler) -> WorkerSpec:
    return WorkerSpec("default", 1, handler, entrypoint="true", max_restarts=0)


def _serve_until_over(handler: AgentdRendezvousHandler, waiter: Waiter) -> None:
    """What an agent does while its workers run."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        assert not handler.round_over()
        waiter.wait(deadline)


def _status(party: Party, run_id: str = "job") -> dict[str, Any]:
    """The run as agentctl shows it; empty while there is none."""
    done = agentctl("status", run_id, "--nodes", party.endpoint, "-o", "json")
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found
