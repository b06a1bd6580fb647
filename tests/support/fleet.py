"""Real agentds on loopback and the real command line, for tests of the whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentctl.exits import ExitCode, of_error
from agentd.api.errors import AgentError
from agentd.groups.reap import reap
from agentd.host.stock import IN_STOCK
from tests.support import leaks
from tests.support.netns import Network
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
START_S = 60.0
CALL_S = 60.0
REAP_GRACE_S = 0.5
UNKNOWN: dict[str, Any] = {"nodes": [], "phase": ""}


@dataclass
class Node:
    """One agentd process."""

    name: str
    target: str
    state_dir: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: what a crash or an out-of-memory kill does. Hosts and workers go on."""
        self.process.kill()
        self.process.wait(CALL_S)

    def lose(self) -> None:
        """The whole node is gone: agentd, its hosts and its workers."""
        self.kill()
        reap(str(self.state_dir), 0.0)

    def stop(self, timeout: float = CALL_S) -> int:
        """SIGTERM, and its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout)


@contextlib.contextmanager
def agentd(
    root: Path,
    name: str = "a",
    *flags: str,
    listen: str = "127.0.0.1:0",
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Iterator[Node]:
    """A running agentd with its own state directory below `root`; ended at the end, and what it left.

    `within`: a prefix that has it run elsewhere under the same pid, such as `Network.within`.
    """
    home = root / f"node-{name}"
    home.mkdir(parents=True, exist_ok=True)
    port_file, log = home / "port", home / "agentd.log"
    port_file.unlink(missing_ok=True)
    command = [
        *within,
        str(BIN / "agentd"),
        "--listen",
        listen,
        "--node-id",
        name,
        "--state-dir",
        str(home / "state"),
        "--port-file",
        str(port_file),
        *flags,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}
        )
    node = Node(name, "", home / "state", process, log)
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None, START_S)
        assert process.poll() is None, f"agentd {name} ended at once:\n{log.read_text()}"
        node.target = listen
        if not listen.startswith("unix:"):
            node.target = f"{listen.rpartition(':')[0]}:{port_file.read_text().strip()}"
        yield node
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(CALL_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(CALL_S)
        if process.returncode:
            # Its hosts and workers went on, for an agentd that the test did not start.
            reap(str(node.state_dir), REAP_GRACE_S)


@dataclass
class Fleet:
    """Several agentds of one test."""

    root: Path
    net: Network | None = None
    """The nodes' network. None: all are on loopback."""
    nodes: dict[str, Node] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def start(self, name: str, *flags: str) -> Node:
        if self.net is None:
            return self._started(name, *flags)
        return self._started(name, *flags, listen=f"{self.net.address(name)}:0")

    def again(self, name: str, *flags: str) -> Node:
        """The next agentd of a node, at the same address."""
        former = self.nodes[name]
        assert former.process.poll() is not None, f"agentd {name} still runs"
        return self._started(name, *flags, listen=former.target)

    def _started(self, name: str, *flags: str, listen: str = "127.0.0.1:0") -> Node:
        within = self.net.within(name) if self.net else ()
        network_flags = ("--insecure",) if self.net else ()
        made = agentd(self.root, name, *network_flags, *flags, listen=listen, within=within)
        self.nodes[name] = node = self.stack.enter_context(made)
        return node

    def agentctl(self, *arguments: str, timeout: float = CALL_S) -> subprocess.CompletedProcess[str]:
        """Run the real command line from where it reaches the nodes."""
        return agentctl(*arguments, timeout=timeout, within=self.net.controller() if self.net else ())

    def targets(self, *names: str) -> str:
        """A --nodes list of these nodes, or of all."""
        return ",".join(self.nodes[name].target for name in names or self.nodes)

    def workers(self, run_id: str) -> list[dict[str, Any]]:
        """Every running worker of the run, as status shows it."""
        status = self.status(run_id)
        return [
            {**worker, "node": node["node_id"]}
            for node in status.get("nodes", [])
            for group in node.get("groups", [])
            for worker in group.get("workers", [])
            if group["phase"] == "PHASE_RUNNING"
        ]

    def status(self, run_id: str, *names: str) -> dict[str, Any]:
        """The run as `agentctl status` shows it; of a run that is not known yet, no node and no phase."""
        if self.net is None:
            return _ask_status(run_id, self.targets(*names).split(","))
        done = self.agentctl("status", run_id, "--nodes", self.targets(*names), "-o", "json")
        if done.returncode == ExitCode.NOT_FOUND:
            return UNKNOWN
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def phase(self, run_id: str, *names: str) -> str:
        return str(self.status(run_id, *names)["phase"])


def _ask_status(run_id: str, targets: Sequence[str]) -> dict[str, Any]:
    """What `agentctl status` prints, without its start: tests ask until they see what they wait for."""
    # Only here: programs of tests that use this module prove that they run without gRPC.
    from agentctl.show.messages import to_dict
    from agentd.api import convert
    from agentd_client import Fleet as Client

    try:
        with Client(targets) as asked:
            report = asked.find(run_id).status()
    except AgentError as error:
        if of_error(error) is ExitCode.NOT_FOUND:
            return UNKNOWN
        raise AssertionError(f"status of {run_id}: {error}") from error
    return to_dict(convert.run_status_to_message(report.status))


@contextlib.contextmanager
def fleet(root: Path, *names: str, net: Network | None = None) -> Iterator[Fleet]:
    """agentds under these names, on loopback or each on the node of `net` that has its name."""
    made = Fleet(root, net)
    with made.stack:
        for name in names:
            made.start(name)
        yield made


def agentctl(
    *arguments: str,
    timeout: float = CALL_S,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run the real command line to its end. `within`: see `agentd`."""
    return subprocess.run(
        [*within, str(BIN / "agentctl"), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )


class Controller:
    """An `agentctl` that runs beside the test."""

    def __init__(
        self, *arguments: str, root: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._files = [root / f"agentctl-{id(self)}.{stream}" for stream in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [str(BIN / "agentctl"), *arguments],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._files[1].read_text(errors="replace")

    def send(self, signum: int) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout: float = CALL_S) -> int:
        return self.process.wait(timeout)

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(CALL_S)


def write_script(path: Path, *lines: str) -> Path:
    """A Python program of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def is_gone(pid: int) -> bool:
    """Whether no live process has this pid (a zombie is dead)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith(("Z", "X"))
    except OSError:
        return True


def count_descriptors(pid: int) -> int:
    """Open files, sockets and pipes of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def count_threads(pid: int) -> int:
    """Threads of a process, the main one too."""
    return len(os.listdir(f"/proc/{pid}/task"))


def descendants(pid: int) -> Sequence[leaks.Process]:
    """All processes below one."""
    return list(leaks.descendants(pid))


def is_at_rest(pid: int) -> bool:
    """Whether an agentd that has had several runs has nothing below it but its host in stock."""
    below = descendants(pid)
    return len(below) == 1 and IN_STOCK.encode() in Path(f"/proc/{below[0].pid}/cmdline").read_bytes()


def read_json_lines(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """The JSON objects that workers left as files."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]
