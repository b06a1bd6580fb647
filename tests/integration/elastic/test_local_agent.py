"""What a LocalElasticAgent does with real programs: success, failure, restarts, and what it reports."""

from __future__ import annotations

import os
import signal
import stat as stat_module
import time
from pathlib import Path

import pytest

from agentd.elastic import RoundLogsSpecs, WorkerState
from agentd.elastic.multiprocessing import LogsDest
from agentd.procs.spawn import SpawnError
from tests.integration.elastic.rig import PlainRendezvous, Rig


def test_workers_that_exit_0_succeed_and_leave_their_output_in_the_round_folder(rig: Rig) -> None:
    result = rig.shell("echo out $RANK; echo err $RANK >&2", size=2).run()
    assert result.state is WorkerState.SUCCEEDED
    assert dict(result.return_values) == {10: None, 11: None}
    assert rig.log(1, 1) == "out 11\n"
    assert rig.log(1, 1, "stderr.log") == "err 11\n"
    assert rig.rendezvous.calls == ["next_rendezvous", "started 1", "done 1", "gone 1"]


def test_workers_that_end_while_others_are_started_are_told_as_started_and_then_as_ended(rig: Rig) -> None:
    assert rig.agent("true", size=24).run().state is WorkerState.SUCCEEDED
    assert not rig.rendezvous.told_before_start
    assert [len(workers) for workers in rig.rendezvous.started] == [24]
    assert sorted(worker.rank for worker in rig.rendezvous.exits) == list(range(10, 34))


def test_workers_see_the_contract(rig: Rig) -> None:
    rig.agent("env", size=2, env={"OWN": "kept", "RANK": "stale"}).run()
    seen = dict(line.split("=", 1) for line in rig.log(1, 1).splitlines() if "=" in line)
    expected = {
        "RANK": "11",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_NAME": "trainer",
        "ROLE_RANK": "6",
        "ROLE_WORLD_SIZE": "7",
        "MASTER_ADDR": "node-zero",
        "MASTER_PORT": "12345",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_RUN_ID": "the-run",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "TORCHELASTIC_ERROR_FILE": str(rig.logs / "round_1" / "1" / "error.json"),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "AGENTD_RUN_ID": "the-run",
        "AGENTD_ROUND": "1",
        "AGENTD_GROUP_TOKEN": rig.token,
        "OWN": "kept",
    }
    assert {name: seen.get(name) for name in expected} == expected


def test_a_killed_worker_restarts_the_group_in_a_new_round(rig: Rig) -> None:
    agent = rig.shell(
        'if [ $TORCHELASTIC_RESTART_COUNT = 0 ]; then echo first; touch "$FOLDER/up$RANK"; exec sleep 1000;'
        " fi; echo again $TORCHELASTIC_RESTART_COUNT $AGENTD_ROUND",
        size=2,
        restarts=1,
    )
    rig.when_file("up11", lambda: os.kill(rig.rendezvous.started[0][1].pid, signal.SIGKILL))
    result = agent.run()
    assert result.state is WorkerState.SUCCEEDED
    assert rig.log(2, 0) == rig.log(2, 1) == "again 1 2\n"
    (call,) = rig.rendezvous.failures
    assert set(call.failures) == {11}, "the sibling that the agent stopped is no failure"
    assert call.failures[11].exitcode == -signal.SIGKILL
    by_rank = {exit_.rank: exit_ for exit_ in rig.rendezvous.exits[:2]}
    assert (by_rank[11].signal, by_rank[11].torn_down) == (signal.SIGKILL, False)
    assert (by_rank[10].signal, by_rank[10].torn_down) == (signal.SIGTERM, True)
    assert rig.rendezvous.calls == [
        *("next_rendezvous", "started 1", "failure 1", "gone 1"),
        *("next_rendezvous", "started 2", "done 2", "gone 2"),
    ]


def test_an_exhausted_budget_fails_with_the_worker_that_failed_and_what_it_said(rig: Rig) -> None:
    script = "if [ $RANK = 10 ]; then echo the reason >&2; exit 3; fi; exec sleep 1000"
    result = rig.shell(script, size=2, restarts=1).run()
    assert result.is_failed()
    assert set(result.failures) == {10}
    failure = result.failures[10]
    assert (failure.exitcode, failure.error_file, failure.stderr_tail()) == (3, "<N/A>", "the reason\n")
    assert 0 <= failure.age_s() < 20
    assert len(rig.rendezvous.failures) == 2


def test_the_budget_counts_alone_without_a_coordinating_rendezvous(rig: Rig, plain: PlainRendezvous) -> None:
    agent = rig.shell("echo $TORCHELASTIC_RESTART_COUNT; exit 1", restarts=2, handler=plain)
    assert agent.run().is_failed()
    assert [rig.log(round, 0) for round in (1, 2, 3)] == ["0\n", "1\n", "2\n"]
    assert plain.rounds == 3


