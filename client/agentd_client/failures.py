"""Errors that only a client of several nodes can have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agentd.api.errors import AddressUnusable, AgentError, DeadlineExceeded, RunNotFound, Unreachable


class RunRefused(AgentError):
    """A node refused its part of a run; what the request had started elsewhere was ended again."""

    def __init__(
        self,
        run_id: str,
        problems: Mapping[str, AgentError],
        ended: Iterable[str],
        left: Mapping[str, AgentError],
    ) -> None:
        refusals = "; ".join(f"{node}: {error}" for node, error in problems.items())
        names = ", ".join(ended)
        undone = f" What this request had started on {names} was ended again." if names else ""
        stuck = "".join(f" It may still be live on {node}: {error}" for node, error in left.items())
        super().__init__(f"run {run_id!r} was refused. {refusals}{undone}{stuck}", {"run_id": run_id})
        self.problems = dict(problems)
        self.left = dict(left)
        first = next(iter(problems.values()))
        self.cause_reason = first.reason
        self.cause = first


class FleetUnreachable(Unreachable):
    """None of the nodes asked has answered."""

    def __init__(self, problems: Mapping[str, AgentError]) -> None:
        names = ", ".join(problems)
        AgentError.__init__(
            self,
            f"none of the nodes answers ({names}). {next(iter(problems.values()))}",
            {"target": names},
        )
        self.problems = dict(problems)


class RunNotFoundAnywhere(RunNotFound):
    """No node that answered knows the run; some may not have answered."""

    def __init__(self, run_id: str, asked: Iterable[str], problems: Mapping[str, AgentError]) -> None:
        silent = "".join(f" {node} did not answer: {error}" for node, error in problems.items())
        AgentError.__init__(
            self,
            f"no run {run_id!r} on {', '.join(asked)}. `agentctl ps -a` lists the runs they know.{silent}",
            {"run_id": run_id, "node": ", ".join(asked)},
        )
        self.problems = dict(problems)


class StillRunning(DeadlineExceeded):
    """The run had not ended when the time to wait was over. It goes on."""

    def __init__(self, run_id: str, timeout_s: float, phase: str) -> None:
        AgentError.__init__(
            self,
            f"run {run_id!r} has not ended within {timeout_s:g} s: it is {phase} and goes on. "
            f"`agentctl wait {run_id}` waits on, `agentctl stop {run_id}` ends it.",
            {"target": run_id, "timeout": f"{timeout_s:g}"},
        )


class HubNotShared(AddressUnusable):
    """The hub of a run with several nodes answers on no address that the others can reach."""

    def __init__(self, node: str) -> None:
        AgentError.__init__(
            self,
            f"{node} tells no address where other nodes could reach the run's hub. Start agentd there with "
            "--listen HOST:PORT, or name another hub with --rdzv-endpoint.",
            {"address": node, "problem": "no address for others"},
        )
