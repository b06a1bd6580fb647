"""The judges of a storm can condemn: each invariant is shown what it is there to find."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from agentd.api.history import Event, EventKind
from agentd.api.types import Phase, RunStatus
from tests.e2e.chaos import invariants
from tests.e2e.chaos.invariants import Results, Standing
from tests.e2e.chaos.observe import Acting, Look, Role, Seen, Witness
from tests.e2e.chaos.plan import Job, Kind, Manner, faults, jobs

JOB = Job(
    run_id="r",
    hub="a",
    nodes=("a", "b"),
    min_members=1,
    workers=2,
    work=1.0,
    manner=Manner.POLITE,
    max_restarts=1,
    stop_after=None,
    isolated_stop=False,
    leaver="",
)


def worker(pid: int, *, round_: int = 1, node: str = "a", run_id: str = "r", incarnation: int = 7) -> Seen:
    return Seen(
        pid=pid,
        start_time=pid,
        node=node,
        role=Role.WORKER,
        leads=True,
        run_id=run_id,
        incarnation=incarnation,
        round=round_,
        rank=0,
    )


def look(*seen: Seen, at: float = 100.0) -> Look:
    return Look(at, {each.pid: each for each in seen})


def witness(
    event: str, rank: int, *, round_: int = 1, restart: int = 0, node: str = "a", size: int = 2
) -> Witness:
    return Witness(event, round_, rank, size, restart, 1, node, "10.0.0.1:1", 100 * round_ + rank)


def status(phase: Phase, **fields: object) -> RunStatus:
    return replace(RunStatus(run_id="r", incarnation=7, phase=phase), **fields)  # type: ignore[arg-type]


def event(kind: EventKind) -> Event:
    return Event(id=1, time=1.0, node_id="a", kind=kind.value, run_id="r")


def none(found: Iterable[str]) -> bool:
    return list(found) == []


# --- two rounds


def test_a_round_that_lives_beside_the_next_is_seen() -> None:
    old, new = worker(1), worker(2, round_=2)
    assert not none(invariants.two_rounds(look(old, new), look(old, new)))
    assert not none(invariants.two_rounds(look(old, new), look(old))), "the new one was there before"


def test_a_round_that_follows_another_is_none_beside_it() -> None:
    old, new = worker(1), worker(2, round_=2)
    assert none(invariants.two_rounds(look(old), look(new)))
    assert none(invariants.two_rounds(look(old), look(old, new))), "one look proves nothing: it takes time"


def test_a_later_incarnation_beside_an_earlier_is_seen() -> None:
    old, new = worker(1, round_=5), worker(2, incarnation=8)
    assert not none(invariants.two_rounds(look(old, new), look(old, new)))


def test_other_nodes_and_other_runs_have_rounds_of_their_own() -> None:
    there = look(worker(1), worker(2, round_=2, node="b"), worker(3, round_=3, run_id="s"))
    assert none(invariants.two_rounds(there, there))


def test_two_rounds_that_may_write_are_seen_wherever_they_are() -> None:
    old, new = Acting("a", "r", 7, 1), Acting("b", "r", 7, 2)
    assert not none(invariants.two_acting({old, new}, {old, new}))
    assert none(invariants.two_acting({old}, {new}))
    assert none(invariants.two_acting({old}, {old, new})), "one look proves nothing"
    assert none(invariants.two_acting({new}, {old._replace(run_id="s"), old._replace(incarnation=8)}))


# --- what had to end


@pytest.mark.parametrize(
    ("stands", "wrong"),
    [
        (Standing(round=1, over_since=90.0), True),
        (Standing(round=1, over_since=98.0), False),
        (Standing(round=2, round_since=90.0), True),
        (Standing(round=2, round_since=98.0), False),
        (Standing(round=1, round_since=10.0), False),
    ],
)
def test_workers_outlive_their_run_or_round_only_for_a_while(stands: Standing, wrong: bool) -> None:
    contact = {("r", "a"): 50.0}
    found = invariants.overdue(look(worker(1)), {"r": stands}, contact, 5.0)
    assert none(found) is not wrong


@pytest.mark.parametrize(("since", "wrong"), [(None, False), (97.0, False), (94.0, True)])
def test_the_time_to_end_begins_with_contact(since: float | None, wrong: bool) -> None:
    standing = {"r": Standing(round=1, over_since=10.0)}
    assert none(invariants.overdue(look(worker(1)), standing, {("r", "a"): since}, 5.0)) is not wrong


# --- ranks and restarts


def test_ranks_of_a_round_are_a_permutation() -> None:
    assert none(invariants.ranks(JOB, [witness("began", 0), witness("began", 1)]))
    assert not none(invariants.ranks(JOB, [witness("began", 0), witness("began", 0, node="b")]))
    assert not none(invariants.ranks(JOB, [witness("began", 0), witness("began", 2)]))


def test_ranks_of_a_group_are_neighbours() -> None:
    mixed = [witness("began", rank, size=4, node="ab"[rank % 2]) for rank in range(4)]
    assert not none(invariants.ranks(JOB, mixed))


def test_workers_of_a_round_are_told_the_same() -> None:
    told = [witness("began", 0), witness("began", 1, restart=1)]
    assert not none(invariants.ranks(JOB, told))
    assert not none(invariants.ranks(JOB, [witness("began", 0), witness("began", 1, size=3)]))


def test_restart_counts_stay_within_the_budget_and_never_fall() -> None:
    assert none(invariants.restarts(JOB, [witness("began", 0), witness("began", 0, round_=2, restart=1)]))
    assert not none(invariants.restarts(JOB, [witness("began", 0, restart=2)]))
    fallen = [witness("began", 0, restart=1), witness("began", 0, round_=2, restart=0)]
    assert not none(invariants.restarts(JOB, fallen))


# --- results


def test_a_result_that_was_shown_is_shown_for_ever() -> None:
    results = Results()
    assert none(results.see("a", [status(Phase.RUNNING)], lasting=True))
    assert none(results.see("a", [status(Phase.FAILED)], lasting=True))
    assert none(results.see("b", [status(Phase.RUNNING)], lasting=True)), "another node's view"
    assert not none(results.see("a", [status(Phase.SUCCEEDED)], lasting=True))


def test_a_result_that_is_forgotten_is_lost() -> None:
    results = Results()
    list(results.see("a", [status(Phase.SUCCEEDED)], lasting=True))
    assert not none(results.see("a", [], lasting=True))


def test_what_a_journal_in_need_showed_may_change() -> None:
    results = Results()
    list(results.see("a", [status(Phase.FAILED)], lasting=False))
    assert none(results.see("a", [status(Phase.RUNNING)], lasting=True))


DONE = [witness("done", 0), witness("done", 1)]
ENDED = event(EventKind.RUN_ENDED)


@pytest.mark.parametrize(
    ("phase", "reason", "events", "seen", "wrong"),
    [
        (Phase.SUCCEEDED, "", [ENDED], DONE, False),
        (Phase.SUCCEEDED, "", [ENDED], DONE[:1], True),
        (Phase.SUCCEEDED, "", [ENDED], [], True),
        (Phase.SUCCEEDED, "", [], DONE, True),
        (Phase.STOPPED, "", [ENDED, event(EventKind.STOP_ASKED)], [], False),
        (Phase.STOPPED, "because", [ENDED], [], True),
        (Phase.FAILED, "", [ENDED, event(EventKind.WORKERS_FAILED)], [], False),
        (Phase.FAILED, "nobody came", [ENDED], [], False),
        (Phase.FAILED, "", [ENDED], [], True),
        (Phase.LOST, "", [ENDED], [], True),
        (Phase.RUNNING, "", [ENDED], [], True),
        (None, "", [], [], True),
    ],
)
def test_an_end_is_explained_by_history_and_workers(
    phase: Phase | None, reason: str, events: list[Event], seen: list[Witness], wrong: bool
) -> None:
    assert none(invariants.explained(JOB, phase, reason, events, seen)) is not wrong


def test_a_run_that_lives_on_somewhere_is_unfinished() -> None:
    shown = {"a": status(Phase.SUCCEEDED), "b": status(Phase.RUNNING)}
    assert not none(invariants.unfinished("r", shown))
    assert none(invariants.unfinished("r", {"a": status(Phase.SUCCEEDED)}))


@pytest.mark.parametrize(
    ("hub", "other", "wrong"),
    [
        (status(Phase.SUCCEEDED), status(Phase.SUCCEEDED), False),
        (status(Phase.SUCCEEDED), status(Phase.FAILED, reason="three hosts were lost"), False),
        (status(Phase.SUCCEEDED), status(Phase.FAILED), True),
        (status(Phase.FAILED), status(Phase.SUCCEEDED, reason="done"), True),
        (status(Phase.LOST, reason="gone"), status(Phase.SUCCEEDED), True),
    ],
)
def test_nodes_agree_with_the_hub(hub: RunStatus, other: RunStatus, wrong: bool) -> None:
    assert none(invariants.agreeing("r", "a", {"a": hub, "b": other})) is not wrong


# --- what is left, and what is not ours


def test_a_bystander_that_is_gone_or_replaced_is_missed() -> None:
    assert none(invariants.untouched({(5, 1)}, {(5, 1), (6, 1)}))
    assert not none(invariants.untouched({(5, 1)}, {(5, 2)}))


def test_only_agentds_are_left() -> None:
    agentd = Seen(pid=1, start_time=1, node="a", role=Role.AGENTD)
    assert none(invariants.nothing_left(look(agentd)))
    assert not none(invariants.nothing_left(look(agentd, worker(2))))
    assert not none(invariants.nothing_left(look(replace(agentd, role=Role.OTHER))))


def test_descriptors_are_given_back() -> None:
    fresh = ["socket:[1]", "/state/agentd.db"]
    assert none(invariants.nothing_open("a", fresh, [*fresh, "socket:[2]"], allowed=1))
    assert not none(invariants.nothing_open("a", fresh, [*fresh, "socket:[2]", "socket:[3]"], allowed=1))
    assert not none(invariants.nothing_open("a", fresh, [*fresh, "anon_inode:[pidfd]"], allowed=9))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("agentd.db-wal", False),
        ("runs/r/7/default/spec.json", False),
        ("runs/r/7/default/spec.new", False),
        ("agentd.db.new", True),
        ("runs/forgotten/7/default/spec.json", True),
        ("core.1234", True),
    ],
)
def test_files_nobody_knows_are_found(name: str, wrong: bool) -> None:
    assert none(invariants.no_other_files("a", [name], {"r"})) is not wrong


def test_a_traceback_in_the_log_is_found() -> None:
    story = 'INFO ok\nTraceback (most recent call last):\n  File "x"\nOSError: no\n'
    assert none(invariants.no_traceback("a", "INFO ok\nERROR the disk is full\n"))
    assert list(invariants.no_traceback("a", story)) == ["agentd of a wrote a traceback: OSError: no"]


# --- the plan


def test_a_plan_is_its_seed() -> None:
    def first(seed: int) -> list[object]:
        coming, runs = faults(seed, "abc", 2.0), jobs(seed, "abc")
        return [next(coming) for _ in range(50)] + [next(runs) for _ in range(20)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_plan_has_every_kind_of_fault_and_they_overlap() -> None:
    coming = faults(1, "abc", 5.0)
    found = [next(coming) for _ in range(500)]
    assert {fault.kind for fault in found} == set(Kind)
    assert [fault.at for fault in found] == sorted(fault.at for fault in found)
    assert any(one.at + one.lasts > other.at for one, other in itertools.pairwise(found))
    assert all(fault.node != fault.peer for fault in found)
