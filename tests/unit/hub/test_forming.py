"""When a round forms, who is in it, and in which order (rules 1, 4 and 5)."""

from __future__ import annotations

import pytest

from agentd.api.types import Phase, RendezvousSpec
from agentd.hub.messages import MemberWaiting
from agentd.hub.ranks import master_host
from tests.unit.hub.rig import Rig, make_spec


def test_round_forms_the_moment_the_last_listed_member_is_there() -> None:
    rig = Rig(make_spec(["a", "b", "c"]))
    rig.join("a", "b")
    assert rig.placed() == {}
    assert rig.status.missing == ("c",)
    assert "2 of 3 members joined; missing: c" in rig.status.reason
    rig.join("c")
    assert sorted(rig.placed()) == ["a", "b", "c"]
    assert rig.phase() is Phase.RUNNING
    assert rig.status.round == 1


@pytest.mark.parametrize("arrival", [["c", "a", "b"], ["b", "c", "a"]])
def test_first_round_is_ordered_by_the_node_list_not_by_arrival(arrival: list[str]) -> None:
    rig = Rig(make_spec(["a", "b", "c"]))
    rig.join(*arrival)
    places = rig.placed()
    assert [places[node].group_rank for node in "abc"] == [0, 1, 2]
    assert {place.master_addr for place in places.values()} == {"a.example"}


def test_listed_names_are_matched_by_the_name_the_caller_gave_the_node() -> None:
    rig = Rig(make_spec(["host1", "host2"]))
    rig.hello("id-2", name="host2")
    rig.ready("id-2")
    rig.hello("id-1", name="host1")
    rig.ready("id-1")
    assert {node: place.group_rank for node, place in rig.placed().items()} == {"id-1": 0, "id-2": 1}


def test_two_roles_of_unequal_size_get_role_major_ranks() -> None:
    rig = Rig(make_spec(["a", "b"], roles=["trainer", "reader"]))
    rig.hello("b")
    rig.hello("a")
    rig.ready("b", "reader", size=1)
    rig.ready("b", "trainer", size=2)
    rig.ready("a", "reader", size=1)
    rig.ready("a", "trainer", size=4)
    places = rig.placed()
    table = {
        name: (place.group_rank, place.rank_base, place.role_rank_base, place.role_world_size)
        for name, place in places.items()
    }
    assert table == {
        "a/trainer": (0, 0, 0, 6),
        "b/trainer": (1, 4, 4, 6),
        "a/reader": (2, 6, 0, 2),
        "b/reader": (3, 7, 1, 2),
    }
    assert {place.world_size for place in places.values()} == {8}
    assert {place.group_world_size for place in places.values()} == {4}


def test_everyone_is_told_the_port_that_rank_0_offered() -> None:
    rig = Rig(make_spec(["a", "b"]))
    rig.hello("a")
    rig.hello("b")
    rig.ready("b", port=4002)
    rig.ready("a", port=4001)
    assert {place.master_port for place in rig.placed().values()} == {4001}


def test_a_repeated_ready_replaces_the_port_and_is_no_second_member() -> None:
    rig = Rig(make_spec(fewest=2, most=2))
    rig.hello("a")
    rig.ready("a", port=4001)
    rig.ready("a", port=4009)
    assert rig.placed() == {}
    rig.join("b")
    assert {place.master_port for place in rig.placed().values()} == {4009}


def test_list_with_room_for_more_starts_at_once_with_the_listed() -> None:
    rig = Rig(make_spec(["a", "b"], fewest=2, most=4))
    rig.join("a", "b")
    assert sorted(rig.placed()) == ["a", "b"]


def test_list_that_is_not_complete_forms_with_enough_after_last_call() -> None:
    rig = Rig(make_spec(["a", "b", "c"], fewest=2, most=3))
    rig.join("a", "c")
    rig.wait(4.9)
    assert rig.placed() == {}
    rig.wait(0.2)
    assert sorted(rig.placed()) == ["a", "c"]
    assert rig.status.missing == ("b",)


def test_open_membership_waits_for_last_call_from_when_it_had_enough() -> None:
    rig = Rig(make_spec(fewest=2, most=4))
    rig.join("a")
    rig.wait(60)
    rig.join("b")
    rig.wait(4.9)
    rig.join("c")
    assert rig.placed() == {}
    rig.wait(0.2)
    assert sorted(rig.placed()) == ["a", "b", "c"]


def test_last_call_begins_anew_when_there_are_not_enough_any_more() -> None:
    rig = Rig(make_spec(fewest=2, most=4))
    rig.join("a", "b")
    rig.wait(3)
    rig.leave("b")
    rig.wait(3)
    rig.join("c")
    rig.wait(4.9)
    assert rig.placed() == {}
    rig.wait(0.2)
    assert sorted(rig.placed()) == ["a", "c"]


