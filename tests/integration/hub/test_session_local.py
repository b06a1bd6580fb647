"""A hub and its nodes' sessions in one process, on a clock that jumps: exact times, no waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agentd.api.errors import NodeIdTaken, NotSupported, RunNotFound, StaleIncarnation, StaleSession
from agentd.api.types import Phase
from agentd.core import defaults
from agentd.hub.messages import MemberReady, SessionHello
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import INCARNATION, RUN, Node, Stage, make_spec, until

Scenario = Callable[[], Coroutine[Any, Any, None]]


def on_virtual_time(scenario: Scenario) -> Callable[[], None]:
    def test() -> None:
        virtual_time.run(scenario())

    test.__name__ = scenario.__name__
    test.__doc__ = scenario.__doc__
    return test


def now() -> float:
    return asyncio.get_running_loop().time()


@on_virtual_time
async def test_run_from_first_hello_to_success() -> None:
    async with Stage(make_spec("a", "b", "c")) as stage:
        a, b, c = stage.add("a", "b", "c")
        await stage.round_is(1, a, b, c)
        assert [node.last.group_rank for node in (a, b, c)] == [0, 1, 2]
        assert {node.last.master_addr for node in (a, b, c)} == {"a.example"}
        assert a.spec == stage.spec
        for node in (a, b, c):
            node.succeed()
        await stage.phase_is(Phase.SUCCEEDED)
        await asyncio.gather(*(node.session.wait_over() for node in (a, b, c)))
        for node in (a, b, c):
            assert node.finished is not None
            assert node.finished.phase is Phase.SUCCEEDED
            assert node.view is not None
            assert node.view.phase is Phase.SUCCEEDED
            assert node.view.finished_at > 0


@on_virtual_time
async def test_failure_restarts_all_in_a_new_round_once() -> None:
    async with Stage(make_spec("a", "b", "c", max_restarts=1)) as stage:
        a, b, c = stage.add("a", "b", "c")
        await stage.round_is(1, a, b, c)
        b.fail()
        c.fail()
        await stage.round_is(2, a, b, c)
        assert {node.last.restart_count for node in (a, b, c)} == {1}
        c.fail(rank=5)
        await stage.phase_is(Phase.FAILED)
        assert a.finished is not None
        assert a.finished.first_failure is not None
        assert (a.finished.first_failure.node_id, a.finished.first_failure.rank) == ("c", 5)


@on_virtual_time
async def test_slow_stop_holds_the_next_round_back_everywhere() -> None:
    async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        b.slow_stop = 20.0
        began = now()
        a.fail()
        await until(lambda: a.running == 0)
        while b.running == 1:
            assert a.running == 0
            await asyncio.sleep(0.1)
        await stage.round_is(2, a, b)
        assert 20.0 <= now() - began < 20.2


@on_virtual_time
async def test_vanished_node_is_lost_after_one_lease_and_the_others_go_on() -> None:
    async with Stage(make_spec("a", "b", "c", fewest=2, most=3)) as stage:
        a, b, c = stage.add("a", "b", "c")
        await stage.round_is(1, a, b, c)
        began = now()
        await c.crash()
        await stage.round_is(2, a, b)
        # One lease for the broken stream, and one heartbeat for others that went with it.
        assert 6.0 <= now() - began < 6.5
        assert a.last.world_size == 4
        assert stage.status.membership_changes == 1
        assert stage.status.restart_count == 0


@on_virtual_time
async def test_silent_node_with_an_open_stream_is_lost_after_one_lease() -> None:
    async with Stage(make_spec("a", "b", fewest=1, most=2)) as stage:
        (a,) = stage.add("a")
        hello = SessionHello(run_id=RUN, incarnation=INCARNATION, node_id="b", agent_uid="x", session_epoch=1)
        mute = stage.hub.open_session(hello)
        await mute.send(MemberReady(role="default", local_world_size=2, master_port=9, round=0))
        await stage.round_is(1, a)
        began = now()
        await stage.round_is(2, a)
        assert 5.0 <= now() - began < 6.6
        told = [type(message).__name__ async for message in mute]
        assert told[:2] == ["SessionWelcome", "Assignment"], "the stream was ended after what it was told"
        await mute.close()


@on_virtual_time
async def test_broken_stream_costs_nothing_when_the_node_is_back_within_the_lease() -> None:
    async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        link = b.link
        await link.cut()
        await until(lambda: any(node.detached for node in stage.status.nodes))
        await asyncio.sleep(3)
        link.up = True
        await until(lambda: "hub found" in b.log)
        await asyncio.sleep(60)
        assert stage.status.phase is Phase.RUNNING
        assert (a.running, b.running, stage.status.round) == (1, 1, 1)
        assert not any(node.detached for node in stage.status.nodes)


def test_the_hub_logs_who_went_who_came_back_and_who_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
            a, b = stage.add("a", "b")
            await stage.round_is(1, a, b)
            await b.link.cut()
            await until(lambda: any(node.detached for node in stage.status.nodes))
            b.link.up = True
            await until(lambda: "hub found" in b.log)
            await b.link.cut()
            await until(lambda: any(node.phase is Phase.LOST for node in stage.status.nodes))

    with caplog.at_level("INFO", "agentd.hub.run"):
        virtual_time.run(scenario())
    told = [record.getMessage() for record in caplog.records if getattr(record, "node_id", "") == "b"]
    assert told == ["node out of touch", "node is back", "node out of touch", "node lost"]


@on_virtual_time
async def test_failure_said_into_a_broken_stream_is_heard_when_the_node_is_back() -> None:
    async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        link = b.link
        await link.cut()
        await until(lambda: "hub lost" in b.log)
        b.fail()
        link.up = True
        await stage.round_is(2, a, b)
        failure = stage.status.first_failure
        assert failure is not None
        assert failure.node_id == "b"


@on_virtual_time
async def test_success_said_into_a_broken_stream_is_heard_when_the_node_is_back() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        a.succeed()
        await b.link.cut()
        await until(lambda: "hub lost" in b.log)
        b.succeed()
        b.link.up = True
        await stage.phase_is(Phase.SUCCEEDED)


@on_virtual_time
async def test_node_that_was_cut_off_for_long_stops_its_workers_first_and_rejoins() -> None:
    async with Stage(make_spec("a", "b", fewest=1, most=2)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        await b.link.cut()
        await stage.round_is(2, a)
        assert b.running == 1, "its workers go on while it is cut off"
        b.link.up = True
        await stage.round_is(3, a, b)
        assert "stop 1" in b.log
        assert (a.last.group_rank, b.last.group_rank) == (0, 1)


@on_virtual_time
async def test_spare_steps_in_when_a_member_leaves() -> None:
    async with Stage(make_spec("a", "b", fewest=2, most=2)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        (spare,) = stage.add("c")
        await until(lambda: "waiting" in spare.log)
        assert stage.status.spares == ("c",)
        await a.leave()
        await stage.round_is(2, b, spare)
        assert (b.last.group_rank, spare.last.group_rank) == (0, 1)


@on_virtual_time
async def test_run_grows_and_shrinks_and_ends_well() -> None:
    async with Stage(make_spec("a", "b", fewest=2, most=4)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        (c,) = stage.add("c")
        await stage.round_is(2, a, b, c)
        await b.leave()
        await stage.round_is(3, a, c)
        a.succeed()
        c.succeed()
        await stage.phase_is(Phase.SUCCEEDED)
        assert stage.status.membership_changes == 2


@on_virtual_time
async def test_done_node_is_asked_to_run_again_when_another_fails() -> None:
    async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        a.succeed()
        await asyncio.sleep(1)
        assert "stop 1" not in a.log
        b.fail()
        await stage.round_is(2, a, b)


@on_virtual_time
async def test_terminate_stops_everyone_with_its_grace_and_is_stopping_until_they_are_gone() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        b.slow_stop = 8.0
        answer = stage.hub.terminate(RUN, grace=10.0, reason="enough")
        assert answer.phase is Phase.STOPPING
        await until(lambda: a.running == 0)
        assert a.finished is not None
        assert (a.finished.stop_grace, a.finished.reason) == (10.0, "enough")
        assert stage.status.phase is Phase.STOPPING
        await stage.phase_is(Phase.STOPPED)
        assert b.running == 0


@on_virtual_time
async def test_late_node_of_an_ended_run_is_told_so() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        (a,) = stage.add("a")
        await until(lambda: "welcome" in a.log)
        stage.hub.terminate(RUN, reason="enough")
        await stage.phase_is(Phase.STOPPED)
        (late,) = stage.add("b")
        await late.session.wait_over()
        assert late.finished is not None
        assert (late.finished.phase, late.finished.reason) == (Phase.STOPPED, "enough")
        assert late.assignments == []


@on_virtual_time
async def test_too_few_nodes_fail_naming_the_missing() -> None:
    async with Stage(make_spec("a", "b", "c", join_timeout=60.0)) as stage:
        (a,) = stage.add("a")
        deadline = stage.hub.describe(RUN).join_deadline
        assert deadline > 0
        await until(lambda: a.view is not None and a.view.join_deadline > 0)
        assert a.view is not None
        assert a.view.join_deadline == pytest.approx(deadline, abs=30)
        await stage.phase_is(Phase.FAILED, within=61)
        assert stage.status.join_deadline == 0
        await a.session.wait_over()
        assert a.finished is not None
        assert "missing: b, c" in a.finished.reason


@on_virtual_time
async def test_every_node_sees_who_is_missing_without_a_flood_of_views() -> None:
    async with Stage(make_spec("a", "b", "c", "d", "e")) as stage:
        (a,) = stage.add("a")
        views = 0
        before = a.on_view

        def count(status: Any) -> None:
            nonlocal views
            views += 1
            before(status)

        a.on_view = count  # type: ignore[method-assign]
        await until(lambda: a.view is not None and a.view.missing == ("b", "c", "d", "e"))
        stage.add("b", "c", "d")
        await until(lambda: a.view is not None and a.view.missing == ("e",))
        await asyncio.sleep(30)
        assert views <= 5
        assert all(not node.groups for node in a.view.nodes)  # type: ignore[union-attr]


# --- when things are bad --------------------------------------------------------------------------------


@on_virtual_time
async def test_nothing_is_announced_before_it_is_written_and_a_slow_journal_delays_for_a_second_at_most() -> (
    None
):
    async with Stage(make_spec("a", "b", max_restarts=9)) as stage:
        stage.journal.delay = 0.4
        began = now()
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        assert stage.journal.records[-1].round == 1
        assert now() - began >= 0.4
        stage.journal.delay = 3600.0
        began = now()
        a.fail()
        await stage.round_is(2, a, b)
        assert now() - began < 2.5
        stage.journal.broken = True
        a.fail()
        await stage.round_is(3, a, b)


@on_virtual_time
async def test_the_end_waits_longer_for_a_slow_journal_than_other_words() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        stage.journal.delay = 4.0
        a.fail()
        await until(lambda: a.finished)
        assert stage.journal.records[-1].outcome is Phase.FAILED


@on_virtual_time
async def test_the_end_does_not_wait_for_ever_for_a_journal_that_hangs() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        stage.journal.delay = 3600.0
        began = now()
        a.fail()
        await until(lambda: a.finished and b.finished)
        assert now() - began < 6.0


@on_virtual_time
async def test_a_hub_whose_disk_lost_its_counts_takes_those_its_members_have_heard() -> None:
    async with Stage(make_spec(fewest=2, most=3, max_restarts=2)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        early = stage.journal.records[-1]
        a.fail()
        await stage.round_is(2, a, b)
        (c,) = stage.add("c")
        await stage.round_is(3, a, b, c)
        counted = (stage.status.restart_count, stage.status.membership_changes)
        assert counted == (1, 1)
        await until(lambda: a.view and a.view.membership_changes == 1)
        await stage.begin_hub_again(early)
        await until(lambda: "hub found" in a.log and "hub found" in b.log)
        assert (stage.status.restart_count, stage.status.membership_changes) >= counted
        assert stage.journal.records[-1].restart_count == 1
        await stage.round_is(4, a, b, c)
        a.fail()
        await stage.round_is(5, a, b, c)
        assert a.last.restart_count == 2
        a.fail()
        await stage.phase_is(Phase.FAILED)


@on_virtual_time
async def test_heartbeats_are_answered_while_the_journal_is_stuck() -> None:
    async with Stage(make_spec("a", "b", max_restarts=9)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        stage.journal.delay = 3600.0
        for _ in range(20):
            round_ = a.running
            a.fail()
            await stage.round_is(round_ + 1, a, b)
            if round_ > 8:
                break
        assert "hub lost" not in a.log + b.log


@on_virtual_time
async def test_words_to_a_broken_stream_are_not_the_first_of_the_next_one() -> None:
    async with Stage(make_spec("a", "b", max_restarts=1)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        stage.journal.delay = 0.9
        b.fail()
        await asyncio.sleep(0.1)
        # What a is to hear waits for the journal; meanwhile it comes anew.
        await a.link.cut()
        a.link.up = True
        await stage.round_is(2, a, b)
        assert a.log.count("stop 1") == 1


@on_virtual_time
async def test_node_that_comes_while_the_journal_is_slow_hears_its_welcome_first() -> None:
    async with Stage(make_spec(fewest=2, most=3, max_restarts=1)) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        stage.journal.delay = 0.9
        b.fail()
        await asyncio.sleep(0.1)
        (c,) = stage.add("c")
        await until(lambda: c.log)
        assert c.log[0] == "welcome"


@on_virtual_time
async def test_hub_that_leaves_is_dialled_again_and_running_workers_go_on() -> None:
    async with Stage(make_spec("a")) as stage:
        (a,) = stage.add("a")
        await stage.round_is(1, a)
        link = a.link
        link.up = False
        await stage.hub.close("upgrade")
        await until(lambda: "hub lost" in a.log)
        await asyncio.sleep(3600)
        assert "hub timeout" not in a.log
        assert a.running == 1


@on_virtual_time
async def test_stranger_at_the_address_of_a_lost_hub_stops_no_workers() -> None:
    async with Stage(make_spec("a")) as stage:
        (a,) = stage.add("a")
        await stage.round_is(1, a)
        a.link.stranger = NotSupported("Join", "at hub.example:7460")
        await a.link.cut()
        await asyncio.sleep(defaults.LEASE / 2)
        assert "refused" not in a.log
        a.link.up = True
        await until(lambda: "hub found" in a.log)
        assert a.running == 1


@on_virtual_time
async def test_stranger_at_the_address_of_a_hub_refuses_a_node_that_never_met_it() -> None:
    async with Stage(make_spec("a")) as stage:
        node = stage.nodes["a"] = Node("a", stage.link())
        node.link.up, node.link.stranger = False, NotSupported("Join", "at hub.example:7460")
        node.start()
        await until(lambda: "refused" in node.log)


@on_virtual_time
async def test_member_that_needs_a_hub_gives_up_after_hub_timeout_counted_from_the_need() -> None:
    async with Stage(make_spec("a")) as stage:
        (a,) = stage.add("a", hub_timeout=100.0)
        await stage.round_is(1, a)
        await a.link.cut()
        await asyncio.sleep(1000)
        began = now()
        a.succeed()
        await until(lambda: "hub timeout" in a.log, within=200)
        assert 99.0 <= now() - began < 105.0
        assert "hub.example:7460 unreachable since" in str(a.error)
        assert "Start one there" not in str(a.error), "the advice for a node, beside that for a hub"


@on_virtual_time
async def test_run_that_the_hub_does_not_know_refuses_the_node() -> None:
    async with Stage(make_spec("a")) as stage:
        node = Node("a", stage.link())
        node.session._run_id = "another"
        stage.nodes["a"] = node.start()
        await until(lambda: node.error is not None)
        assert isinstance(node.error, RunNotFound)


@on_virtual_time
async def test_second_agentd_under_a_live_node_id_is_refused_and_the_first_goes_on() -> None:
    async with Stage(make_spec("a")) as stage:
        (a,) = stage.add("a")
        await stage.round_is(1, a)
        twin = Node("a", stage.link(), uid="another")
        stage.nodes["twin"] = twin.start()
        began = now()
        await until(lambda: twin.error is not None)
        assert isinstance(twin.error, NodeIdTaken)
        assert twin.error.facts["other_address"] == "a.example:7460"
        assert now() - began < 3 * defaults.LEASE
        await asyncio.sleep(30)
        assert a.running == 1


@on_virtual_time
async def test_a_node_made_anew_waits_for_the_end_of_what_it_was_and_takes_its_place() -> None:
    """Its state directory was wiped: another uid under the same id, while the hub waits for the old one."""
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        await b.link.cut()
        anew = Node("b", stage.link(), uid="another")
        stage.nodes["anew"] = anew.start()
        await until(lambda: "hub lost" in anew.log)
        assert "free in" in anew.problem
        assert "b.example:7460" in anew.problem
        await stage.round_is(2, a, anew)
        assert anew.error is None
        assert anew.log[:3] == ["hub lost", "welcome", "hub found"]


@on_virtual_time
async def test_a_node_made_anew_is_refused_if_the_one_that_it_was_is_back() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        await b.link.cut()
        anew = Node("b", stage.link(), uid="another")
        stage.nodes["anew"] = anew.start()
        await until(lambda: "hub lost" in anew.log)
        b.link.up = True
        await until(lambda: anew.error is not None)
        assert isinstance(anew.error, NodeIdTaken)
        assert "live agentd" in str(anew.error)
        assert (a.running, b.running) == (1, 1)


@on_virtual_time
async def test_newer_session_of_a_node_replaces_the_older() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        (a,) = stage.add("a")
        await until(lambda: "welcome" in a.log)
        newer = Node("a", stage.link())
        newer._epoch = 100
        stage.nodes["newer"] = newer.start()
        await until(lambda: isinstance(a.error, StaleSession))
        (b,) = stage.add("b")
        await stage.round_is(1, newer, b)
        assert a.assignments == []


@on_virtual_time
async def test_hub_that_was_frozen_judges_nobody_before_it_has_listened() -> None:
    async with Stage(make_spec("a", "b")) as stage:
        a, b = stage.add("a", "b")
        await stage.round_is(1, a, b)
        loop = asyncio.get_running_loop()
        for _ in range(5):
            # The whole process stands still: no tick runs and nothing is read.
            loop._jumping.now += 20.0  # type: ignore[attr-defined]
            await asyncio.sleep(1.5)
        assert stage.status.phase is Phase.RUNNING
        assert stage.status.round == 1
        assert "hub lost" not in a.log + b.log


@on_virtual_time
async def test_incarnations_only_grow() -> None:
    async with Stage(make_spec("a")) as stage:
        with pytest.raises(StaleIncarnation):
            stage.hub.create(stage.spec, INCARNATION - 1)
        stage.hub.create(stage.spec, INCARNATION)
        stage.hub.terminate(RUN)
        await stage.phase_is(Phase.STOPPED)
        stage.hub.create(stage.spec, INCARNATION + 1)
        assert stage.status.incarnation == INCARNATION + 1
        assert stage.hub.describe(RUN, INCARNATION).status.phase is Phase.STOPPED


@on_virtual_time
async def test_tombstones_are_bounded() -> None:
    async with Stage(make_spec("a")) as stage:
        stage.hub.terminate(RUN)
        await stage.phase_is(Phase.STOPPED)
        for number in range(300):
            stage.hub.create(stage.spec, INCARNATION + 1 + number)
            stage.hub.terminate(RUN)
            await stage.phase_is(Phase.STOPPED)
        await until(lambda: not stage.hub.live_runs)
        assert len(stage.hub._tombstones) == 256
        with pytest.raises(StaleIncarnation):
            stage.hub.describe(RUN, INCARNATION)
