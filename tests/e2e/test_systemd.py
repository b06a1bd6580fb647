"""agentd's unit under a real systemd: whatever becomes of agentd, the workers are the same processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from agentd.api.types import Phase, RunStatus
from agentd.groups.journal import open_for_reading
from agentd.procs import cgroups
from tests.support.fleet import write_script
from tests.support.systemd import Machine, booted, missing
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
WATCHDOG_S = 5

pytestmark = [pytest.mark.timeout(180), pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

# Notes each start, and that it lives; eats memory when told to; takes a second to save when it is stopped.
WORKER = (
    "import os, pathlib, signal, sys, time",
    "folder = pathlib.Path(sys.argv[1])",
    "me = f\"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['RANK']}\"",
    "def save(signum, frame):",
    "    time.sleep(1.0)",
    "    (folder / f'saved-{me}').touch()",
    "    sys.exit(0)",
    "signal.signal(signal.SIGTERM, save)",
    "start_time = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19]",
    "with open(folder / 'starts', 'a') as starts: starts.write(f'{me} {os.getpid()} {start_time}\\n')",
    "while True:",
    "    (folder / f'beat-{me}').touch()",
    "    if (folder / f'eat-{me}').exists():",
    "        pathlib.Path('/run/memory/small/cgroup.procs').write_text(str(os.getpid()))",
    "        b'x' * 500_000_000",
    "    time.sleep(0.05)",
)


class Workers:
    """What the workers of a test have left in their folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.script = write_script(folder.parent / "worker.py", *WORKER)

    def starts(self) -> list[str]:
        file = self.folder / "starts"
        return file.read_text().splitlines() if file.exists() else []

    def beat(self, *names: str) -> None:
        """Wait until each of them has shown that it lives now."""
        now = time.time()
        files = [self.folder / f"beat-{name}" for name in names]
        wait_until(lambda: all(f.exists() and f.stat().st_mtime > now for f in files), PATIENCE_S)


def begin(machine: Machine, workers: Workers, run_id: str, size: int) -> None:
    before = len(workers.starts())
    machine.agentctl(
        "run", "--detach", "--run-id", run_id, "--nproc-per-node", str(size), "--stop-grace", "10",
        str(workers.script), str(workers.folder),
    )  # fmt: skip
    wait_until(lambda: len(workers.starts()) == before + size, PATIENCE_S)


def status(machine: Machine, run_id: str) -> RunStatus:
    with machine.client() as client:
        return client.status(run_id)


def pids(shown: RunStatus) -> list[int]:
    return [worker.pid for worker in shown.nodes[0].groups[0].workers]


def next_agentd(machine: Machine, former: str) -> str:
    """The pid of the agentd that systemd has started after that one, once it is ready."""
    wait_until(
        lambda: machine.show("ActiveState") == "active" and machine.show("MainPID") not in ("0", former),
        PATIENCE_S,
        what="systemd has started the next agentd",
    )
    return machine.show("MainPID")


def test_workers_outlive_what_systemd_does_to_agentd_and_end_in_order_with_the_machine(
    tmp_path: Path,
) -> None:
    settings = (f"WatchdogSec={WATCHDOG_S}s", "TimeoutAbortSec=1s")
    workers, both = Workers(tmp_path / "out"), ("train-0", "train-1")
    with booted(tmp_path, settings) as machine:
        first = machine.show("MainPID")
        begin(machine, workers, "train", 2)
        begin(machine, workers, "eater", 1)
        began, known = workers.starts(), pids(status(machine, "train"))

        def unharmed() -> None:
            workers.beat(*both)
            assert workers.starts() == began
            shown = status(machine, "train")
            assert (pids(shown), shown.restart_count) == (known, 0)

        # Delegate=yes: agentd has made a cgroup for each group below its own.
        placed = machine.run("cat", f"/proc/{known[0]}/cgroup").stdout
        assert f"/system.slice/agentd.service/{cgroups.PREFIX}" in placed, placed

        # A restart is a handover.
        machine.systemctl("restart", "agentd")
        second = machine.show("MainPID")
        assert second != first
        unharmed()

        # A crash: systemd starts the next one.
        machine.systemctl("kill", "--signal=KILL", "--kill-whom=main", "agentd")
        third = next_agentd(machine, second)
        unharmed()

        # An event loop that hangs: the watchdog ends it.
        machine.systemctl("kill", "--signal=STOP", "--kill-whom=main", "agentd")
        stopped = time.monotonic()
        fourth = next_agentd(machine, third)
        assert time.monotonic() - stopped < 2 * WATCHDOG_S + PATIENCE_S / 2
        assert machine.show("NRestarts") == "2", "one for the crash, one for the watchdog"
        assert "Fatal Python error: Aborted" in machine.log, "it leaves word of where it hung"
        unharmed()

        # The kernel kills one worker for want of memory: its own failure, and nobody else's.
        (workers.folder / "eat-eater-0").touch()
        wait_until(lambda: status(machine, "eater").phase is Phase.FAILED, PATIENCE_S)
        failure = status(machine, "eater").first_failure
        assert failure is not None
        assert failure.signal == signal.SIGKILL
        assert "OOM killer" in failure.message
        assert machine.show("MainPID") == fourth
        assert machine.show("ActiveState") == "active"
        unharmed()

        # A stop of the unit is a handover to whoever is started next.
        machine.systemctl("stop", "agentd")
        assert machine.show("ActiveState") == "inactive"
        workers.beat(*both)
        machine.systemctl("start", "agentd")
        unharmed()
        assert "1 worker group of 1 run" in machine.show("StatusText")

        # So is the call of that name, but nobody asked systemd to start another: that is the caller's affair.
        machine.agentctl("handover", "unix:/run/agentd/agentd.sock")
        wait_until(lambda: machine.show("ActiveState") == "inactive", PATIENCE_S)
        workers.beat(*both)
        machine.systemctl("start", "agentd")
        unharmed()

        # The machine goes down: the workers have their grace, and the run has been stopped.
        machine.systemctl("poweroff", "--no-block")
        wait_until(machine.is_down, PATIENCE_S, what="the machine is down")
        assert all((workers.folder / f"saved-{name}").exists() for name in both)
        assert workers.starts() == began
    (run,) = [
        row for row in open_for_reading(tmp_path / "lib/agentd/agentd.db").runs if row.run_id == "train"
    ]
    assert run.status.phase is Phase.STOPPED
