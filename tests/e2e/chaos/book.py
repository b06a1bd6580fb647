"""What the nodes have said of the runs, and since when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agentd.api.types import TERMINAL, Phase, RunStatus
from tests.e2e.chaos import invariants
from tests.e2e.chaos.invariants import Results, Standing
from tests.e2e.chaos.plan import Job


@dataclass
class Book:
    """Kept by those who ask, read by those who judge."""

    jobs: dict[str, Job] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    by_hub: dict[str, RunStatus] = field(default_factory=dict)
    """The last word of each run's hub."""
    by_node: dict[str, Mapping[str, RunStatus]] = field(default_factory=dict)
    """What each node shows."""
    standing: dict[str, Standing] = field(default_factory=dict)
    results: Results = field(default_factory=Results)
    abandoned: dict[str, float] = field(default_factory=dict)
    """Since when nobody renews the lease of a run."""
    renewed: dict[str, float] = field(default_factory=dict)
    """When the last renewal that was answered was sent, by the time of day."""
    forgetful: set[str] = field(default_factory=set)
    """Runs whose hub died before it could write down what it had announced: it may announce it once more."""

    def begin(self, job: Job, incarnation: int) -> None:
        self.jobs[job.run_id] = job
        self.incarnations[job.run_id] = incarnation

    def forget(self, node: str) -> None:
        """The agentd of a node died while its disk took nothing."""
        for run_id, job in self.jobs.items():
            if job.hub == node and (node, run_id, self.incarnations[run_id]) not in self.results.shown:
                self.forgetful.add(run_id)
                self.by_hub.pop(run_id, None)
                self.standing.pop(run_id, None)

    def phase(self, run_id: str) -> Phase | None:
        """By its hub."""
        status = self.by_hub.get(run_id)
        return status.phase if status else None

    def shown(self, run_id: str) -> dict[str, RunStatus]:
        """The run by each node that knows it."""
        return {node: runs[run_id] for node, runs in self.by_node.items() if run_id in runs}

    def is_over(self, run_id: str) -> bool:
        return self.phase(run_id) in TERMINAL

    def see(self, node: str, runs: Iterable[RunStatus], now: float, *, lasting: bool) -> Iterator[str]:
        """What a node shows now, ended runs too; gives what is wrong with it."""
        shown = {run.run_id: run for run in runs}
        self.by_node[node] = shown
        yield from self.results.see(node, shown.values(), lasting=lasting)
        for run in shown.values():
            job = self.jobs.get(run.run_id)
            if job is not None and run.restart_count > job.max_restarts:
                yield f"{node} shows restart {run.restart_count} of {job.max_restarts} for {run.run_id}"
            of_hub = job is not None and job.hub == node and (run.from_hub or run.phase in TERMINAL)
            if job is not None and of_hub and run.incarnation == self.incarnations[run.run_id]:
                yield from invariants.stopped_too_soon(job, run, self.renewed.get(run.run_id))
                yield from self._of_hub(run, now)

    def _of_hub(self, run: RunStatus, now: float) -> Iterator[str]:
        before, stands = self.by_hub.get(run.run_id), self.standing.get(run.run_id, Standing())
        if before is not None and (run.round, run.restart_count) < (before.round, before.restart_count):
            yield (
                f"the hub of {run.run_id} went back from round {before.round}, restart {before.restart_count}"
                f" to round {run.round}, restart {run.restart_count}"
            )
        self.by_hub[run.run_id] = run
        newer = run.round > stands.round
        over = run.phase in TERMINAL and stands.over_since is None
        self.standing[run.run_id] = Standing(
            round=run.round,
            round_since=now if newer else stands.round_since,
            over_since=now if over else stands.over_since,
        )
