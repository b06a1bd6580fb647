"""Drains of nodes: asked of many at once, and followed until nothing runs there any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from agentd.api import convert
from agentd.api.errors import AgentError
from agentd.api.types import Drain, DrainReport, DrainRequest, NodeInfo
from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd_client import calls, wire
from agentd_client.nodes import Node
from agentd_client.plan import Call, Emit, Pause, Plan, call_all, clock
from agentd_client.report import NodeBack, NodeProblem, PerNode
from agentd_client.retry import call_one

LOOK_S: Final = 0.5
"""How often a node that is followed is asked what is left there."""


class DrainProgress(NamedTuple):
    """A drained node as it is now: it is empty once `info.groups` is."""

    node: str
    info: NodeInfo

    @property
    def empty(self) -> bool:
        """Whether nothing runs there any more."""
        return not self.info.groups

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for: it is empty, or somebody has given it back."""
        return self.empty or self.info.drain is None


DrainEvent = DrainProgress | NodeProblem | NodeBack
"""What `Fleet.follow_drain` gives."""


def drain(target: str, request: DrainRequest, timeout_s: float) -> Plan[DrainReport]:
    """Drain a node."""
    answer = yield from call_one(drain_call(target, request, timeout_s))
    return convert.drain_report_from_message(answer)


def undrain(target: str, timeout_s: float) -> Plan[Drain | None]:
    """Give a node back; what was in force until then."""
    return drain_before((yield from call_one(undrain_call(target, timeout_s))))


def drain_call(target: str, request: DrainRequest, timeout_s: float) -> Call[service.DrainResponse]:
    """Drain."""
    message = convert.drain_request_to_message(request)
    return Call(target=target, method=wire.DRAIN, request=message, timeout_s=timeout_s)


def undrain_call(target: str, timeout_s: float) -> Call[service.UndrainResponse]:
    """Undrain."""
    return Call(target=target, method=wire.UNDRAIN, request=service.UndrainRequest(), timeout_s=timeout_s)


def drain_before(answer: service.UndrainResponse) -> Drain | None:
    """What was in force until an Undrain."""
    return convert.drain_from_message(answer.drain) if answer.HasField("drain") else None


def drain_nodes(nodes: Sequence[Node], request: DrainRequest, timeout_s: float) -> Plan[PerNode[DrainReport]]:
    """Drain all of them."""
    result = yield from calls.ask_nodes(nodes, [drain_call(n.target, request, timeout_s) for n in nodes])
    reports = {name: convert.drain_report_from_message(answer) for name, answer in result.answers.items()}
    return PerNode(answers=reports, problems=result.problems)


def undrain_nodes(nodes: Sequence[Node], timeout_s: float) -> Plan[PerNode[Drain | None]]:
    """Give all of them back."""
    result = yield from calls.ask_nodes(nodes, [undrain_call(n.target, timeout_s) for n in nodes])
    before = {name: drain_before(answer) for name, answer in result.answers.items()}
    return PerNode(answers=before, problems=result.problems)


@dataclass(slots=True)
class _Followed:
    node: Node
    heard_at: float
    shown: NodeInfo | None = None
    problem: AgentError | None = None


def follow_drain(nodes: Sequence[Node], timeout_s: float, patience_s: float) -> Plan[PerNode[NodeInfo]]:
    """Until each node is empty, given back, or silent for too long. Emits `DrainEvent`s.

    The result has each node as it was at the end, and why nobody can say that of others.
    """
    now = yield from clock()
    open_ = [_Followed(node, now) for node in nodes]
    answers: dict[str, NodeInfo] = {}
    problems: dict[str, AgentError] = {}
    while open_:
        outcomes = yield from call_all([calls.node_call(f.node.target, timeout_s) for f in open_])
        now = yield from clock()
        left = []
        for followed, outcome in zip(open_, outcomes, strict=True):
            if isinstance(outcome, AgentError):
                yield from _silent(followed, outcome)
                if now - followed.heard_at > patience_s:
                    problems[followed.node.name] = outcome
                    continue
            elif (yield from _told(followed, convert.node_info_from_message(outcome), now)):
                assert followed.shown is not None
                answers[followed.node.name] = followed.shown
                continue
            left.append(followed)
        open_ = left
        if open_:
            yield Pause(LOOK_S)
    return PerNode(answers=answers, problems=problems)


def _silent(followed: _Followed, error: AgentError) -> Plan[None]:
    if followed.problem is None:
        yield Emit(NodeProblem(node=followed.node.name, error=error))
    followed.problem = error


def _told(followed: _Followed, info: NodeInfo, now: float) -> Plan[bool]:
    """Show what is new; whether there is nothing more to wait for."""
    followed.heard_at = now
    if followed.problem is not None:
        followed.problem = None
        yield Emit(NodeBack(node=followed.node.name))
    progress = DrainProgress(followed.node.name, info)
    if followed.shown is None or _facts(info) != _facts(followed.shown):
        yield Emit(progress)
    followed.shown = info
    return progress.over


def _facts(info: NodeInfo) -> NodeInfo:
    """What of a node is about its drain."""
    return replace(NodeInfo(node_id=info.node_id), groups=info.groups, hub_of=info.hub_of, drain=info.drain)
