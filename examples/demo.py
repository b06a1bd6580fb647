"""The main job in front of your eyes, on this machine: `make demo`.

Three agentds on loopback, a run of 3 x 2 workers, a worker killed with SIGKILL, the recovery, the status,
health, and a clean end. Everything is real; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agentd_client import Fleet, Phase, RunHandle, RunStatus, WorkerStatus

BIN = Path(sys.executable).parent
HELLO = Path(__file__).with_name("hello.py")
NODES = ("node-a", "node-b", "node-c")
WORKERS_PER_NODE = 2
WORLD_SIZE = len(NODES) * WORKERS_PER_NODE
START_S = 30.0
RUN_ID = "demo"

COLOURS = {Phase.RUNNING: "green", Phase.RESTARTING: "yellow", Phase.FAILED: "red", Phase.SUCCEEDED: "cyan"}

console = Console(highlight=False)


def main() -> int:
    """Show it; the status is that of the run."""
    with tempfile.TemporaryDirectory(prefix="agentd-demo-") as folder, contextlib.ExitStack() as stack:
        say("1. An agentd for each of three nodes, here all on this machine.")
        targets = [stack.enter_context(agentd(Path(folder), name)) for name in NODES]
        os.environ["AGENTD_NODES"] = ",".join(targets)
        show("agentctl", "nodes")

        say(f"2. A run of {len(NODES)} x {WORKERS_PER_NODE} workers that may be restarted once.")
        run = ("run", "--detach", "--run-id", RUN_ID, "--nproc-per-node", str(WORKERS_PER_NODE))
        show("agentctl", *run, "--max-restarts", "1", str(HELLO), "--seconds", "5")
        with Fleet(targets) as fleet:
            handle = fleet.find(RUN_ID)
            hurt_and_watch(handle)
            return farewell(handle, targets)


def hurt_and_watch(handle: RunHandle) -> None:
    """Follow the run to its end; once all workers run, kill one."""
    killed_at, recovered_s, victim = 0.0, 0.0, None
    with Live(console=console, refresh_per_second=20) as live:
        for status in handle.watch():
            live.update(picture(status, victim, recovered_s))
            up = running(status)
            if victim is None and len(up) == WORLD_SIZE:
                time.sleep(1.5)  # for the eye
                victim = next(worker for worker in up if worker.rank == WORLD_SIZE // 2)
                killed_at = time.monotonic()
                os.kill(victim.pid, signal.SIGKILL)
            elif victim and not recovered_s and status.round > 1 and len(up) == WORLD_SIZE:
                recovered_s = time.monotonic() - killed_at
        live.update(picture(handle.wait().status, victim, recovered_s))


def running(status: RunStatus) -> list[WorkerStatus]:
    """The workers of all nodes that run in the newest round."""
    return [
        worker
        for node in status.nodes
        for group in node.groups
        if group.phase is Phase.RUNNING and group.round == status.round
        for worker in group.workers
    ]


def picture(status: RunStatus, victim: WorkerStatus | None, recovered_s: float) -> Group:
    """The run as a table, and what happened below it."""
    table = Table(title=f"run {status.run_id}: {status.phase}, round {status.round}", title_justify="left")
    for column in ("node", "phase", "worker pids (rank)"):
        table.add_column(column, min_width=12)
    for node in sorted(status.nodes, key=lambda node: node.node_id):
        pids = ", ".join(f"{worker.pid} ({worker.rank})" for group in node.groups for worker in group.workers)
        table.add_row(node.node_id, Text(str(node.phase), style=COLOURS.get(node.phase, "")), pids)
    lines = []
    if victim:
        lines.append(f"kill -9 {victim.pid}: the worker of rank {victim.rank}")
    if recovered_s:
        lines.append(f"all {WORLD_SIZE} workers run again, {recovered_s * 1000:.0f} ms after the kill")
    return Group(table, Text("\n".join(lines), style="bold"))


def farewell(handle: RunHandle, targets: list[str]) -> int:
    """Status, the victim's story, health; what to try next."""
    report = handle.wait(timeout_s=START_S)
    say("3. What is known afterwards: the status, and the output of one rank over both rounds.")
    show("agentctl", "status", RUN_ID)
    show("agentctl", "logs", RUN_ID, "--ranks", "3", "--all-rounds")
    say("4. Health, as a load balancer or a kubelet asks for it.")
    show("agentctl", "health", targets[0])
    say("That was it; the three agentds end now. Try next:")
    console.print("   .venv/bin/agentctl run --standalone --nproc-per-node 2 examples/hello.py")
    console.print("   README.md, 'A first real use': the same over real machines\n")
    return 0 if report.status.phase is Phase.SUCCEEDED else 1


@contextlib.contextmanager
def agentd(folder: Path, name: str) -> Iterator[str]:
    """A running agentd; its target."""
    port_file = folder / f"{name}.port"
    flags = ["--node-id", name, "--listen", "127.0.0.1:0", "--port-file", str(port_file)]
    with (folder / f"{name}.log").open("wb") as log:
        command = [str(BIN / "agentd"), *flags, "--state-dir", str(folder / name)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not port_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"agentd {name} did not start:\n{(folder / f'{name}.log').read_text()}")
            time.sleep(0.02)
        yield f"127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.terminate()
        process.wait(START_S)


def show(*command: str) -> None:
    """Print a command and run it."""
    console.print(f"[bold]$ {' '.join(command)}[/bold]", soft_wrap=True)
    done = subprocess.run([str(BIN / command[0]), *command[1:]], check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}")
    console.print()


def say(sentence: str) -> None:
    """A heading."""
    console.print(f"\n[bold cyan]{sentence}[/bold cyan]\n")


if __name__ == "__main__":
    sys.exit(main())
