"""No member asks for a place while the old round of another lingers on its node; what waits is not lost."""

from __future__ import annotations

import pytest

from agentd.groups.inturn import InTurn


class Hub:
    """Hears members. A `Member`."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ready(self, role: str, local_world_size: int, master_port: int, round_: int) -> None:
        self.heard.append(f"{role} ready {master_port}")

    def gone(self, role: str, round_: int, master_port: int, unkillable: str = "") -> None:
        self.heard.append(f"{role} gone {round_} {master_port}{unkillable}")

    def failed(self, role: str, round_: int, failures: object, reason: str) -> None:
        self.heard.append(f"{role} failed {reason}")

    def done(self, role: str, round_: int) -> None:
        self.heard.append(f"{role} done")

    def leave(self, role: str, reason: str, *, failed: bool = False) -> None:
        self.heard.append(f"{role} leaves")


class Node:
    def __init__(self) -> None:
        self.lingering = ""
        """The role whose old round lives here."""
        self.hub = Hub()
        self.members = InTurn(self.hub, lambda role: self.lingering not in ("", role))


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_node_whose_rounds_are_in_order_says_everything_at_once(node: Node) -> None:
    node.members.ready("trainer", 2, 500, 0)
    node.members.gone("trainer", 1, 501)
    assert node.hub.heard == ["trainer ready 500", "trainer gone 1 501"]


def test_wishes_for_a_place_wait_for_the_other_roles_round_and_only_the_newest_is_said(node: Node) -> None:
    node.lingering = "evaluator"
    node.members.gone("trainer", 1, 501)
    node.members.ready("trainer", 2, 502, 1)
    node.members.go_on()
    assert node.hub.heard == []
    node.members.gone("evaluator", 1, 600)
    node.lingering = ""
    node.members.go_on()
    node.members.go_on()
    assert node.hub.heard == ["evaluator gone 1 600", "trainer ready 502"]


def test_what_is_no_wish_never_waits(node: Node) -> None:
    node.lingering = "evaluator"
    node.members.failed("trainer", 1, [], "lost")
    node.members.done("trainer", 1)
    node.members.leave("trainer", "asked to")
    node.members.gone("trainer", 1, 501, " stuck")
    assert node.hub.heard == [
        "trainer failed lost",
        "trainer done",
        "trainer leaves",
        "trainer gone 1 501 stuck",
    ]


def test_a_member_that_ends_wishes_nothing_any_more(node: Node) -> None:
    node.lingering = "evaluator"
    node.members.ready("trainer", 2, 500, 0)
    node.members.gone("trainer", 1, 0)
    node.lingering = ""
    node.members.go_on()
    assert node.hub.heard == ["trainer gone 1 0"]
