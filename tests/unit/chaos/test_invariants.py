"""The judges of a storm can condemn: each invariant is shown what it is there to find."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from agentd.api.history import Event, EventKind
from agentd.api.types import Drain, DrainMode, Phase, RunStatus
from tests.e2e.chaos import invariants
from tests.e2e.chaos.invariants import Results, Standing
from tests.e2e.chaos.observe import Acting, Look, Role, Seen, Witness
from tests.e2e.chaos.plan import Job, Kind, Manner, Part, faults, jobs

JOB = Job(
    run_id="r",
    hub="a",
    nodes=("a", "b"),
    parts=(Part("default", ("a", "b"), 2),),
    min_members=1,
    max_members=2,
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
    event: str,
    rank: int,
    *,
    round_: int = 1,
    restart: int = 0,
    node: str = "a",
    size: int = 2,
    role: str = "default",
    own: int | None = None,
) -> Witness:
    own = rank if own is None else own
    return Witness(event, round_, rank, size, restart, 1, node, "m:1", 100 * round_ + rank, role, own, size)


def status(phase: Phase, **fields: object) -> RunStatus:
    return replace(RunStatus(run_id="r", incarnation=7, phase=phase), **fields)  # type: ignore[arg-type]


def event(kind: EventKind, detail: str = "") -> Event:
    return Event(id=1, time=1.0, node_id="a", kind=kind.value, run_id="r", detail=detail)


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


def test_two_groups_of_a_node_have_ranks_of_their_own() -> None:
    seen = [witness("began", 0, size=3), witness("began", 1, size=3, node="b")]
    assert none(invariants.ranks(JOB, [*seen, witness("began", 2, size=3, role="reader", own=0)]))


def test_ranks_of_a_role_are_a_permutation() -> None:
    first = witness("began", 0, role="reader")
    assert not none(invariants.ranks(JOB, [first, witness("began", 1, role="reader", own=0)]))
    assert not none(invariants.ranks(JOB, [first, witness("began", 1, role="reader", own=2)]))


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
LEASE_OVER = f"{invariants.LEASE_ENDED} 2 s has ended"


@pytest.mark.parametrize(
    ("phase", "reason", "events", "seen", "wrong"),
    [
        (Phase.SUCCEEDED, "", [ENDED], DONE, False),
        (Phase.SUCCEEDED, "", [ENDED], DONE[:1], True),
        (Phase.SUCCEEDED, "", [ENDED], [], True),
        (Phase.SUCCEEDED, "", [], DONE, True),
        (Phase.STOPPED, "", [ENDED, event(EventKind.STOP_ASKED)], [], False),
        (Phase.STOPPED, "because", [ENDED], [], True),
        (Phase.STOPPED, "", [event(EventKind.RUN_ENDED, LEASE_OVER)], [], True),
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


LEASED = replace(JOB, lease=2.0)


def test_a_stop_by_the_lease_is_explained_by_the_lease() -> None:
    assert none(invariants.explained(LEASED, Phase.STOPPED, "", [event(EventKind.RUN_ENDED, LEASE_OVER)], []))
    assert not none(invariants.explained(LEASED, Phase.STOPPED, "", [ENDED], []))


def test_a_lease_ends_nothing_that_was_renewed_or_has_none() -> None:
    ended = status(Phase.STOPPED, reason=LEASE_OVER, finished_at=100.0)
    assert none(invariants.stopped_too_soon(LEASED, ended, 97.9))
    assert not none(invariants.stopped_too_soon(LEASED, ended, 98.1))
    assert not none(invariants.stopped_too_soon(JOB, ended, None))


@pytest.mark.parametrize(
    ("phase", "abandoned", "well", "wrong"),
    [
        (Phase.RUNNING, 90.0, 80.0, True),
        (Phase.RUNNING, 94.0, 80.0, False),
        (Phase.RUNNING, 80.0, 94.0, False),
        (Phase.RUNNING, 80.0, None, False),
        (Phase.RUNNING, None, 80.0, False),
        (Phase.STOPPING, 80.0, 80.0, False),
        (Phase.STOPPED, 80.0, 80.0, False),
    ],
)
def test_a_run_ends_a_lease_after_it_was_abandoned(
    phase: Phase, abandoned: float | None, well: float | None, wrong: bool
) -> None:
    assert none(invariants.outlived(LEASED, phase, 100.0, abandoned, well, 5.0)) is not wrong
    assert none(invariants.outlived(JOB, phase, 100.0, abandoned, well, 5.0)), "it has no lease"


# --- drained nodes


@pytest.mark.parametrize(("well", "wrong"), [(None, False), (97.0, False), (94.0, True)])
def test_a_node_that_has_to_leave_its_runs_is_empty_soon(well: float | None, wrong: bool) -> None:
    assert none(invariants.crowded(look(worker(1)), {"a": 90.0}, {"a": well}, 5.0)) is not wrong
    assert none(invariants.crowded(look(worker(1)), {"b": 90.0}, {"a": well, "b": well}, 5.0))


def test_a_drain_is_neither_forgotten_nor_invented() -> None:
    shown = Drain(mode=DrainMode.WAIT, since=1.0)
    assert none(invariants.as_wished("a", DrainMode.WAIT, shown))
    assert none(invariants.as_wished("a", None, None))
    assert not none(invariants.as_wished("a", DrainMode.MOVE, shown))
    assert not none(invariants.as_wished("a", DrainMode.WAIT, None))
    assert not none(invariants.as_wished("a", None, shown))


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


def test_a_plan_has_runs_of_every_form() -> None:
    coming = jobs(1, "abcde")
    found = [next(coming) for _ in range(200)]
    assert {len(job.parts) for job in found} == {1, 2}
    for job in found:
        members = sum(len(part.nodes) for part in job.parts)
        assert {node for part in job.parts for node in part.nodes} == set(job.nodes)
        assert 1 <= job.min_members <= job.max_members <= members
    assert any(job.max_members < sum(len(part.nodes) for part in job.parts) for job in found)
    assert any(job.lease and job.renewed_for < 10 for job in found)
    assert any(job.lease and job.renewed_for > 1000 for job in found)
    assert all(job.work < 10 or job.renewed_for < 10 for job in found), "all of them end"


def test_a_plan_has_every_kind_of_fault_and_they_overlap() -> None:
    coming = faults(1, "abc", 5.0)
    found = [next(coming) for _ in range(500)]
    assert {fault.kind for fault in found} == set(Kind)
    assert [fault.at for fault in found] == sorted(fault.at for fault in found)
    assert any(one.at + one.lasts > other.at for one, other in itertools.pairwise(found))
    assert all(fault.node != fault.peer for fault in found)
