"""The command line as a process, against fake agentds: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentctl.exits import ExitCode
from agentd.api.errors import DeviceInUse, InternalError
from agentd.api.types import LogStream, Phase
from agentd.v1 import agent_service_pb2 as service
from agentd_client.testing import FakeFleet
from tests.support.waiting import wait_until

AGENTCTL = Path(sys.executable).parent / "agentctl"
TIMEOUT_S = 60


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    with FakeFleet(2) as fleet:
        monkeypatch.setenv("AGENTD_NODES", ",".join(fleet.targets))
        yield fleet


def ctl(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [AGENTCTL, *arguments],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False, **options,
    )  # fmt: skip


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [AGENTCTL, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        start_new_session=True, **options,
    )  # fmt: skip


def is_running(fakes: FakeFleet, run_id: str) -> bool:
    return any(s.phase is Phase.RUNNING for s in fakes.world.list_runs("fake-0", False) if s.run_id == run_id)


def watched(fakes: FakeFleet) -> bool:
    """Whether a client has its Watch and Logs open on every node."""
    return all(agent.open_streams == 2 for agent in fakes.agents)


def test_an_attached_run_shows_output_news_and_the_story_of_its_failure(fakes: FakeFleet) -> None:
    run = start("run", "--run-id", "r", "--nproc-per-node", "2", "x.py")
    wait_until(lambda: is_running(fakes, "r"), 60)
    fakes.write_log("r", rank=1, data=b"loss 0.5\nhalf a line")
    fakes.write_log("r", rank=3, data=b"oh no\n", stream=LogStream.STDERR)
    wait_until(lambda: watched(fakes), 60)
    fakes.finish("r", rank=3, signal=9, message="killed", stderr_tail="oh no\n")
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 128 + 9
    assert out == "[default 1]: loss 0.5\n[default 1]: half a line\n"
    assert "[default 3]: oh no\n" in err
    assert "round 1: 4 workers on" in err
    assert (
        "first failure: rank 3 (role default, local rank 1) on node fake-1, pid 10003: killed by SIGKILL"
        in err
    )
    assert "torn down by agentd, not failed: ranks 0-2" in err


def test_ctrl_c_stops_with_grace_then_at_once(fakes: FakeFleet) -> None:
    run = start("run", "--run-id", "r", "x.py")
    wait_until(lambda: watched(fakes), 60)
    fakes[0].delay("Stop", 1.0)
    run.send_signal(signal.SIGINT)
    wait_until(lambda: fakes[1].requests(service.StopRequest), 60)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == ExitCode.INTERRUPTED
    asked = [request.HasField("grace") for request in fakes[1].requests(service.StopRequest)]
    assert asked[0] is False
    assert "with its grace" in err
    assert fakes.world.status("fake-0", "r").phase is Phase.STOPPED


def test_ctrl_c_of_an_attached_watcher_leaves_the_run_alone(fakes: FakeFleet) -> None:
    assert ctl("run", "--detach", "--run-id", "r", "x.py").stdout == "r\n"
    watcher = start("attach", "r")
    wait_until(lambda: watched(fakes), 60)
    watcher.send_signal(signal.SIGINT)
    _, err = watcher.communicate(timeout=TIMEOUT_S)
    assert watcher.returncode == 130
    assert "run r goes on" in err
    assert is_running(fakes, "r")
    assert not fakes[0].requests(service.StopRequest)


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGKILL], ids=["terminal lost", "killed"])
def test_losing_the_controller_stops_nothing(fakes: FakeFleet, signum: int) -> None:
    run = start("run", "--run-id", "r", "x.py")
    wait_until(lambda: watched(fakes), 60)
    run.send_signal(signum)
    run.communicate(timeout=TIMEOUT_S)
    assert is_running(fakes, "r")
    assert not fakes[0].requests(service.StopRequest)


def test_a_reader_that_goes_away_ends_the_command_quietly(fakes: FakeFleet) -> None:
    run = start("run", "--run-id", "r", "x.py")
    wait_until(lambda: watched(fakes), 60)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    fakes.write_log("r", rank=0, data=b"x\n" * 100_000)
    assert run.wait(TIMEOUT_S) == 141
    assert "Traceback" not in run.stderr.read()
    run.stderr.close()
    assert is_running(fakes, "r")


def test_json_is_the_run_alone_and_jsonl_every_event(fakes: FakeFleet) -> None:
    run = start("run", "--run-id", "r", "-o", "jsonl", "x.py")
    wait_until(lambda: is_running(fakes, "r"), 60)
    fakes.write_log("r", rank=0, data=b"hello\n")
    wait_until(lambda: watched(fakes), 60)
    fakes.finish("r")
    out, _ = run.communicate(timeout=TIMEOUT_S)
    events = [json.loads(line) for line in out.splitlines()]
    assert {next(iter(event)) for event in events} == {"status", "chunk"}
    assert events[-1]["status"]["phase"] == "PHASE_SUCCEEDED"
    assert json.loads(ctl("wait", "r", "-o", "json").stdout)["run_id"] == "r"


def test_status_ps_and_nodes_read_the_same_for_people_and_programs(fakes: FakeFleet) -> None:
    ctl("run", "-d", "--run-id", "r", "--nproc-per-node", "2", "x.py")
    table = ctl("status", "r").stdout
    assert table.startswith("run r: running\n")
    assert [line.split()[3:5] for line in table.splitlines()[-4:]] == [
        ["running", str(rank)] for rank in range(4)
    ]
    status = json.loads(ctl("status", "r", "-o", "json").stdout)
    workers = [w for node in status["nodes"] for group in node["groups"] for w in group["workers"]]
    assert [(w["rank"], w["pid"]) for w in workers] == [(rank, 10_000 + rank) for rank in range(4)]
    assert [run["run_id"] for run in json.loads(ctl("ps", "-o", "json").stdout)["runs"]] == ["r"]
    found = [json.loads(line)["node_id"] for line in ctl("nodes", "-o", "jsonl").stdout.splitlines()]
    assert found == ["fake-0", "fake-1"]


def test_nodes_shows_one_that_is_away_as_a_row_of_its_own(fakes: FakeFleet) -> None:
    away = fakes[1].target
    fakes[1].stop()
    listed = ctl("nodes")
    assert listed.returncode == ExitCode.PARTIAL
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    assert [(row[0], row[2]) for row in rows] == [("fake-0", "ready"), (away, "unreachable")]
    assert f"node {away}: " in listed.stderr
    data = json.loads(ctl("nodes", "-o", "json").stdout)
    assert [node["node_id"] for node in data["nodes"]] == ["fake-0"]
    assert [(each["node"], each["state"]) for each in data["problems"]] == [(away, "unreachable")]
    fakes[0].stop()
    silent = ctl("nodes")
    assert silent.returncode == ExitCode.UNREACHABLE
    assert silent.stdout.count("unreachable") == 2


def test_a_partial_answer_is_shown_and_has_its_own_code(fakes: FakeFleet) -> None:
    ctl("run", "-d", "--run-id", "r", "x.py")
    fakes[1].stop()
    listed = ctl("ps")
    assert listed.returncode == ExitCode.PARTIAL
    assert "r " in listed.stdout
    assert f"node {fakes.targets[1]}: no agentd answers" in listed.stderr
    # How the run stands is the hub's word, and the hub is there.
    assert ctl("status", "r").returncode == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["status", "nobody"], ExitCode.NOT_FOUND, "no run 'nobody'"),
        (["stop", "nobody"], ExitCode.NOT_FOUND, "nobody"),
        (["wait", "r", "--timeout", "0.2"], ExitCode.TIMEOUT, "goes on"),
        (["run", "--run-id", "r", "--max-restarts", "1", "x.py"], ExitCode.REFUSED, "max_restarts"),
        (["ps", "--nodes", "127.0.0.1:1"], ExitCode.UNREACHABLE, "127.0.0.1:1"),
        (["logs", "r", "--ranks", "77"], ExitCode.NOT_FOUND, "no log of rank 77"),
        (["signal", "r", "USR1", "--ranks", "77"], ExitCode.NOT_FOUND, "no running worker of rank 77; it is"),
        (["signal", "r", "USR1", "--ranks", "0,77"], ExitCode.PARTIAL, "rank 77 is not running"),
        (["join", "r", "--nodes", "127.0.0.1:1"], ExitCode.UNREACHABLE, "127.0.0.1:1"),
        (["run", "--rdzv-endpoint", "127.0.0.1:1", "x.py"], ExitCode.UNREACHABLE, "not torchrun's store"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_each_kind_of_failure_has_its_code_and_its_sentence(
    fakes: FakeFleet, arguments: list[str], code: int, says: str
) -> None:
    ctl("run", "-d", "--run-id", "r", "x.py")
    done = ctl(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run"], "name a script"),
        (["run", "--nnodes", "3:2", "x.py"], "--nnodes"),
        (["run", "--nproc_per_node", "0", "x.py"], "--nproc-per-node"),
        (["run", "--env", "NOVALUE", "x.py"], "--env"),
        (["run", "--nodes", "a,a:7460", "x.py"], "a:7460 is named twice"),
        (["run", "--hostfile", "/nowhere", "x.py"], "/nowhere"),
        (["run", "--no-such-flag", "x.py"], "--no-such-flag"),
        (["run", "--stop-grace", "-3", "x.py"], "--stop-grace"),
        (["run", "--logs-specs", "x", "x.py"], "agentctl logs"),
        (["run", "--standalone", "--nodes", "a", "x.py"], "--standalone"),
        (["run", "--standalone", "--nnodes", "2", "x.py"], "--standalone"),
        (["status", "--watch"], "--watch needs a RUN"),
        (["signal", "r", "NOPE"], "NOPE"),
        (["nonsense"], "nonsense"),
        (["stats"], "Did you mean 'status'?"),
        (["--nodes", "a", "ps"], "agentctl ps --nodes"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_bad_flag_is_named_before_anybody_is_asked(
    fakes: FakeFleet, arguments: list[str], says: str
) -> None:
    done = ctl(*arguments)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert says in done.stderr
    assert not fakes[0].requests()


def test_a_refusing_node_is_named_and_nothing_is_left(fakes: FakeFleet) -> None:
    fakes[1].refuse("Run", DeviceInUse(0, "other"))
    done = ctl("run", "--run-id", "r", "x.py")
    assert done.returncode == ExitCode.REFUSED
    assert f"{fakes.targets[1]}: device 0 is in use by run 'other'" in done.stderr
    assert fakes.world.status("fake-0", "r").phase is Phase.STOPPED


def test_a_fault_of_agentd_is_told_with_its_id(fakes: FakeFleet) -> None:
    for agent in fakes.agents:
        agent.refuse("Run", InternalError("e-17", agent.node_id))
    done = ctl("run", "x.py")
    assert done.returncode == ExitCode.INTERNAL
    assert "e-17" in done.stderr


def test_a_missing_node_is_named_while_the_run_waits_and_joins_when_it_is_back(
    fakes: FakeFleet, tmp_path: Path
) -> None:
    fakes[1].stop()
    said = tmp_path / "stderr"
    with said.open("w") as file:
        run = subprocess.Popen([AGENTCTL, "run", "--run-id", "r", "x.py"], stdout=file, stderr=file)
    missing = f"waiting for nodes: 1 of 2 there ({fakes.targets[0]}), missing: {fakes.targets[1]}"
    wait_until(lambda: missing in said.read_text(), 60)
    fakes[1].start()
    wait_until(lambda: is_running(fakes, "r"), 60)
    fakes.finish("r")
    assert run.wait(TIMEOUT_S) == 0
    assert f"node {fakes.targets[1]}: no agentd answers" in said.read_text()
    assert f"node {fakes.targets[1]} has taken the run" in said.read_text()


def test_leaving_an_ended_run_says_that_it_has_ended(fakes: FakeFleet) -> None:
    ctl("run", "-d", "--run-id", "r", "x.py")
    fakes.finish("r")
    done = ctl("leave", "r", "--nodes", fakes.targets[1])
    assert done.returncode == ExitCode.OK
    assert f"node {fakes.targets[1]}: run r has ended: succeeded" in done.stderr
    assert "leaves" not in done.stderr


def test_a_node_that_has_left_is_not_told_as_the_end_of_the_run(fakes: FakeFleet) -> None:
    ctl("run", "-d", "--run-id", "r", "--nnodes", "1:2", "x.py")
    assert ctl("leave", "r", "--nodes", fakes.targets[1]).returncode == ExitCode.OK
    again = ctl("leave", "r", "--nodes", fakes.targets[1])
    assert again.returncode == ExitCode.OK
    assert f"node {fakes.targets[1]}: its part of run r has ended: stopped" in again.stderr


def test_a_detached_run_tells_who_has_not_taken_it(fakes: FakeFleet) -> None:
    fakes[1].stop()
    done = ctl("run", "-d", "--run-id", "r", "x.py")
    assert (done.returncode, done.stdout) == (ExitCode.PARTIAL, "r\n")
    assert f"node {fakes.targets[1]} has not taken the run" in done.stderr


def test_without_an_agentd_on_this_machine_it_is_told_how_to_get_one(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    for arguments in (["run", "x.py"], ["ps"], ["wait", "r"]):
        done = ctl(*arguments, env=env)
        assert done.returncode == ExitCode.UNREACHABLE
        assert f"unix:{tmp_path}/agentd/agentd.sock" in done.stderr
        assert "Start one with `agentd`" in done.stderr
        assert ("--standalone" in done.stderr) == (arguments[0] == "run")


def test_health_has_the_codes_of_grpc_health_probe(fakes: FakeFleet) -> None:
    target = fakes.targets[0]
    patient = ("--connect-timeout", "30", "--rpc-timeout", "30")
    serving = ctl("health", target, *patient)
    assert (serving.returncode, serving.stdout) == (0, "status: SERVING\n")
    assert ctl("health", target, "--no-such-flag").returncode == 1
    assert ctl("health", "127.0.0.1:1").returncode == 2
    assert ctl("health", target, *patient, "--service", "nobody").returncode == 3
    fakes[0].serving["agentd.run/r"] = False
    assert ctl("health", "--addr", target, *patient, "--service", "agentd.run/r").returncode == 4
    fakes[0].delay("Check", 2.0)
    late = ctl("health", target, "--connect-timeout", "30", "--rpc-timeout", "0.2")
    assert (late.returncode, "not answered within 0.2 s" in late.stderr) == (3, True)


def test_torchruns_own_variables_and_flags_are_read_and_answered(
    fakes: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_NPROC_PER_NODE", "3")
    done = ctl(
        "run", "-d", "--rdzv_id", "r", "--rdzv_backend", "c10d", "--rdzv_conf", "join_timeout=60,rank=1",
        "--rdzv_endpoint", fakes.targets[1], "--node_rank", "1", "--max_restarts=2", "x.py", "--x_y", "-v",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for flag in ("--rdzv-backend", "--node-rank", "--rdzv-conf rank"):
        assert flag in done.stderr
    first = fakes[1].requests(service.RunRequest)[0]
    (role,) = first.spec.roles
    assert (first.incarnation, first.hub_address, first.spec.run_id) == (0, "", "r")
    assert (role.local_world_size.count, list(role.command.arguments)) == (3, ["--x_y", "-v"])
    assert (first.spec.max_restarts, first.spec.rendezvous.join_timeout.seconds) == (2, 60)


def test_completion_completes_commands_and_flags() -> None:
    assert "_AGENTCTL_COMPLETE" in ctl("completion", "bash").stdout
    env = {
        **os.environ,
        "_AGENTCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "agentctl st",
        "COMP_CWORD": "1",
    }
    words = ctl(env=env).stdout
    assert "status" in words
    assert "stop" in words


@pytest.mark.parametrize("line", ["run ", "run train.py ", "run --spec ", "nodes --hostfile "])
def test_completion_leaves_paths_to_the_shell(line: str) -> None:
    words = ["agentctl", *line.split(), "tr"]
    env = {
        **os.environ,
        "_AGENTCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    assert ctl(env=env).stdout.splitlines() == ["file,tr"]


SLOW_IMPORT = """
import pathlib, time
pathlib.Path(__file__).with_name("importing").touch()
time.sleep(60)
"""


def test_ctrl_c_while_it_imports_ends_it_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "click.py").write_text(SLOW_IMPORT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = start("version")
    wait_until((tmp_path / "importing").exists, TIMEOUT_S)
    asked.send_signal(signal.SIGINT)
    assert asked.communicate(timeout=TIMEOUT_S) == ("", "")
    assert asked.returncode == -signal.SIGINT
