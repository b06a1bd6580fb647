"""What runs out is named, harms nothing that runs, loses nothing that was announced, and passes by itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.api.errors import NodeDegraded
from agentd.api.types import (
    Command,
    EntrypointKind,
    GroupStatus,
    Phase,
    RoleSpec,
    RunRequest,
    RunSpec,
    RunStatus,
)
from agentd_client import AgentClient
from tests.support.disks import cannot_mount, small_disk
from tests.support.fleet import BIN, Node, agentctl, agentd, is_gone
from tests.support.shortage import cannot_limit_processes, no_more_files, no_more_processes
from tests.support.waiting import wait_until

PATIENCE_S = 60.0

pytestmark = [pytest.mark.timeout(180), pytest.mark.root]
mounts = pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount() or "it can")
limits_pids = pytest.mark.skipif(bool(cannot_limit_processes()), reason=cannot_limit_processes() or "it can")


class Caller:
    """Asks one agentd after the other at the same target."""

    def __init__(self, node: Node) -> None:
        self.client = AgentClient(node.target)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def begin(
        self, run_id: str = "job", program: tuple[str, ...] = ("/bin/sleep", "600"), workers: int = 2
    ) -> None:
        """By default two workers, asleep."""
        command = Command(entrypoint=program[0], arguments=program[1:], kind=EntrypointKind.EXECUTABLE)
        spec = RunSpec(
            run_id=run_id,
            roles=(RoleSpec(command=command, local_world_size=workers),),
            max_restarts=9,
            stop_grace=5.0,
        )
        self.client.run(RunRequest(request_id=run_id, spec=spec))

    def status(self) -> RunStatus:
        return self.client.status("job")

    def group(self) -> GroupStatus:
        return self.status().nodes[0].groups[0]

    def running(self, round_: int) -> tuple[int, ...]:
        """The pids of the workers, once they run in that round."""

        def look() -> tuple[int, ...]:
            group = self.group()
            there = group.phase is Phase.RUNNING and group.round == round_
            return tuple(worker.pid for worker in group.workers) if there else ()

        return wait_until(look, PATIENCE_S, what=f"round {round_}")

    def named(self, *conditions: str) -> None:
        """Wait until exactly these stand, for the node and for its run."""
        wait_until(lambda: set(self.client.get_node().conditions) == set(conditions), PATIENCE_S)
        wait_until(lambda: set(conditions) <= set(self.status().nodes[0].conditions), PATIENCE_S)

    def over(self) -> set[str]:
        """The conditions of which the history says that they went."""
        events = self.client.list_events()
        return {event.detail for event in events if event.kind == "condition_over"}

    def refused(self, condition: str) -> None:
        with pytest.raises(NodeDegraded) as refusal:
            self.begin("another")
        assert refusal.value.facts["condition"] == condition
        assert refusal.value.facts["step"] in str(refusal.value)

    def stop(self) -> None:
        pids = [worker.pid for worker in self.group().workers]
        self.client.stop("job")
        wait_until(lambda: self.status().phase is Phase.STOPPED, PATIENCE_S)
        assert all(is_gone(pid) for pid in pids)


@mounts
def test_a_full_disk_harms_no_run_and_loses_nothing_that_was_announced(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node-a" / "state") as disk, contextlib.ExitStack() as stack:
        node = stack.enter_context(agentd(tmp_path))
        caller = stack.enter_context(Caller(node))
        caller.begin()
        first = caller.running(1)
        host = caller.group().host_pid
        disk.fill()
        wait_until(lambda: "STATE_DISK_FULL" in caller.client.get_node().conditions, PATIENCE_S)
        os.kill(first[0], signal.SIGKILL)
        second = caller.running(2)
        assert caller.status().restart_count == 1
        caller.named("STATE_DISK_FULL", "JOURNAL_BEHIND")
        caller.refused("STATE_DISK_FULL")
        # Nobody but the host is there to hear of the next one, and there is no disk to tell it to.
        node.kill()
        os.kill(second[1], signal.SIGKILL)
        wait_until(lambda: is_gone(second[0]), PATIENCE_S)
        node = stack.enter_context(agentd(tmp_path, listen=node.target))
        third = caller.running(3)
        assert (caller.status().restart_count, caller.group().host_pid) == (2, host)
        caller.named("STATE_DISK_FULL", "JOURNAL_BEHIND")
        disk.free()
        caller.named()
        # What is not in the journal yet dies with agentd, and that is soon.
        wait_until(lambda: {"STATE_DISK_FULL", "JOURNAL_BEHIND"} <= caller.over(), PATIENCE_S)
        node.kill()
        node = stack.enter_context(agentd(tmp_path, listen=node.target))
        assert caller.running(3) == third
        assert (caller.status().restart_count, caller.group().host_pid) == (2, host)
        told = [event.kind for event in caller.client.list_events("job")]
        assert told.count("workers_failed") == 2
        assert {"STATE_DISK_FULL", "JOURNAL_BEHIND"} <= caller.over()
        caller.stop()
        assert node.stop() == 0


@mounts
def test_a_result_that_neither_a_disk_nor_an_agentd_could_take_waits_in_the_host(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node-a" / "state") as disk, contextlib.ExitStack() as stack:
        node = stack.enter_context(agentd(tmp_path))
        caller = stack.enter_context(Caller(node))
        end = tmp_path / "end"
        # More ends than there is room for in the file's last page, which is its own also on a full disk.
        caller.begin(program=("/bin/sh", "-c", f"until [ -e {end} ]; do sleep 0.05; done"), workers=32)
        workers = caller.running(1)
        host = caller.group().host_pid
        disk.fill()
        node.kill()
        end.touch()
        wait_until(lambda: all(map(is_gone, workers)), PATIENCE_S)
        assert not is_gone(host)
        node = stack.enter_context(agentd(tmp_path, listen=node.target))
        wait_until(lambda: caller.status().phase is Phase.SUCCEEDED, PATIENCE_S)
        assert caller.status().restart_count == 0
        wait_until(lambda: is_gone(host), PATIENCE_S)
        disk.free()
        wait_until(lambda: not caller.client.get_node().conditions, PATIENCE_S)
        node.kill()
        node = stack.enter_context(agentd(tmp_path, listen=node.target))
        assert caller.status().phase is Phase.SUCCEEDED
        assert node.stop() == 0


@mounts
def test_a_disk_without_inodes_costs_the_output_of_new_workers_and_nothing_else(tmp_path: Path) -> None:
    with small_disk(tmp_path / "node-a" / "state", "size=64m,nr_inodes=4096") as disk:
        with agentd(tmp_path) as node, Caller(node) as caller:
            caller.begin()
            first = caller.running(1)
            disk.fill_inodes()
            caller.named("STATE_DISK_NO_INODES")
            caller.refused("STATE_DISK_NO_INODES")
            os.kill(first[0], signal.SIGKILL)
            second = caller.running(2)
            assert "ranks 0, 1" in caller.status().nodes[0].conditions["LOGS_NOT_KEPT"]
            disk.free()
            wait_until(lambda: not caller.client.get_node().conditions, PATIENCE_S)
            os.kill(second[0], signal.SIGKILL)
            caller.running(3)
            caller.named()
            assert not caller.status().nodes[0].conditions
            caller.begin("another")
            caller.stop()
            caller.client.stop("another")
            wait_until(lambda: caller.client.status("another").phase is Phase.STOPPED, PATIENCE_S)
            assert node.stop() == 0


@mounts
@pytest.mark.parametrize(
    ("options", "problem"), [("size=64k", "disk is full|No space left"), ("ro", "Read-only file system")]
)
def test_a_first_start_on_a_disk_that_takes_nothing_is_refused_by_name(
    tmp_path: Path, options: str, problem: str
) -> None:
    state = tmp_path / "state"
    with small_disk(state, options) as disk:
        disk.fill()
        done = subprocess.run(
            [str(BIN / "agentd"), "--state-dir", str(state), "--listen", "127.0.0.1:0"],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert re.search(problem, done.stderr)
    assert "Traceback" not in done.stderr


FLOOD = (
    "import os, sys, time",
    "while not os.path.exists(sys.argv[1]): time.sleep(0.02)",
    "for _ in range(64): os.write(1, (b'y' * 63 + b'\\n') * 1024)",
    "os.write(1, b'the last line\\n')",
    "time.sleep(600)",
)


def test_a_log_that_grew_while_no_agentd_was_there_is_cut_by_the_next_which_says_so(tmp_path: Path) -> None:
    flood = tmp_path / "flood"
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(agentd(tmp_path, "a", "--logs-cap", "1MiB"))
        caller = stack.enter_context(Caller(node))
        caller.begin(program=(sys.executable, "-S", "-c", "\n".join(FLOOD), str(flood)))
        caller.running(1)
        node.kill()
        flood.touch()
        logs = list(node.state_dir.glob("runs/job/*/*/round_1/*/stdout.log"))
        assert len(logs) == 2
        wait_until(lambda: all(log.stat().st_size > 4 << 20 for log in logs), PATIENCE_S)
        node = stack.enter_context(agentd(tmp_path, "a", "--logs-cap", "1MiB", listen=node.target))
        wait_until(lambda: all(log.stat().st_blocks * 512 <= 1 << 20 for log in logs), PATIENCE_S)
        shown = agentctl("logs", "job", "--ranks", "1", "--nodes", node.target)
        assert "[default 1] stdout of round 1:" in shown.stderr
        assert "of the oldest part were removed (logs.cap)" in shown.stderr
        assert shown.stdout.endswith("[default 1]: the last line\n")
        assert "\0" not in shown.stdout
        assert 1 < len(shown.stdout.splitlines()) <= (1 << 20) // 64
        told = agentctl("status", "job", "--nodes", node.target).stdout
        assert "LOGS_CUT: the oldest output of ranks 0, 1 was removed" in told
        caller.stop()
        assert node.stop() == 0


def in_a_read_only(state: Path) -> tuple[str, ...]:
    """A prefix: there the folder takes no write; everybody else's is as before."""
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script, str(state))