def test_a_change_of_membership_restarts_without_using_the_budget(rig: Rig) -> None:
    agent = rig.shell('touch "$FOLDER/up$AGENTD_ROUND"; [ $AGENTD_ROUND = 3 ] || exec sleep 1000')
    for round in (1, 2):
        rig.when_file(f"up{round}", lambda: setattr(rig.rendezvous, "over", True))
    result = agent.run()
    assert result.state is WorkerState.SUCCEEDED
    assert rig.rendezvous.failures == []
    assert rig.rendezvous.rounds == 3


def test_waiting_nodes_restart_a_plain_rendezvous_without_using_the_budget(
    rig: Rig, plain: PlainRendezvous
) -> None:
    agent = rig.shell(
        'touch "$FOLDER/up$AGENTD_ROUND"; [ $AGENTD_ROUND = 2 ] || exec sleep 1000', handler=plain
    )
    agent.get_worker_group().spec.monitor_interval = 0.05
    rig.when_file("up1", lambda: setattr(plain, "waiting", 1))
    assert agent.run().state is WorkerState.SUCCEEDED
    assert plain.rounds == 2


def test_a_missing_program_is_named(rig: Rig, plain: PlainRendezvous) -> None:
    with pytest.raises(SpawnError, match="cannot start /no/such/program: No such file"):
        rig.agent("/no/such/program", handler=plain).run()


def test_a_start_that_fails_here_is_told_to_the_others(rig: Rig) -> None:
    with pytest.raises(SpawnError, match="the interpreter its first line names is missing"):
        rig.agent(_script(rig.folder / "script", "#!/no/such/interpreter\n"), restarts=1).run()
    assert [bool(call.failures) for call in rig.rendezvous.failures] == [False, False]
    assert "interpreter" in rig.rendezvous.failures[0].reason
    assert rig.rendezvous.calls[-1] == "gone 2"


class SecondCannotWrite(RoundLogsSpecs):
    """The second worker's standard error is a folder, so it cannot be opened."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        dest = super().reify(envs)
        dest.stderrs[1] = self.root_log_dir
        return dest


def test_a_start_that_fails_halfway_stops_what_was_started(rig: Rig) -> None:
    with pytest.raises(IsADirectoryError):
        rig.shell("exec sleep 1000", size=2, logs_specs=SecondCannotWrite(str(rig.logs))).run()
    assert rig.rendezvous.exits[0].torn_down


def test_64_workers_start_and_end(rig: Rig) -> None:
    result = rig.shell("echo $LOCAL_RANK", size=64).run()
    assert result.state is WorkerState.SUCCEEDED
    assert [rig.log(1, rank) for rank in range(64)] == [f"{rank}\n" for rank in range(64)]


def test_local_rank_macro_and_dollars_of_a_shell(rig: Rig) -> None:
    rig.shell('[ $$ -gt 1 ] && echo "${local_rank}:${HOME:+home}"', size=2).run()
    assert rig.log(1, 1) == "1:home\n"


def test_the_workers_directory_is_the_one_asked_for(rig: Rig) -> None:
    rig.agent("pwd", cwd="/usr").run()
    assert rig.log(1, 0) == "/usr\n"


def test_signal_workers_reaches_the_named_ranks_and_stops_nothing(rig: Rig) -> None:
    agent = rig.shell('trap "exit 0" USR1; touch "$FOLDER/up$RANK"; while :; do sleep 0.05; done', size=2)
    reached: list[tuple[int, ...]] = []

    rig.when_files(
        "up10", "up11", action=lambda: reached.append(agent.signal_workers(signal.SIGUSR1, (11, 99)))
    )
    rig.when(lambda: bool(rig.rendezvous.exits), lambda: reached.append(agent.signal_workers(signal.SIGUSR1)))
    assert agent.run().state is WorkerState.SUCCEEDED
    assert reached == [(11,), (10,)]


def test_two_workers_that_die_together_are_both_failures(rig: Rig) -> None:
    agent = rig.shell('touch "$FOLDER/up$RANK"; exec sleep 1000', size=2)

    def kill_both() -> None:
        for start in rig.rendezvous.started[0]:
            os.kill(start.pid, signal.SIGKILL)
        for start in rig.rendezvous.started[0]:
            os.waitid(os.P_PID, start.pid, os.WEXITED | os.WNOWAIT)

    rig.when_files("up10", "up11", action=kill_both)
    assert set(agent.run().failures) == {10, 11}


@pytest.mark.parametrize("size", [1, 3])
def test_a_failure_is_seen_long_before_the_monitor_interval_ends(rig: Rig, size: int) -> None:
    agent = rig.shell("[ $RANK != 10 ] || exit 1; exec sleep 1000", size=size)
    agent.get_worker_group().spec.monitor_interval = 600.0
    before = time.monotonic()
    assert agent.run().is_failed()
    assert time.monotonic() - before < 60.0


def _script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat_module.S_IXUSR)
    return str(path)
