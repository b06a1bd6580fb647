"""Stopping: at any moment, by call or by signal, with a grace that holds, and nothing left afterwards."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence

import pytest

from agentd.elastic import SignalException, StopRequested, WorkerState
from agentd.elastic.multiprocessing import context
from agentd.elastic.multiprocessing.context import FOREIGN_TERM_PATIENCE_S
from agentd.elastic.rendezvous import RendezvousInfo, WorkerStart
from agentd.procs import tree
from agentd.procs.crew import LEFTOVER_GRACE_S, UnkillableWorkers
from agentd.procs.identity import ProcessIdentity
from agentd.procs.spawn import Child
from tests.integration.elastic.rig import PlainRendezvous, Rig

STUBBORN = 'trap "" TERM; touch "$FOLDER/up"; while :; do sleep 0.05; done'
QUIET = 'touch "$FOLDER/up"; exec sleep 1000'


@pytest.fixture
def long_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to come in the moment of doubt comes in it, however busy the machine is."""
    monkeypatch.setattr(context, "FOREIGN_TERM_PATIENCE_S", 60.0)


def test_workers_that_heed_sigterm_are_gone_long_before_the_grace_ends(rig: Rig) -> None:
    agent = rig.shell(QUIET, size=2, grace=600)
    rig.when_file("up", agent.request_stop)
    before = time.monotonic()
    result = agent.run()
    assert result.state is WorkerState.STOPPED
    assert not result.failures
    assert time.monotonic() - before < 60
    assert all(exit_.torn_down and exit_.signal == signal.SIGTERM for exit_ in rig.rendezvous.exits)
    assert rig.rendezvous.calls[-1] == "gone 1"


def test_workers_that_ignore_sigterm_get_the_whole_grace_then_sigkill(rig: Rig) -> None:
    agent = rig.shell(STUBBORN, grace=0.5)
    asked: list[float] = []

    def stop() -> None:
        asked.append(time.monotonic())
        agent.request_stop()

    rig.when_file("up", stop)
    assert agent.run().state is WorkerState.STOPPED
    (exit_,) = rig.rendezvous.exits
    assert (exit_.signal, exit_.torn_down) == (signal.SIGKILL, True)
    assert time.monotonic() - asked[0] >= 0.5


def test_a_later_stop_shortens_the_grace(rig: Rig) -> None:
    agent = rig.shell(STUBBORN, grace=600)

    def stop_twice() -> None:
        agent.request_stop()
        rig.when(lambda: agent._stops.settling, lambda: agent.request_stop(grace=0.1))

    rig.when_file("up", stop_twice)
    assert agent.run().state is WorkerState.STOPPED
    assert rig.rendezvous.exits[0].signal == signal.SIGKILL


def test_a_stop_during_a_restarts_stop_shortens_that_too(rig: Rig) -> None:
    # Rank 10 fails, rank 11 ignores SIGTERM and would take the whole 600 s.
    agent = rig.shell(
        f'if [ $RANK = 11 ]; then {STUBBORN}; fi; while [ ! -e "$FOLDER/up" ]; do sleep 0.01; done; exit 7',
        size=2,
        restarts=5,
        grace=600,
    )
    rig.when(lambda: agent._stops.settling, lambda: agent.request_stop(grace=0.1))
    assert agent.run().state is WorkerState.STOPPED
    assert rig.rendezvous.rounds == 1
    assert rig.rendezvous.calls[-1] == "gone 1"


def test_a_stop_ends_a_rendezvous_that_never_forms_even_if_the_handler_retries(rig: Rig) -> None:
    rig.rendezvous.never_forms = True
    agent = rig.shell(QUIET)
    rig.when(lambda: bool(rig.rendezvous.calls), agent.request_stop)
    assert agent.run().state is WorkerState.STOPPED
    assert rig.rendezvous.calls == ["next_rendezvous"]


def test_a_stop_from_another_thread_ends_the_rendezvous(rig: Rig) -> None:
    rig.rendezvous.never_forms = True
    agent = rig.shell(QUIET)
    stopper = threading.Timer(0.1, agent.request_stop)
    stopper.start()
    assert agent.run().state is WorkerState.STOPPED
    stopper.join()