@mounts
def test_an_agentd_that_begins_on_a_read_only_disk_goes_on_with_what_runs(tmp_path: Path) -> None:
    state = tmp_path / "node-a" / "state"
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(agentd(tmp_path))
        caller = stack.enter_context(Caller(node))
        caller.begin()
        pids = caller.running(1)
        host = caller.group().host_pid
        node.kill()
        node = stack.enter_context(agentd(tmp_path, listen=node.target, within=in_a_read_only(state)))
        caller.named("STATE_DISK_READ_ONLY", "JOURNAL_BEHIND")
        caller.refused("STATE_DISK_READ_ONLY")
        assert (caller.running(1), caller.group().host_pid) == (pids, host)
        subprocess.run(
            ["nsenter", "-t", str(node.pid), "-m", "mount", "-o", "remount,bind,rw", str(state)], check=True
        )
        caller.named()
        # The host could not dial in before.
        os.kill(pids[0], signal.SIGKILL)
        caller.running(2)
        assert (caller.status().restart_count, caller.group().host_pid) == (1, host)
        caller.stop()
        assert node.stop() == 0


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_agentd_at_its_limit_of_files_serves_its_runs_and_recovers(tmp_path: Path) -> None:
    with agentd(tmp_path) as node, Caller(node) as caller:
        caller.begin()
        first = caller.running(1)
        host = caller.group().host_pid
        with no_more_files(node.pid):
            caller.named("TOO_MANY_FILES")
            caller.refused("TOO_MANY_FILES")
            # Who calls now waits in vain, and must not have agentd spin over it.
            strangers = [socket.create_connection(_address(node)) for _ in range(3)]
            used, began = cpu_seconds(node.pid), time.monotonic()
            os.kill(first[0], signal.SIGKILL)
            second = caller.running(2)
            assert (caller.status().restart_count, caller.group().host_pid) == (1, host)
            wait_until(lambda: time.monotonic() - began > 2.0, 10)
            assert cpu_seconds(node.pid) - used < 0.5 * (time.monotonic() - began)
            with knocking(node):
                os.kill(host, signal.SIGKILL)
                wait_until(lambda: all(map(is_gone, second)), PATIENCE_S)
        assert "Traceback" not in node.log.read_text()
        for stranger in strangers:
            stranger.close()
        third = caller.running(3)
        assert caller.group().host_pid != host
        assert caller.status().restart_count == 2
        caller.named()
        with Caller(node) as late:
            assert late.running(3) == third
        caller.stop()
        assert node.stop() == 0


