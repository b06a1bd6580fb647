"""A user's program: an agent of the elastic library in a process of its own, on a hub of agentd.

    python -m tests.support.library_agent '{"endpoint": ..., "run_id": ..., ...}'

What became of it is written to the file `answer` as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.fleet import is_gone
from tests.support.waiting import wait_until

REPO = Path(__file__).resolve().parents[2]
AGENT_S = 60.0

WORKER = (
    "import json, os, pathlib, signal, sys, time",
    "root, env = pathlib.Path(sys.argv[1]), os.environ",
    "if (root / 'stubborn').exists(): signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "facts = {'agent': env['AGENT'], 'pid': os.getpid(), 'rank': int(env['RANK']),",
    "         'world_size': int(env['WORLD_SIZE']), 'restart_count': int(env['TORCHELASTIC_RESTART_COUNT']),",
    "         'master': env['MASTER_ADDR'] + ':' + env['MASTER_PORT']}",
    "(root / 'new').mkdir(exist_ok=True)",
    "part = root / 'new' / str(os.getpid())",
    "part.write_text(json.dumps(facts))",
    "part.rename(root / f'worker-{os.getpid()}.json')",
    "end = root / 'end'",
    "mine = root / f'end-{os.getpid()}'",
    "while not end.exists() and not mine.exists(): time.sleep(0.02)",
    "sys.exit(int((mine if mine.exists() else end).read_text() or 0))",
)
"""Says where it is, and ends as the file `end`, or `end-PID`, tells it."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What an agent is to be."""

    endpoint: str
    root: str
    name: str
    run_id: str = "job"
    min_nodes: int = 2
    max_nodes: int = 2
    size: int = 1
    max_restarts: int = 0
    shutdown_timeout: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Worker:
    """A worker as it described itself."""

    agent: str
    pid: int
    rank: int
    world_size: int
    restart_count: int
    master: str


class Agent:
    """A running `library_agent`, seen from the test."""

    def __init__(self, wish: Wish) -> None:
        self.name = wish.name
        self._answer = Path(wish.root, f"answer-{wish.name}.json")
        self._answer.unlink(missing_ok=True)
        self._log = Path(wish.root, f"agent-{wish.name}.log")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.library_agent", json.dumps(asdict(wish))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPO,
                env={**_plain_environment(), "AGENT": wish.name},
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def answer(self, timeout: float = AGENT_S) -> dict[str, Any]:
        """How it ended, once it has."""
        self.process.wait(timeout)
        assert self._answer.exists(), f"agent {self.name} left no answer:\n{self.log}"
        found: dict[str, Any] = json.loads(self._answer.read_text())
        return found


def _plain_environment() -> dict[str, str]:
    """Without what the tests themselves tell gRPC."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}


class Crowd:
    """Agents of one test and the workers they start, all below one folder."""

    def __init__(self, root: Path, endpoint: str) -> None:
        self.root = root
        self.endpoint = endpoint
        self.agents: dict[str, Agent] = {}
        (root / "worker.py").write_text("\n".join(WORKER) + "\n")

    def start(self, name: str, **wishes: Any) -> Agent:
        wish = Wish(**{"endpoint": self.endpoint, "root": str(self.root), "name": name, **wishes})
        self.agents[name] = Agent(wish)
        return self.agents[name]

    def workers(self) -> list[Worker]:
        """Those that live, by rank."""
        found = [Worker(**json.loads(path.read_text())) for path in self.root.glob("worker-*.json")]
        return sorted((w for w in found if not is_gone(w.pid)), key=lambda worker: worker.rank)

    def wait_for(
        self, *agents: str, restart_count: int = 0, without: tuple[Worker, ...] = ()
    ) -> tuple[Worker, ...]:
        """The workers once exactly these agents have one each, in one round and none of `without`."""

        def formed() -> tuple[Worker, ...] | None:
            now = self.workers()
            complete = sorted(worker.agent for worker in now) == sorted(agents)
            one_round = {(w.world_size, w.restart_count) for w in now} == {(len(agents), restart_count)}
            fresh = not {worker.pid for worker in now} & {worker.pid for worker in without}
            return tuple(now) if complete and one_round and fresh else None

        what = f"one round of {', '.join(agents)}"
        try:
            return wait_until(formed, 60, what=what) or ()
        except AssertionError as error:
            logs = "\n".join(f"--- {agent.name}:\n{agent.log}" for agent in self.agents.values())
            raise AssertionError(f"{error}; workers: {self.workers()}\n{logs}") from None

    def end(self, code: int = 0) -> None:
        """Let every worker exit."""
        partial = self.root / "end.new"
        partial.write_text(str(code))
        partial.rename(self.root / "end")

    def end_one(self, worker: Worker, code: int) -> None:
        """Let one worker exit."""
        partial = self.root / "end.one"
        partial.write_text(str(code))
        partial.rename(self.root / f"end-{worker.pid}")


@contextlib.contextmanager
def crowd(root: Path, endpoint: str) -> Iterator[Crowd]:
    """Agents of one test; whatever happens, they are ended."""
    root.mkdir(exist_ok=True)
    made = Crowd(root, endpoint)
    try:
        yield made
    finally:
        for agent in made.agents.values():
            if agent.process.poll() is None:
                agent.process.kill()
            agent.process.wait(AGENT_S)


def main() -> None:
    import logging

    from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, WorkerSpec
    from agentd.elastic.multiprocessing import SignalException
    from agentd.elastic.rendezvous.api import RendezvousError, RendezvousParameters
    from agentd.elastic.rendezvous.registry import get_rendezvous_handler

    logging.basicConfig(level=logging.INFO)
    wish = Wish(**json.loads(sys.argv[1]))
    assert not {name.partition(".")[0] for name in sys.modules} & {"grpc", "torch"}
    handler = get_rendezvous_handler(
        RendezvousParameters(
            "agentd", wish.endpoint, wish.run_id, wish.min_nodes, wish.max_nodes, None, **wish.options
        )
    )
    spec = WorkerSpec(
        role="default",
        local_world_size=wish.size,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=(f"{wish.root}/worker.py", wish.root),
        max_restarts=wish.max_restarts,
    )
    agent = LocalElasticAgent(
        spec, RoundLogsSpecs(f"{wish.root}/logs-{wish.name}"), shutdown_timeout=wish.shutdown_timeout
    )
    answer: dict[str, Any] = {}
    try:
        result = agent.run()
        answer["state"] = result.state.name
        answer["reason"] = result.reason
        answer["failures"] = [
            {
                "rank": rank,
                "pid": failure.pid,
                "exitcode": failure.exitcode,
                "message": failure.message_text(),
            }
            for rank, failure in result.failures.items()
        ]
    except (SignalException, RendezvousError) as error:
        answer["error"] = type(error).__name__
        answer["text"] = str(error)
    finally:
        answer["shutdown"] = handler.shutdown()
    answer["threads"] = [thread.name for thread in threading.enumerate()]
    answer["fork_support"] = os.environ.get("GRPC_ENABLE_FORK_SUPPORT")
    Path(wish.root, f"answer-{wish.name}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