def test_a_stop_while_workers_are_started_starts_no_more_and_stops_the_started(rig: Rig) -> None:
    agent = rig.shell("exec sleep 1000", size=64)

    def some_started() -> bool:
        return agent._pcontext is not None and len(agent._pcontext.pids()) >= 3

    rig.when(some_started, agent.request_stop)
    assert agent.run().state is WorkerState.STOPPED
    assert 3 <= len(rig.rendezvous.exits) < 64
    assert all(exit_.torn_down for exit_ in rig.rendezvous.exits)
    assert rig.rendezvous.calls == ["next_rendezvous", "gone 1"]


def test_a_stop_before_run_starts_nothing(rig: Rig) -> None:
    agent = rig.shell(QUIET)
    agent.request_stop()
    assert agent.run().state is WorkerState.STOPPED
    assert rig.rendezvous.calls == []


def test_a_stop_in_the_exit_barrier_does_not_wait_for_the_others(rig: Rig) -> None:
    plain = PlainRendezvous(rank=0, size=2)
    plain.stores[0].set("torchelastic/role_info/1", b'{"role": "trainer", "rank": 1, "local_world_size": 1}')
    agent = rig.shell("exit 0", handler=plain)
    store = plain.stores[0]
    rig.when(lambda: store.check(["torchelastic/agent/terminal_state/num_members"]), agent.request_stop)
    assert agent.run().state is WorkerState.STOPPED


def test_a_signal_stops_the_workers_and_is_raised_and_handlers_come_back(rig: Rig) -> None:
    former = signal.getsignal(signal.SIGTERM)
    agent = rig.shell(QUIET)
    rig.when_file("up", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SignalException) as raised:
        agent.run()
    assert raised.value.sigval is signal.SIGTERM
    assert rig.rendezvous.exits[0].torn_down
    assert signal.getsignal(signal.SIGTERM) is former


def test_a_second_signal_leaves_no_grace(rig: Rig) -> None:
    agent = rig.shell(STUBBORN, grace=600)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    rig.when_file("up", interrupt)
    rig.when(lambda: agent._stops.settling, interrupt)
    with pytest.raises(SignalException):
        agent.run()
    assert rig.rendezvous.exits[0].signal == signal.SIGKILL


def test_a_signal_ends_a_rendezvous_that_knows_no_waiter(rig: Rig) -> None:
    class Sleeping(PlainRendezvous):
        def next_rendezvous(self) -> RendezvousInfo:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(600)
            raise AssertionError("not reached")

    with pytest.raises(SignalException):
        rig.shell(QUIET, handler=Sleeping()).run()


def test_a_worker_ended_by_the_sigterm_that_ends_this_process_too_is_no_failure(
    rig: Rig, long_doubt: None
) -> None:
    agent = rig.shell(QUIET, size=2)

    def terminate_all() -> None:
        os.kill(rig.rendezvous.started[0][0].pid, signal.SIGTERM)
        rig.when(lambda: bool(rig.rendezvous.exits), lambda: os.kill(os.getpid(), signal.SIGTERM))

    rig.when(lambda: bool(rig.rendezvous.started), terminate_all)
    with pytest.raises(SignalException):
        agent.run()
    assert rig.rendezvous.failures == []
    assert rig.rendezvous.late == []


def test_a_round_stopped_while_a_failure_is_in_doubt_tells_it_before_the_round_is_gone(
    rig: Rig, long_doubt: None
) -> None:
    agent = rig.shell(QUIET, size=2)
    rendezvous = rig.rendezvous

    def stop_elsewhere(starts: Sequence[WorkerStart]) -> None:
        if len(rendezvous.started) == 1:
            os.kill(starts[0].pid, signal.SIGTERM)
            rig.when(lambda: bool(rendezvous.exits), lambda: setattr(rendezvous, "over", True))
        else:
            rig.waiter.add_pump(lambda _now: agent.request_stop(0.0))

    rendezvous.on_started = stop_elsewhere
    agent.run()
    calls = rendezvous.calls
    assert calls[: calls.index("started 2")] == [
        "next_rendezvous",
        "started 1",
        "late failure 1",
        "gone 1",
        "next_rendezvous",
    ]
    (late,) = rendezvous.late
    assert {rank: failure.exitcode for rank, failure in late.items()} == {10: -signal.SIGTERM}


