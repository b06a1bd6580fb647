"""Agents over real processes: a rendezvous that decides by script, and actions at the right moment.

Everything happens inside the agent's own waiter, so a test needs no thread and no sleep.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from agentd.elastic import (
    LocalElasticAgent,
    LogsSpecs,
    ProcessFailure,
    RendezvousHandler,
    RoundLogsSpecs,
    WorkerSpec,
)
from agentd.elastic.rendezvous import (
    AssignedRendezvousInfo,
    Assignment,
    RendezvousInfo,
    RendezvousStoreInfo,
    Verdict,
    WorkerExit,
    WorkerStart,
)
from agentd.elastic.utils.stores import InMemoryStore
from agentd.procs.procfs import ProcessStat
from agentd.procs.tree import Marks, find
from agentd.procs.waiter import Waiter

TOKEN = "token-of-a-test-" + os.urandom(8).hex()


@dataclass(frozen=True)
class FailureCall:
    """What `on_failure` was told."""

    round: int
    failures: Mapping[int, ProcessFailure]
    reason: str
    at: float


@dataclass
class ScriptedRendezvous(RendezvousHandler):
    """Coordinates one agent alone. `restarts` failures are forgiven, then it ends the run."""

    waiter: Waiter
    size: int
    restarts: int = 0
    over: bool = False
    """Set, the running round must go."""
    never_forms: bool = False
    rounds: int = 0
    calls: list[str] = field(default_factory=list)
    failures: list[FailureCall] = field(default_factory=list)
    late: list[Mapping[int, ProcessFailure]] = field(default_factory=list)
    started: list[Sequence[WorkerStart]] = field(default_factory=list)
    exits: list[WorkerExit] = field(default_factory=list)
    told_before_start: bool = False
    on_started: Callable[[Sequence[WorkerStart]], object] | None = None

    def get_backend(self) -> str:
        return "scripted"

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        raise AssertionError("the agent must not close the rendezvous for others")

    def num_nodes_waiting(self) -> int:
        raise AssertionError("a rendezvous that coordinates is asked round_over")

    def get_run_id(self) -> str:
        return "the-run"

    def shutdown(self) -> bool:
        return True

    def next_rendezvous(self) -> AssignedRendezvousInfo:
        self.calls.append("next_rendezvous")
        while self.never_forms:
            try:
                self.waiter.wait(None)
            except Exception:  # a handler that retries whatever happens
                continue
        self.rounds += 1
        self.over = False
        return AssignedRendezvousInfo(
            Assignment(
                round=self.rounds,
                group_rank=1,
                group_world_size=2,
                rank_base=10,
                world_size=10 + self.size,
                role_rank_base=5,
                role_world_size=5 + self.size,
                restart_count=len(self.failures),
                max_restarts=self.restarts,
                master_addr="node-zero",
                master_port=12345,
            )
        )

    def on_workers_started(self, round: int, workers: Sequence[WorkerStart]) -> None:
        self.calls.append(f"started {round}")
        self.started.append(workers)
        if self.on_started is not None:
            self.on_started(workers)

    def on_worker_exit(self, round: int, worker: WorkerExit) -> None:
        self.told_before_start |= not self.started
        self.exits.append(worker)

    def on_failure(self, round: int, failures: Mapping[int, ProcessFailure], reason: str) -> Verdict:
        self.calls.append(f"failure {round}")
        self.failures.append(FailureCall(round, failures, reason, time.monotonic()))
        return Verdict.RESTART if len(self.failures) <= self.restarts else Verdict.END

    def on_late_failure(self, round: int, failures: Mapping[int, ProcessFailure]) -> None:
        self.calls.append(f"late failure {round}")
        self.late.append(failures)

    def on_done(self, round: int) -> Verdict:
        self.calls.append(f"done {round}")
        return Verdict.END

    def round_over(self) -> bool:
        return self.over

    def on_round_gone(self, round: int) -> None:
        self.calls.append(f"gone {round}")


class Rig:
    """One agent, its waiter, its scripted rendezvous and a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.waiter = Waiter()
        self.token = f"{TOKEN}-{folder.name}"
        self.rendezvous = ScriptedRendezvous(self.waiter, 0)

    def agent(
        self,
        *argv: str,
        size: int = 1,
        restarts: int = 0,
        grace: float = 20.0,
        env: Mapping[str, str] | None = None,
        handler: RendezvousHandler | None = None,
        waiter: Waiter | None = None,
        cwd: str | None = None,
        logs_specs: LogsSpecs | None = None,
    ) -> LocalElasticAgent:
        self.rendezvous.size, self.rendezvous.restarts = size, restarts
        spec = WorkerSpec(
            role="trainer",
            local_world_size=size,
            rdzv_handler=handler or self.rendezvous,
            entrypoint=argv[0],
            args=argv[1:],
            max_restarts=restarts,
            monitor_interval=5.0,
        )
        return LocalElasticAgent(
            spec,
            logs_specs or RoundLogsSpecs(str(self.logs)),
            shutdown_timeout=grace,
            waiter=waiter or self.waiter,
            base_env={**os.environ, "FOLDER": str(self.folder), **(env or {})},
            cwd=cwd,
            token=self.token,
        )

    def shell(self, script: str, **options: object) -> LocalElasticAgent:
        return self.agent("sh", "-c", script, **options)  # type: ignore[arg-type]

    def when(self, condition: Callable[[], bool], action: Callable[[], object]) -> None:
        """Do it once, from inside the agent's wait, as soon as the condition holds."""

        def pump(now: float) -> float | None:
            if not condition():
                return now + 0.005
            self.waiter.remove_pump(pump)
            action()
            return now

        self.waiter.add_pump(pump)

    def when_files(self, *names: str, action: Callable[[], object]) -> None:
        """Do it when the workers have made these files, and the agent has told that it started them."""

        def there() -> bool:
            told = bool(self.rendezvous.started) or self.rendezvous.rounds == 0
            return told and all((self.folder / name).exists() for name in names)

        self.when(there, action)

    def when_file(self, name: str, action: Callable[[], object]) -> None:
        self.when_files(name, action=action)

    def log(self, round: int, local_rank: int, name: str = "stdout.log") -> str:
        return (self.logs / f"round_{round}" / str(local_rank) / name).read_text()

    def left(self) -> list[ProcessStat]:
        """What lives of the agent's workers, by token."""
        return find(Marks(token=self.token))


def a_store(timeout_s: float = 10.0) -> InMemoryStore:
    return InMemoryStore(timedelta(seconds=timeout_s))


@dataclass
class PlainRendezvous(RendezvousHandler):
    """torch's interface and no more; membership is fixed, each round has a fresh store."""

    rank: int = 0
    size: int = 1
    stores: list[InMemoryStore] = field(default_factory=lambda: [a_store() for _ in range(10)])
    """One a round, shared by the handlers of a run."""
    waiting: int = 0
    rounds: int = 0

    def get_backend(self) -> str:
        return "plain"

    def next_rendezvous(self) -> RendezvousInfo:
        self.waiting = 0
        self.rounds += 1
        where = RendezvousStoreInfo("node-zero", 12345)
        return RendezvousInfo(self.stores[self.rounds - 1], self.rank, self.size, where)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        raise AssertionError("the agent must not close the rendezvous for others")

    def num_nodes_waiting(self) -> int:
        return self.waiting

    def get_run_id(self) -> str:
        return "the-run"

    def shutdown(self) -> bool:
        return True
