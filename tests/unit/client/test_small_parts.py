"""Names of nodes, passed environments, repeated calls, and the surface against the proto."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from google.protobuf.message import Message

from agentd.api.errors import AgentdEnding, AgentError, InvalidSpec, Unreachable
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as rendezvous
from agentd_client import AsyncAgentClient, AsyncFleet, AsyncRunHandle, wire
from agentd_client.calls import node_call, signal_call
from agentd_client.client import AgentClient, Fleet, RunHandle
from agentd_client.environment import choose_environment
from agentd_client.nodes import by_name, local_node, node_of, nodes_of
from agentd_client.retry import call_each
from tests.unit.client.scripted import Scripted

PAIRS = [(AgentClient, AsyncAgentClient), (Fleet, AsyncFleet), (RunHandle, AsyncRunHandle)]


@pytest.mark.parametrize(
    ("text", "name", "target"),
    [
        ("a", "a", "a:7460"),
        ("a:7460", "a", "a:7460"),
        (" a:99 ", "a:99", "a:99"),
        ("[::1]", "[::1]", "[::1]:7460"),
        ("unix:/x.sock", "unix:/x.sock", "unix:/x.sock"),
    ],
)
def test_spellings_of_one_target_give_one_name(text: str, name: str, target: str) -> None:
    assert (node_of(text).name, node_of(text).target) == (name, target)


def test_a_node_named_twice_is_refused_by_name() -> None:
    with pytest.raises(InvalidSpec, match="a:7460 is named twice"):
        nodes_of(["a", "b", "a:7460"])


@pytest.mark.parametrize("form", [Fleet, AsyncFleet])
def test_a_fleet_of_no_nodes_is_refused_when_it_is_made(form: type[Any]) -> None:
    with pytest.raises(InvalidSpec, match="no node is named"):
        form([])


def test_names_of_a_mapping_are_the_callers() -> None:
    nodes = nodes_of({"first": "10.0.0.1", "second": "10.0.0.2:1"})
    assert by_name(nodes, "second").target == "10.0.0.2:1"
    assert by_name(nodes, "10.0.0.1:7460").name == "first"
    assert by_name(nodes, "elsewhere").target == "elsewhere:7460"


def test_the_default_node_is_the_users_own_socket() -> None:
    assert local_node({"XDG_RUNTIME_DIR": "/run/user/7"}).target == "unix:/run/user/7/agentd/agentd.sock"


def test_a_unix_socket_gets_the_whole_environment_and_the_network_what_is_named() -> None:
    passed = choose_environment({"NCCL_DEBUG": "INFO", "SECRET": "x", "BAD": "\udcff", "PYTHONPATH": "/p"})
    assert dict(passed.of(node_of("unix:/x"))) == {"NCCL_DEBUG": "INFO", "SECRET": "x", "PYTHONPATH": "/p"}
    assert dict(passed.of(node_of("a"))) == {"NCCL_DEBUG": "INFO", "PYTHONPATH": "/p"}
    assert dict(choose_environment({"A_1": "x", "B": "y"}, ["A_*"]).remote) == {"A_1": "x"}


def test_only_calls_that_nobody_answered_are_made_again() -> None:
    answers: dict[str, list[Message | AgentError]] = {
        "a": [Unreachable("a"), service.GetNodeResponse(node_id="a")],
        "b": [AgentdEnding("b")],
        "c": [service.GetNodeResponse(node_id="c")],
    }
    driver = Scripted(lambda call: answers[call.target].pop(0))
    a, b, c = driver.run(call_each([node_call(target, 10) for target in "abc"]))
    assert isinstance(a, service.GetNodeResponse)
    assert isinstance(b, AgentdEnding)
    assert isinstance(c, service.GetNodeResponse)
    assert driver.batches[1] == ("GetNode a",)


def test_repetitions_end_by_the_first_deadline() -> None:
    driver = Scripted(lambda call: Unreachable(call.target))
    (outcome,) = driver.run(call_each([node_call("a", 0.4)]))
    assert isinstance(outcome, Unreachable)
    timeouts = [call.timeout_s for call in driver.calls]
    assert timeouts == [0.4, pytest.approx(0.15)]


def test_a_signal_is_never_sent_twice() -> None:
    driver = Scripted(lambda call: Unreachable(call.target))
    driver.run(call_each([signal_call("a", "r", 1, 10, [], 10)]))
    assert len(driver.calls) == 1


def test_the_client_knows_every_call_of_the_api_but_the_nodes_own() -> None:
    served = {
        f"/{description.full_name}/{method.name}"
        for file in (service.DESCRIPTOR, rendezvous.DESCRIPTOR)
        for description in file.services_by_name.values()
        for method in description.methods
    }
    known = {method.path for method in wire.METHODS if "/agentd." in method.path}
    assert served - known == {"/agentd.v1.RendezvousService/Join"}
    assert known <= served


def test_every_call_has_a_method_of_its_name_on_the_client_of_one_node() -> None:
    special = {"Check": "health", "Watch": "watch", "GetNode": "get_node", "RenewLease": "renew_lease"}
    special |= {"ListEvents": "list_events", "ListEndedRuns": "list_ended_runs"}
    for method in wire.METHODS:
        assert hasattr(AgentClient, special.get(method.name, method.name.lower()))


@pytest.mark.parametrize(("sync", "aio"), PAIRS, ids=lambda kind: kind.__name__)
def test_the_two_forms_have_one_surface(sync: type[Any], aio: type[Any]) -> None:
    def surface(kind: type[Any]) -> dict[str, list[str]]:
        public = {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}
        return {
            name: list(inspect.signature(member).parameters) if callable(member) else ["property"]
            for name, member in public.items()
        }

    assert surface(sync) == surface(aio)
    for name, member in inspect.getmembers(sync):
        if not name.startswith("_"):
            assert member.__doc__, f"{sync.__name__}.{name} has no documentation"