def test_a_worker_ended_by_a_sigterm_of_its_own_fails_after_a_moment_of_doubt(rig: Rig) -> None:
    agent = rig.shell(QUIET)
    agent.get_worker_group().spec.monitor_interval = 600.0
    sent: list[float] = []

    def terminate(starts: Sequence[WorkerStart]) -> None:
        sent.append(time.monotonic())
        os.kill(starts[0].pid, signal.SIGTERM)

    rig.rendezvous.on_started = terminate
    assert agent.run().is_failed()
    (call,) = rig.rendezvous.failures
    assert FOREIGN_TERM_PATIENCE_S <= call.at - sent[0] < 60.0, "in doubt, but not until the monitor looks"


def test_grandchildren_behind_a_shell_get_the_grace_and_are_gone(rig: Rig) -> None:
    # The shell dies of SIGTERM at once; its child finishes its work first, and is asked only once.
    child = 'trap "echo asked >>$FOLDER/asked; sleep 0.3; echo saved; exit" TERM; touch $FOLDER/up; '
    child += "while :; do sleep 0.05; done"
    agent = rig.shell(f"sh -c '{child}'; echo not reached")
    rig.when_file("up", agent.request_stop)
    assert agent.run().state is WorkerState.STOPPED
    assert rig.log(1, 0) == "saved\n"
    assert (rig.folder / "asked").read_text() == "asked\n"


def test_a_daemon_that_left_its_session_and_parent_is_found_by_the_token(rig: Rig) -> None:
    agent = rig.shell('setsid sh -c "touch $FOLDER/up; exec sleep 1000" & exec sleep 1000')
    rig.when_file("up", agent.request_stop)
    assert agent.run().state is WorkerState.STOPPED
    assert rig.left() == []


def test_what_a_successful_worker_left_is_ended_before_the_round_is_done(rig: Rig) -> None:
    before = time.monotonic()
    script = "sh -c 'trap \"\" TERM; touch $FOLDER/up; while :; do sleep 0.05; done' &"
    agent = rig.shell(script + ' while [ ! -e "$FOLDER/up" ]; do sleep 0.01; done', grace=600)
    assert agent.run().state is WorkerState.SUCCEEDED
    assert rig.left() == []
    assert LEFTOVER_GRACE_S <= time.monotonic() - before < 60
    assert rig.rendezvous.calls == ["next_rendezvous", "started 1", "done 1", "gone 1"]


def test_strangers_of_the_same_user_are_untouched(rig: Rig) -> None:
    stranger = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    try:
        agent = rig.shell(STUBBORN, grace=0.1)
        rig.when_file("up", agent.request_stop)
        agent.run()
        assert os.waitpid(stranger, os.WNOHANG) == (0, 0)
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)


def test_workers_that_even_sigkill_does_not_end_are_a_verdict_within_a_bound(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rig.shell(STUBBORN, grace=0.1)
    rig.when_file("up", agent.request_stop)

    def powerless(_identity: ProcessIdentity, _signum: int) -> bool:
        return True

    with monkeypatch.context() as patched:
        patched.setattr(tree, "KILL_BOUND_S", 0.3)
        patched.setattr(tree, "send_signal", powerless)
        patched.setattr(Child, "signal_group", lambda _self, _signum: None)
        with pytest.raises(UnkillableWorkers) as raised:
            agent.run()
    assert rig.rendezvous.started[0][0].pid in raised.value.pids
    assert "gone 1" not in rig.rendezvous.calls
    assert agent._pcontext is not None
    child = agent._pcontext.children[0]
    child.signal_group(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.reap()


def test_stop_requested_is_not_swallowed_by_code_that_catches_exceptions() -> None:
    assert not issubclass(StopRequested, Exception)