@pytest.mark.parametrize("sizes", [(2, 2), (0, 2), (2, 0)])
def test_open_membership_of_fixed_size_never_waits_for_last_call(sizes: tuple[int, int]) -> None:
    rig = Rig(make_spec(fewest=sizes[0], most=sizes[1]))
    rig.join("a", "b")
    assert sorted(rig.placed()) == ["a", "b"]


def test_open_run_of_no_said_size_needs_each_role_once() -> None:
    rig = Rig(make_spec(roles=["one", "two"]))
    rig.hello("a")
    rig.ready("a", "one")
    assert rig.placed() == {}
    rig.ready("a", "two")
    assert sorted(rig.placed()) == ["a/one", "a/two"]


def test_beyond_max_members_wait_as_spares_and_are_told_so() -> None:
    rig = Rig(make_spec(fewest=2, most=2))
    rig.join("a", "b", "c")
    assert sorted(rig.placed()) == ["a", "b"]
    [(node, waiting)] = rig.take(MemberWaiting)
    assert node == "c"
    assert "full (2 members)" in waiting.reason
    assert rig.status.spares == ("c",)
    assert rig.status.nodes[2].phase is Phase.WAITING


def test_too_few_members_fail_the_run_naming_expected_joined_and_missing() -> None:
    spec = make_spec(["a", "b", "c"], rendezvous=RendezvousSpec(join_timeout=60.0))
    rig = Rig(spec)
    rig.join("a", "c")
    rig.wait(59.9)
    assert rig.phase() is Phase.RENDEZVOUS
    rig.wait(0.2)
    assert rig.phase() is Phase.FAILED
    sentence = rig.finished()["a"].reason
    assert "only 2 of at least 3" in sentence
    assert "Expected: a, b, c; joined: a, c; missing: b." in sentence
    assert "60 s" in sentence


def test_join_timeout_of_open_membership_says_how_many_lack() -> None:
    rig = Rig(make_spec(fewest=3, most=4))
    rig.join("a")
    rig.wait(601)
    assert "missing: 2 more" in rig.finished()["a"].reason


def test_node_whose_stream_broke_while_forming_is_not_given_a_place() -> None:
    rig = Rig(make_spec(fewest=2, most=2))
    rig.join("a")
    rig.break_stream("a")
    rig.join("b")
    assert rig.placed() == {}
    rig.join("a")
    assert sorted(rig.placed()) == ["a", "b"]


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("trainer-3.example:7460", "trainer-3.example"),
        ("10.0.0.7:9", "10.0.0.7"),
        ("[fd00::1]:7460", "fd00::1"),
        ("unix:/run/agentd/agentd.sock", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("0.0.0.0:7460", "127.0.0.1"),
    ],
)
def test_master_address_is_the_host_that_rank_0_advertises(address: str, host: str) -> None:
    assert master_host(address) == host


def test_round_is_journalled_before_anybody_is_told() -> None:
    rig = Rig(make_spec(["a"]))
    rig.hello("a")
    rig.log.clear()
    rig.ready("a")
    assert [type(effect).__name__ for effect in rig.log] == ["Journal", "Send", "Publish"]
    assert rig.records[-1].round == 1


def test_a_run_of_one_node_that_cannot_take_part_fails_at_once() -> None:
    rig = Rig(make_spec())
    rig.hello("a")
    rig.give_up("a")
    assert rig.status.phase is Phase.FAILED
    assert rig.status.reason == "a cannot take part: its disk is full"


def test_a_listed_node_that_cannot_take_part_fails_a_run_that_needs_it_and_no_other() -> None:
    needed = Rig(make_spec(["a", "b"]))
    needed.join("a")
    needed.hello("b")
    needed.give_up("b")
    assert needed.status.reason == "b cannot take part: its disk is full"

    spared = Rig(make_spec(["a", "b", "c"], fewest=2, most=3))
    spared.join("a")
    spared.hello("b")
    spared.give_up("b")
    assert spared.status.phase is Phase.RENDEZVOUS
    spared.join("c")
    spared.wait(6)
    assert sorted(spared.placed()) == ["a", "c"]


def test_an_open_run_waits_for_others_when_one_cannot_take_part() -> None:
    rig = Rig(make_spec(fewest=2, most=4))
    rig.hello("a")
    rig.give_up("a")
    rig.join("b", "c")
    rig.wait(6)
    assert sorted(rig.placed()) == ["b", "c"]
