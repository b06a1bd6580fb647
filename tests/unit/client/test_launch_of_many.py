"""Run for many nodes, made in little time: each is what it would be alone."""

from __future__ import annotations

import pytest

from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd_client.environment import PassedEnvironment
from agentd_client.launch import Launch, Launched
from agentd_client.nodes import Node, node_of

REMOTE = (node_of("b"), node_of("c"), node_of("d:7461"))
LOCAL = node_of("unix:/run/agentd.sock")
ENVIRONMENT = PassedEnvironment(local={"HOME": "/root", "A": "1"}, remote={"NCCL_DEBUG": "INFO"})


def launched(*listed: Node) -> Launched:
    hub = node_of("a")
    spec = RunSpec(
        run_id="r",
        roles=(RoleSpec(command=Command(entrypoint="x.py")),),
        nodes=("a", *(node.name for node in listed)),
    )
    wish = Launch(
        spec=spec, nodes=(hub, *listed), hub=hub, request_id="q", environment=ENVIRONMENT, timeout_s=3.0
    )
    status = RunStatus(run_id="r", incarnation=7, phase=Phase.RENDEZVOUS, hub_address="a:7460")
    return Launched(launch=wish, status=status, starts={}, problems={})


@pytest.mark.parametrize(
    "nodes",
    [(), REMOTE[:1], REMOTE, (LOCAL, *REMOTE), (*REMOTE, LOCAL)],
    ids=["none", "one", "alike", "a socket first", "a socket last"],
)
def test_the_runs_of_many_are_those_of_each_alone(nodes: tuple[Node, ...]) -> None:
    start = launched(*nodes)
    assert start.run_calls(nodes) == [start.run_call(node) for node in nodes]


def test_node_that_the_list_lacks_has_no_name_in_its_run() -> None:
    stranger = node_of("z")
    start = launched(*REMOTE)
    assert [call.request for call in start.run_calls((*REMOTE, stranger))] == [
        start.run_call(node).request for node in (*REMOTE, stranger)
    ]
    assert start.launch.name_in_spec(stranger) == ""
