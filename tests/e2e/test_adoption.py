"""agentd is killed, and the next one meets its hosts: nothing restarts, and nothing that happened is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.support import leaks
from tests.support.fleet import Controller, Fleet, agentctl, fleet, is_gone, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0

# Counts the lines it writes; ends as the file `end-RANK` says, which holds an exit code.
WORKER = (
    "import os, pathlib, sys, time",
    "folder, rank = pathlib.Path(sys.argv[1]), os.environ['RANK']",
    "me = f\"{rank} {os.getpid()} {os.environ['TORCHELASTIC_RESTART_COUNT']} {os.environ['AGENTD_ROUND']}\"",
    "with open(folder / 'starts', 'a') as starts: starts.write(me + '\\n')",
    "end = folder / f'end-{rank}'",
    "for count in range(100_000):",
    "    if rank == '0': print('line', count, flush=True)",
    "    if end.exists() and end.read_text():",
    "        code = int(end.read_text())",
    "        end.rename(folder / f'ended-{rank}')",
    "        sys.exit(code)",
    "    time.sleep(0.05)",
)


def begin(nodes: Fleet, folder: Path, *flags: str, run_id: str = "r") -> list[dict[str, Any]]:
    """A detached run of two workers a node; the workers once all of them run."""
    folder.mkdir(exist_ok=True)
    script = write_script(folder.parent / "worker.py", *WORKER)
    done = agentctl(
        "run", "--detach", "--nodes", nodes.targets(), "--nproc-per-node", "2", "--run-id", run_id,
        *flags, str(script), str(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count = 2 * len(nodes.nodes)
    wait_until(lambda: len(nodes.workers(run_id)) == count and len(starts(folder)) == count, PATIENCE_S)
    return nodes.workers(run_id)


def starts(folder: Path) -> list[str]:
    """Rank, pid, restart count and round of every worker that ever began."""
    file = folder / "starts"
    return file.read_text().splitlines() if file.exists() else []


def end_worker(folder: Path, rank: int, code: int) -> None:
    """Have a worker exit, and wait until it has seen that it is to."""
    (folder / f"end-{rank}").write_text(str(code))
    wait_until((folder / f"ended-{rank}").exists, PATIENCE_S)


def processes(nodes: Fleet, run_id: str = "r") -> list[leaks.Process]:
    """Hosts and workers of the run as processes: a pid that was given again has another start time."""
    shown = nodes.status(run_id)
    groups = [group for node in shown["nodes"] for group in node["groups"]]
    pids = [int(group["host_pid"]) for group in groups]
    pids += [int(worker["pid"]) for group in groups for worker in group["workers"]]
    return sorted(leaks.identify(pid) for pid in pids)


def host_pid(nodes: Fleet, name: str, run_id: str = "r") -> int:
    shown = nodes.status(run_id)
    (node,) = [node for node in shown["nodes"] if node["node_id"] == name]
    return int(node["groups"][0]["host_pid"])


def attached(nodes: Fleet, run_id: str = "r") -> bool:
    """Whether the hub has a stream of every node, and each shows its workers."""
    shown = nodes.status(run_id)
    there = shown["nodes"] and not any(node.get("detached") for node in shown["nodes"])
    return bool(there) and len(nodes.workers(run_id)) == 2 * len(nodes.nodes)


def listed_phase(nodes: Fleet, name: str, run_id: str = "r") -> str:
    """How one node itself knows the run to be."""
    lines = agentctl("ps", "--all", "--nodes", nodes[name].target).stdout.splitlines()
    return next((line.split()[1] for line in lines if line.split()[0] == run_id), "")


def stopped(nodes: Fleet, pids: list[int], run_id: str = "r") -> None:
    """Stop the run; nothing of it may be left."""
    done = agentctl("stop", run_id, "--wait", "--nodes", nodes.targets())
    assert done.returncode == 0, done.stderr
    assert nodes.phase(run_id) == "PHASE_STOPPED"
    assert all(is_gone(pid) for pid in pids)


@pytest.mark.parametrize("victim", ["b", "a"], ids=["a member's", "the hub's"])
def test_a_killed_agentd_costs_no_worker_and_the_next_goes_on(tmp_path: Path, victim: str) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder)
        before, began = processes(nodes), starts(folder)
        started_at = nodes.status("r")["started_at"]
        nodes[victim].kill()
        nodes.again(victim)
        wait_until(lambda: attached(nodes), PATIENCE_S)
        assert processes(nodes) == before
        assert starts(folder) == began
        shown = nodes.status("r")
        assert shown["started_at"] == started_at
        counts = (shown["phase"], shown["round"], shown.get("restart_count", 0))
        assert counts == ("PHASE_RUNNING", 1, 0)
        assert not shown.get("membership_changes")
        stopped(nodes, [process.pid for process in before])


def test_every_agentd_of_a_run_may_be_killed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder)
        before, began = processes(nodes), starts(folder)
        for name in ("a", "b"):
            nodes[name].kill()
        for name in ("b", "a"):
            nodes.again(name)
        wait_until(lambda: attached(nodes), PATIENCE_S)
        assert (processes(nodes), starts(folder)) == (before, began)
        stopped(nodes, [process.pid for process in before])


def test_logs_are_followed_across_the_death_of_agentd(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder)
        following = ("logs", "r", "--follow", "--ranks", "0", "--nodes", nodes.targets())
        with Controller(*following, root=tmp_path) as logs:
            wait_until(lambda: "line 3" in logs.out, PATIENCE_S)
            nodes["a"].kill()
            seen = len(logs.out.splitlines())
            nodes.again("a")
            wait_until(lambda: len(logs.out.splitlines()) > seen + 20, PATIENCE_S)
            numbers = [int(line.rpartition(" ")[2]) for line in logs.out.splitlines() if "line" in line]
            assert numbers == list(range(len(numbers))), "each line once, in order"


def test_a_run_that_succeeds_while_agentd_is_away_has_succeeded(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder)
        began = starts(folder)
        host = host_pid(nodes, "b")
        nodes["b"].kill()
        for rank in (2, 3):
            end_worker(folder, rank, 0)
        wait_until(lambda: is_gone(host), PATIENCE_S)
        nodes.again("b")
        for rank in (0, 1):
            end_worker(folder, rank, 0)
        wait_until(lambda: nodes.phase("r", "b") == "PHASE_SUCCEEDED", PATIENCE_S)
        assert nodes.phase("r", "a") == "PHASE_SUCCEEDED"
        assert starts(folder) == began


@pytest.mark.parametrize("budget", [0, 1], ids=["which ends the run", "which restarts it"])
def test_a_worker_that_fails_while_agentd_is_away_is_the_first_failure(tmp_path: Path, budget: int) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        workers = begin(nodes, folder, "--max-restarts", str(budget))
        (pid,) = [int(worker["pid"]) for worker in workers if worker["rank"] == 3]
        nodes["b"].kill()
        end_worker(folder, 3, 7)
        wait_until(lambda: is_gone(pid), PATIENCE_S)
        nodes.again("b")
        if budget:
            wait_until(lambda: len(starts(folder)) == 8, PATIENCE_S)
            assert {line.split()[2] for line in starts(folder)[4:]} == {"1"}
            wait_until(lambda: attached(nodes), PATIENCE_S)
            shown = nodes.status("r")
            assert (shown["round"], shown["restart_count"]) == (2, 1)
            stopped(nodes, [process.pid for process in processes(nodes)])
        else:
            wait_until(lambda: nodes.phase("r") == "PHASE_FAILED", PATIENCE_S)
            shown = nodes.status("r")
        first = shown["first_failure"]
        found = (first["node_id"], first["rank"], int(first["pid"]), first["exit_code"])
        assert found == ("b", 3, pid, 7)


def test_a_host_killed_while_agentd_is_away_is_counted_and_hosted_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        workers = begin(nodes, folder, "--max-restarts", "1")
        own = [int(worker["pid"]) for worker in workers if worker["node"] == "b"]
        host = host_pid(nodes, "b")
        nodes["b"].kill()
        os.kill(host, signal.SIGKILL)
        wait_until(lambda: all(is_gone(pid) for pid in own), PATIENCE_S)
        nodes.again("b")
        wait_until(lambda: len(starts(folder)) == 8, PATIENCE_S)
        wait_until(lambda: attached(nodes), PATIENCE_S)
        shown = nodes.status("r")
        assert (shown["round"], shown["restart_count"]) == (2, 1)
        assert host_pid(nodes, "b") != host
        stopped(nodes, [process.pid for process in processes(nodes)])


@pytest.mark.soak
def test_a_host_that_hangs_at_the_restart_is_ended_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder, "--max-restarts", "1")
        former, host = processes(nodes), host_pid(nodes, "a")
        os.kill(host, signal.SIGSTOP)
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: len(starts(folder)) == 4, PATIENCE_S)
        assert all(is_gone(process.pid) for process in former)
        wait_until(lambda: attached(nodes), PATIENCE_S)
        assert nodes.status("r")["restart_count"] == 1
        stopped(nodes, [process.pid for process in processes(nodes)])


def test_a_stop_that_was_accepted_is_carried_out_by_the_next_agentd(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    stubborn = write_script(
        tmp_path / "stubborn.py",
        "import os, pathlib, signal, sys, time",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "pathlib.Path(sys.argv[1], f'up-{os.getpid()}').touch()",
        "time.sleep(600)",
    )
    folder.mkdir()
    with fleet(tmp_path, "a") as nodes:
        run = ("run", "--detach", "--nodes", nodes.targets(), "--nproc-per-node", "2", "--run-id", "r")
        assert agentctl(*run, "--stop-grace", "600", str(stubborn), str(folder)).returncode == 0
        up = wait_until(lambda: found if len(found := list(folder.glob("up-*"))) == 2 else [], PATIENCE_S)
        stop = agentctl("stop", "r", "--grace", "3", "--reason", "enough", "--nodes", nodes.targets())
        assert stop.returncode == 0, stop.stderr
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: nodes.phase("r") == "PHASE_STOPPED", PATIENCE_S)
        assert nodes.status("r")["reason"] == "enough"
        assert all(is_gone(int(path.name.removeprefix("up-"))) for path in up)


@pytest.mark.parametrize("hub", ["stays", "begins again"])
def test_a_run_that_ended_elsewhere_while_agentd_was_away_is_ended_here(tmp_path: Path, hub: str) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        workers = begin(nodes, folder)
        own = [int(worker["pid"]) for worker in workers if worker["node"] == "b"]
        nodes["b"].kill()
        assert agentctl("stop", "r", "--nodes", nodes["a"].target).returncode == 0
        wait_until(lambda: nodes.phase("r", "a") == "PHASE_STOPPED", PATIENCE_S)
        assert not any(is_gone(pid) for pid in own)
        if hub == "begins again":
            nodes["a"].kill()
            nodes.again("a")
        nodes.again("b")
        wait_until(lambda: all(is_gone(pid) for pid in own), PATIENCE_S)
        wait_until(lambda: listed_phase(nodes, "b") == "stopped", PATIENCE_S)


@pytest.mark.soak
def test_an_agentd_that_is_killed_again_and_again_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder)
        before, began = processes(nodes), starts(folder)
        for _ in range(3):
            nodes["b"].kill()
            nodes.again("b")
        wait_until(lambda: attached(nodes), PATIENCE_S)
        assert (processes(nodes), starts(folder)) == (before, began)
        stopped(nodes, [process.pid for process in before])


def test_hosts_of_a_state_directory_that_was_wiped_end_with_their_grace(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder)
        before = processes(nodes)
        nodes["a"].kill()
        for file in nodes["a"].state_dir.glob("agentd.db*"):
            file.unlink()
        nodes.again("a")
        wait_until(lambda: all(is_gone(process.pid) for process in before), PATIENCE_S)
        assert nodes.phase("r") == ""


def reboot(nodes: Fleet, name: str) -> None:
    """As far as agentd can see: everything on the node is gone, and the kernel has another boot id."""
    nodes[name].lose()
    with contextlib.closing(sqlite3.connect(nodes[name].state_dir / "agentd.db")) as db, db:
        db.execute("UPDATE groups SET boot_id = 'another'")


def test_a_node_rejoins_its_run_after_a_reboot_and_tells_what_was_lost(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder)
        reboot(nodes, "b")
        nodes.again("b")
        wait_until(lambda: len(starts(folder)) == 8, PATIENCE_S)
        wait_until(lambda: attached(nodes), PATIENCE_S)
        shown = nodes.status("r")
        assert (shown["round"], shown.get("restart_count", 0), shown["membership_changes"]) == (2, 0, 1)
        told = agentctl("events", "r", "--nodes", nodes["b"].target)
        assert "the group is lost: the machine was started again" in told.stdout, told.stderr
        stopped(nodes, [process.pid for process in processes(nodes)])


def test_a_run_without_rejoin_is_lost_with_a_reboot_and_its_hub_goes_on_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder, "--no-rejoin", "--nnodes", "1:2")
        reboot(nodes, "b")
        nodes.again("b")
        assert listed_phase(nodes, "b") == "lost"
        listed = agentctl("ps", "--all", "--nodes", nodes["b"].target).stdout
        assert "the machine was started again, and the run asks for no rejoin" in listed
        # Long before the re-attach window ends, in which the hub would wait for the node.
        wait_until(lambda: len(starts(folder)) == 6, PATIENCE_S / 2)
        assert nodes.status("r", "a")["membership_changes"] == 1
        assert {worker["node"] for worker in nodes.workers("r")} == {"a"}
        assert agentctl("stop", "r", "--wait", "--nodes", nodes["a"].target).returncode == 0


def test_a_rebooted_hub_without_rejoin_is_still_the_hub_of_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder, "--no-rejoin", "--nnodes", "1:2")
        reboot(nodes, "a")
        nodes.again("a")
        wait_until(lambda: len(starts(folder)) == 6, PATIENCE_S / 2)
        wait_until(lambda: len(nodes.workers("r")) == 2, PATIENCE_S)
        assert nodes.phase("r") == "PHASE_RUNNING"
        assert {worker["node"] for worker in nodes.workers("r")} == {"b"}
        stopped(nodes, [int(worker["pid"]) for worker in nodes.workers("r")])


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        pytest.param("b", "by signal", id="a member's by signal"),
        pytest.param("a", "by agentctl", id="the hub's by agentctl"),
        pytest.param("b", "by agentctl", id="a member's by agentctl", marks=pytest.mark.soak),
        pytest.param("a", "by signal", id="the hub's by signal", marks=pytest.mark.soak),
    ],
)
def test_a_handover_ends_agentd_well_and_nothing_else(tmp_path: Path, name: str, asked: str) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a", "b") as nodes:
        begin(nodes, folder)
        before, began = processes(nodes), starts(folder)
        if asked == "by signal":
            nodes[name].process.send_signal(signal.SIGUSR2)
        else:
            done = agentctl("handover", nodes[name].target)
            assert done.returncode == 0, done.stderr
            assert f"(pid {nodes[name].pid}) ends" in done.stderr
        assert nodes[name].process.wait(PATIENCE_S) == 0
        nodes.again(name)
        wait_until(lambda: attached(nodes), PATIENCE_S)
        assert (processes(nodes), starts(folder)) == (before, began)
        stopped(nodes, [process.pid for process in before])


def test_a_handover_in_mode_stop_is_refused_and_the_signal_a_drain(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path) as nodes:
        nodes.start("a", "--host-mode", "stop")
        begin(nodes, folder)
        before = processes(nodes)
        refused = agentctl("handover", nodes["a"].target)
        assert refused.returncode != 0
        assert "its workers end with it" in refused.stderr
        assert processes(nodes) == before
        nodes["a"].process.send_signal(signal.SIGUSR2)
        assert nodes["a"].process.wait(PATIENCE_S) == 0
        assert all(is_gone(process.pid) for process in before)


def test_sigterm_still_stops_the_groups(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with fleet(tmp_path, "a") as nodes:
        begin(nodes, folder)
        before = processes(nodes)
        nodes["a"].kill()
        nodes.again("a")
        wait_until(lambda: attached(nodes), PATIENCE_S)
        assert nodes["a"].stop() == 0
        assert all(is_gone(process.pid) for process in before)
