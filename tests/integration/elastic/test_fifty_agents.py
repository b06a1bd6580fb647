"""Fifty agents of one process, with real workers, that come and go on the in-memory rendezvous."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, RunResult, WorkerSpec, WorkerState
from agentd.elastic.rendezvous.in_memory import InMemoryRendezvous
from tests.support.leaks import TOKEN_VARIABLE, Footprint, left_behind
from tests.support.waiting import wait_until

AGENTS, MOST, LEAVERS = 50, 40, 5
PATIENCE_S = 60.0
SCRIPT = (
    'f="$FOLDER/$AGENTD_ROUND-$RANK"; echo $$ > "$f.new"; mv "$f.new" "$f"; '
    '[ -e "$FOLDER/end" ] || exec sleep 600'
)


class Crowd:
    """Agents in threads of their own, and how each ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meeting = InMemoryRendezvous("crowd", 2, MOST, max_restarts=1, last_call_timeout=PATIENCE_S)
        self.agents: list[LocalElasticAgent] = []
        self.results: dict[int, RunResult] = {}
        self._threads: list[threading.Thread] = []

    def comes(self) -> None:
        """One more agent."""
        number, handler = len(self.agents), self.meeting.handler()
        spec = WorkerSpec("w", 1, handler, entrypoint="sh", args=("-c", SCRIPT), monitor_interval=30.0)
        agent = LocalElasticAgent(
            spec,
            RoundLogsSpecs(str(self.folder / "logs" / str(number))),
            shutdown_timeout=PATIENCE_S,
            base_env={**os.environ, "FOLDER": str(self.folder)},
        )

        def run() -> None:
            try:
                self.results[number] = agent.run()
            finally:
                handler.shutdown()

        self.agents.append(agent)
        self._threads.append(threading.Thread(target=run, name=f"agent-{number}"))
        self._threads[-1].start()

    def runs(self, after_round: int = 0) -> int:
        """Wait until a later round is full and all its workers have come; answers its number."""

        def running() -> int:
            now = self.meeting.meeting
            came = len(list(self.folder.glob(f"{now.round}-*[0-9]")))
            return now.round if len(now.places) == came == MOST and now.round > after_round else 0

        return wait_until(running, PATIENCE_S, what="a full round")

    def end(self) -> None:
        for agent in self.agents:
            agent.request_stop(0)
        for thread in self._threads:
            thread.join(PATIENCE_S)


def test_fifty_agents_come_and_go_and_leave_nothing(tmp_path: Path) -> None:
    before = Footprint.now()
    crowd = Crowd(tmp_path)
    try:
        for _ in range(AGENTS):
            crowd.comes()
        _some_leave(crowd, crowd.runs())
        wait_until(lambda: len(crowd.results) == LEAVERS, PATIENCE_S, what="the leavers' ends")
        _one_fails(crowd, crowd.runs())
        wait_until(lambda: len(crowd.results) == AGENTS, PATIENCE_S, what="the end of all agents")
    finally:
        crowd.end()
    states = Counter(result.state for result in crowd.results.values())
    assert states == {WorkerState.STOPPED: LEAVERS, WorkerState.SUCCEEDED: AGENTS - LEAVERS}
    ranks = sorted(rank for result in crowd.results.values() for rank in result.return_values)
    assert ranks == list(range(MOST)), "the spares that were not needed have no workers"
    assert crowd.meeting.meeting.restart_count == 1
    assert left_behind(before, token=os.environ[TOKEN_VARIABLE], settle_s=20.0) == {}


def _some_leave(crowd: Crowd, round_: int) -> None:
    """Spares take the places of those that are stopped, in one or several rounds, at no cost."""
    for member in list(crowd.meeting.meeting.places)[:LEAVERS]:
        crowd.agents[member].request_stop()
    crowd.runs(after_round=round_)


def _one_fails(crowd: Crowd, round_: int) -> None:
    """All restart; the new workers find that they have nothing to do."""
    (crowd.folder / "end").touch()
    os.kill(int((crowd.folder / f"{round_}-17").read_text()), signal.SIGKILL)
    crowd.runs(after_round=round_)