@contextlib.contextmanager
def knocking(node: Node) -> Iterator[None]:
    """Somebody is at the hosts' door."""
    folder = os.open(node.state_dir, os.O_PATH)  # its path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(f"/proc/self/fd/{folder}/hosts.sock")
            yield
    finally:
        os.close(folder)


def _address(node: Node) -> tuple[str, int]:
    host, _, port = node.target.rpartition(":")
    return host, int(port)


@limits_pids
def test_a_host_that_cannot_be_started_is_tried_again_until_it_can(tmp_path: Path) -> None:
    with agentd(tmp_path) as node, Caller(node) as caller:
        caller.begin()
        caller.running(1)
        host = caller.group().host_pid
        with no_more_processes(node.pid):
            os.kill(host, signal.SIGKILL)
            caller.named("CANNOT_FORK")
            caller.refused("CANNOT_FORK")
            assert (
                "Resource temporarily unavailable"
                in caller.client.get_node().condition_details["CANNOT_FORK"]
            )
        caller.running(2)
        assert caller.status().restart_count == 1
        caller.named()
        caller.stop()
        assert node.stop() == 0


@limits_pids
def test_workers_that_cannot_be_started_are_tried_again_and_cost_one_restart(tmp_path: Path) -> None:
    with agentd(tmp_path) as node, Caller(node) as caller:
        caller.begin()
        first = caller.running(1)
        host = caller.group().host_pid
        with no_more_processes(host):
            os.kill(first[0], signal.SIGKILL)
            log = next(node.state_dir.glob("runs/job/*/default/host.log"))
            wait_until(lambda: "Resource temporarily unavailable" in log.read_text(), PATIENCE_S)
            assert caller.group().phase is not Phase.RUNNING
        caller.running(2)
        assert (caller.status().restart_count, caller.group().host_pid) == (1, host)
        caller.stop()
        assert node.stop() == 0
