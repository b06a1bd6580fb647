"""The last thing an attached user reads: how the run ended and, if it failed, who was first. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agentctl.show.narration import refusals
from agentctl.show.words import clock_time, duration, exit_of, failed_one, plural, ranks
from agentd.api.errors import AgentError
from agentd.api.types import Failure, Phase, RunStatus, WorkerState, WorkerStatus

TAIL_LINES = 20


def end_report(status: RunStatus, problems: Mapping[str, AgentError]) -> list[str]:
    """The lines of the report."""
    lines = [_headline(status)]
    if status.phase is Phase.FAILED and status.first_failure is not None:
        lines += ["", *_failure_lines(status, status.first_failure)]
        lines += _others(status, status.first_failure)
    elif status.reason and status.phase is not Phase.SUCCEEDED:
        lines.append(f"  {status.reason}")
        lines += [f"  {line}" for line in refusals(status)]
    if status.phase in (Phase.FAILED, Phase.STOPPED):
        lines += _torn_down(status)
    lines += [f"  node {name} could not be asked: {error}" for name, error in problems.items()]
    return lines


def _headline(status: RunStatus) -> str:
    facts = []
    last = [
        len(group.workers)
        for node in status.nodes
        for group in node.groups
        if group.workers and group.round == status.round
    ]
    if last:
        facts.append(f"{plural(sum(last), 'worker')} on {plural(_node_count(status), 'node')}")
    if status.round:
        facts.append(plural(status.round, "round"))
    if status.restart_count:
        facts.append(f"{plural(status.restart_count, 'restart')} of {status.max_restarts}")
    if status.membership_changes:
        facts.append(plural(status.membership_changes, "membership change"))
    if status.started_at and status.finished_at:
        facts.append(duration(max(0.0, status.finished_at - status.started_at)))
    about = f" ({', '.join(facts)})" if facts else ""
    return f"run {status.run_id} {_VERBS.get(status.phase, f'is {status.phase}')}{about}"


def _node_count(status: RunStatus) -> int:
    """Nodes that had a part in the last round."""
    return sum(any(g.workers and g.round == status.round for g in node.groups) for node in status.nodes)


_VERBS = {
    Phase.SUCCEEDED: "succeeded",
    Phase.FAILED: "failed",
    Phase.STOPPED: "was stopped",
    Phase.LOST: "is lost: nobody can say how it ended",
}


def _failure_lines(status: RunStatus, failure: Failure) -> list[str]:
    who, where = failed_one(failure), f"on node {failure.node_id}"
    if failure.pid:
        who = f"rank {failure.rank} (role {failure.role}, local rank {failure.local_rank})"
        where += f", pid {failure.pid}"
    when = [clock_time(failure.time)] if failure.time else []
    lines = [
        f"  first failure: {who} {where}: {exit_of(failure) or 'it could not run its workers'}",
        f"    when:       {', '.join([*when, f'round {failure.round}'])}",
    ]
    if failure.message:
        first, *more = failure.message.strip().splitlines() or [""]
        lines += [f"    message:    {first}", *(f"                {line}" for line in more[:TAIL_LINES])]
    if failure.error_file:
        lines.append(f"    error file: {failure.error_file} on node {failure.node_id}")
    if failure.log_dir:
        lines.append(f"    logs:       {failure.log_dir} on node {failure.node_id}")
    tail = failure.stderr_tail.rstrip("\n").splitlines()[-TAIL_LINES:]
    if tail:
        lines.append("    last lines of its standard error:")
        lines += [f"      | {line}" for line in tail]
    if status.reason:
        lines.append(f"    then:       {status.reason}")
    return lines


def _others(status: RunStatus, first: Failure) -> list[str]:
    """Failures after the first one, one line each."""
    return [
        f"  also failed: {failed_one(failure)} on node {failure.node_id}"
        f"{f', pid {failure.pid}' if failure.pid else ''}: {exit_of(failure) or failure.message}"
        for failure in _failures(status)
        if (failure.role, failure.rank, failure.round) != (first.role, first.rank, first.round)
    ]


def _torn_down(status: RunStatus) -> list[str]:
    failures = [*_failures(status), *([status.first_failure] if status.first_failure else [])]
    # Ranks of an earlier round were other processes.
    failed = {(failure.role, failure.rank) for failure in failures if failure.round == status.round}
    stopped = [
        w for w in _workers(status) if w.state is not WorkerState.SUCCEEDED and (w.role, w.rank) not in failed
    ]
    if not stopped:
        return []
    noun = "rank" if len(stopped) == 1 else "ranks"
    how = "torn down by agentd, not failed" if status.phase is Phase.FAILED else "stopped by agentd"
    return [f"  {how}: {noun} {ranks(worker.rank for worker in stopped)}"]


def _failures(status: RunStatus) -> list[Failure]:
    found = [failure for node in status.nodes for group in node.groups for failure in group.failures]
    return sorted(found, key=lambda failure: failure.time)


def _workers(status: RunStatus) -> list[WorkerStatus]:
    groups = [group for node in status.nodes for group in node.groups if group.round == status.round]
    return [worker for group in groups for worker in group.workers]
