"""Starting a run: the hub's node first, then all others at once; a refusal undoes its own doing only."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from agentd.api import convert
from agentd.api.errors import AgentError, DeviceInUse, InvalidSpec, ProgramUnusable, RunConflict, Unreachable
from agentd.api.types import Command, Phase, RoleSpec, RunSpec, RunStatus
from agentd.v1 import agent_service_pb2 as service
from agentd_client import plan as p
from agentd_client.failures import HubNotShared, RunRefused
from agentd_client.launch import Launch, Launched, launch
from agentd_client.nodes import node_of
from tests.unit.client.scripted import Scripted

A, B, C = (node_of(name) for name in ("a", "b", "c"))
SPEC = RunSpec(
    run_id="r", roles=(RoleSpec(command=Command(entrypoint="x.py")),), nodes=("a", "b", "c"), max_restarts=1
)
HUB_ADDRESS = "10.0.0.1:7460"


def started(created: bool = True, *, phase: Phase = Phase.RENDEZVOUS, hub: str = HUB_ADDRESS) -> Message:
    status = RunStatus(run_id="r", incarnation=77, phase=phase, hub_address=hub)
    return service.RunResponse(status=convert.run_status_to_message(status), created=created)


class Nodes:
    """What each target answers to Run; every Stop is accepted."""

    def __init__(self, **answers: Message | AgentError) -> None:
        self._answers = {node_of(name).target: answer for name, answer in answers.items()}

    def __call__(self, call: p.Call[Any]) -> Message | AgentError:
        if call.method.name == "Stop":
            return service.StopResponse()
        return self._answers.get(call.target, started())


def wish(*nodes: Any, **changes: Any) -> Launch:
    return Launch(spec=SPEC, nodes=nodes or (A, B, C), hub=A, request_id="q", **changes)


def start(nodes: Nodes, asked: Launch | None = None) -> tuple[Launched, Scripted]:
    driver = Scripted(nodes)
    return driver.run(launch(asked or wish())), driver


def run_requests(driver: Scripted) -> dict[str, service.RunRequest]:
    return {
        call.target: call.request for call in driver.calls if isinstance(call.request, service.RunRequest)
    }


def stops(driver: Scripted) -> dict[str, service.StopRequest]:
    return {
        call.target: call.request for call in driver.calls if isinstance(call.request, service.StopRequest)
    }


def test_the_hub_is_asked_first_and_all_others_at_once_with_its_answer() -> None:
    launched, driver = start(Nodes())
    assert driver.batches == [("Run a:7460",), ("Run b:7460", "Run c:7460")]
    requests = run_requests(driver)
    assert {request.request_id for request in requests.values()} == {"q"}
    first, other = requests["a:7460"], requests["b:7460"]
    assert (first.incarnation, first.hub_address, first.node_name) == (0, "", "a")
    assert (other.incarnation, other.hub_address, other.node_name) == (77, HUB_ADDRESS, "b")
    assert set(launched.starts) == {"a", "b", "c"}
    assert not launched.problems


def test_a_hub_that_is_not_in_the_list_takes_no_part() -> None:
    asked = Launch(spec=SPEC, nodes=(A, B, C), hub=node_of("h"), request_id="q")
    _, driver = start(Nodes(), asked)
    assert driver.batches == [("Run h:7460",), ("Run a:7460", "Run b:7460", "Run c:7460")]
    assert run_requests(driver)["h:7460"].node_name == ""


def test_a_node_that_does_not_answer_is_missing_and_the_run_stays() -> None:
    launched, driver = start(Nodes(b=Unreachable("b:7460")))
    assert [node.name for node in launched.missing()] == ["b"]
    assert not stops(driver)
    # It was asked three times, always by the same request.
    asked = [call.request for call in driver.calls if call.target == "b:7460"]
    assert len(asked) == 3
    assert len({request.SerializeToString(deterministic=True) for request in asked}) == 1


def test_a_refusal_ends_what_this_request_has_started() -> None:
    with pytest.raises(RunRefused) as refused:
        start(driver_nodes := Nodes(c=ProgramUnusable("c", "/x.py", "it is not there")))
    assert "c: node c: /x.py: it is not there" in str(refused.value)
    assert isinstance(refused.value.cause, ProgramUnusable)
    driver = Scripted(driver_nodes)
    with pytest.raises(RunRefused):
        driver.run(launch(wish()))
    assert set(stops(driver)) == {"a:7460", "b:7460"}
    for stop in stops(driver).values():
        assert (stop.incarnation, stop.scope) == (77, service.STOP_SCOPE_TERMINATE)


def test_a_refusal_leaves_alone_what_was_there_before() -> None:
    driver = Scripted(Nodes(a=started(created=False), b=started(), c=DeviceInUse(0, "other")))
    with pytest.raises(RunRefused):
        driver.run(launch(wish()))
    assert {target: stop.scope for target, stop in stops(driver).items()} == {
        "b:7460": service.STOP_SCOPE_LEAVE
    }


def test_a_node_that_may_have_started_a_new_run_is_told_of_its_end_too() -> None:
    driver = Scripted(Nodes(b=Unreachable("b:7460"), c=DeviceInUse(0, "other")))
    with pytest.raises(RunRefused):
        driver.run(launch(wish()))
    assert set(stops(driver)) == {"a:7460", "b:7460"}


def test_what_the_hub_refuses_is_raised_as_it_is_and_nobody_else_is_asked() -> None:
    driver = Scripted(Nodes(a=RunConflict("r", ["max_restarts"])))
    with pytest.raises(RunConflict, match="max_restarts"):
        driver.run(launch(wish()))
    assert driver.batches == [("Run a:7460",)]


def test_a_run_that_has_ended_by_this_request_is_told_and_not_started_again() -> None:
    launched, driver = start(Nodes(a=started(created=False, phase=Phase.SUCCEEDED)))
    assert launched.status.phase is Phase.SUCCEEDED
    assert driver.batches == [("Run a:7460",)]


@pytest.mark.parametrize("hub", ["", "unix:/run/agentd.sock", "127.0.0.1:7460", "[::1]:7460"])
def test_a_hub_that_other_machines_cannot_reach_is_refused_at_once(hub: str) -> None:
    driver = Scripted(Nodes(a=started(hub=hub)))
    with pytest.raises(RunRefused) as refused:
        driver.run(launch(wish()))
    assert isinstance(refused.value.cause, HubNotShared)
    assert list(stops(driver)) == ["a:7460"]


def test_nodes_of_one_machine_may_share_a_hub_of_that_machine() -> None:
    one, two = node_of("unix:/a.sock"), node_of("127.0.0.1:1")
    asked = Launch(spec=SPEC, nodes=(one, two), hub=one, request_id="q")
    driver = Scripted(lambda call: started(hub="unix:/a.sock"))
    assert set(driver.run(launch(asked)).starts) == {one.name, two.name}


def test_an_error_of_the_request_itself_reaches_the_caller() -> None:
    with pytest.raises(InvalidSpec, match="run_id"):
        start(Nodes(a=InvalidSpec("run_id", "is no name")))
