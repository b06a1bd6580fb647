"""A drain by itself: what is refused, when it is time to leave, how it stands in the journal."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from agentd.api.errors import InvalidSpec
from agentd.api.types import (
    Drain,
    DrainMode,
    DrainRequest,
    GroupRef,
    Phase,
    RunRef,
    RunStatus,
    StopRequest,
    StopScope,
)
from agentd.groups.board import RunKey
from agentd.groups.drain import Drainage, check, time_left, why
from agentd.groups.records import DrainRow, Record
from agentd.groups.wish import drain_text, read_drain
from tests.support.waiting import wait_until_async

WAIT = Drain(mode=DrainMode.WAIT, since=1000.0)


class Runs:
    """Runs of a node that end when they are stopped here."""

    def __init__(self, *keys: RunKey) -> None:
        self.drain: Drain | None = None
        self.here = list(keys)
        self.stops: list[StopRequest] = []
        self._tell: Callable[[str], object] = lambda _run_id: None

    def runs_with_groups(self) -> tuple[RunKey, ...]:
        return tuple(self.here)

    def group_refs(self) -> tuple[GroupRef, ...]:
        return tuple(
            GroupRef(run_id=run_id, incarnation=number, role="default", phase=Phase.RUNNING)
            for run_id, number in self.here
        )

    def hub_of(self) -> tuple[RunRef, ...]:
        return ()

    async def stop(self, request: StopRequest, caller: str = "") -> RunStatus:
        self.stops.append(request)
        self.here.remove((request.run_id, request.incarnation))
        return RunStatus(run_id=request.run_id)

    def on_change(self, listener: Callable[[str], object]) -> None:
        self._tell = listener

    def come(self, key: RunKey) -> None:
        self.here.append(key)
        self._tell(key[0])


class Journal:
    """Remembers the drains; `late` is how long each write takes."""

    def __init__(self, late: float = 0.0) -> None:
        self.texts: list[str] = []
        self.late = late

    async def write(self, *records: Record) -> bool:
        await asyncio.sleep(self.late)
        self.texts += [record.text for record in records if isinstance(record, DrainRow)]
        return True


def drainage(runs: Runs, journal: Journal | None = None) -> tuple[Drainage, list[None]]:
    changes: list[None] = []
    return Drainage("n", runs, journal or Journal(), lambda: changes.append(None)), changes


@pytest.mark.asyncio
async def test_waiting_stops_nothing_and_moving_leaves_every_run_also_one_that_was_on_its_way() -> None:
    runs = Runs(("r", 1), ("s", 2))
    keeper, changes = drainage(runs)
    report = await keeper.drain(DrainRequest(reason="new disk"))
    assert (report.drain, len(report.groups), len(changes)) == (runs.drain, 2, 1)
    await asyncio.sleep(0)
    assert not runs.stops
    since = report.drain.since

    report = await keeper.drain(DrainRequest(mode=DrainMode.MOVE, grace=7.0, reason="new disk"))
    assert report.drain.since == since
    await wait_until_async(lambda: not runs.here)
    runs.come(("late", 3))
    await wait_until_async(lambda: not runs.here)
    assert [request.run_id for request in runs.stops] == ["r", "s", "late"]
    assert {(request.scope, request.grace, request.reason) for request in runs.stops} == {
        (StopScope.LEAVE, 7.0, "node n is drained: new disk")
    }
    await keeper.close()
    assert runs.drain is not None


@pytest.mark.asyncio
async def test_a_node_that_is_given_back_leaves_nothing_at_the_former_deadline() -> None:
    runs, journal = Runs(("r", 1)), Journal()
    keeper, changes = drainage(runs, journal)
    await keeper.drain(DrainRequest(deadline=1.0))
    assert await keeper.undrain() is not None
    assert await keeper.undrain() is None
    await asyncio.sleep(1.2)
    assert (runs.stops, runs.drain, len(changes)) == ([], None, 2)
    assert [bool(text) for text in journal.texts] == [True, False]


@pytest.mark.asyncio
async def test_of_two_drains_at_once_on_a_slow_disk_the_later_one_counts() -> None:
    runs, journal = Runs(("r", 1)), Journal(late=0.02)
    keeper, _ = drainage(runs, journal)
    first = asyncio.ensure_future(keeper.drain(DrainRequest(mode=DrainMode.MOVE)))
    await asyncio.sleep(0)
    await keeper.drain(DrainRequest())
    await first
    await asyncio.sleep(0)
    assert runs.drain is not None
    assert runs.drain.mode is DrainMode.WAIT
    assert not runs.stops
    await keeper.close()


@pytest.mark.asyncio
async def test_the_next_agentd_goes_on_with_a_drain() -> None:
    runs = Runs(("r", 1))
    runs.drain = replace(WAIT, deadline=WAIT.since + 1)
    keeper, _ = drainage(runs)
    keeper.start()
    await wait_until_async(lambda: not runs.here)
    await keeper.close()


@pytest.mark.parametrize(
    ("drain", "now", "left"),
    [
        (WAIT, 2000.0, None),
        (replace(WAIT, mode=DrainMode.MOVE), 2000.0, 0.0),
        (replace(WAIT, deadline=1060.0), 1010.0, 50.0),
        (replace(WAIT, deadline=1060.0), 9999.0, 0.0),
        (replace(WAIT, deadline=1060.0), 10.0, 60.0),  # the clock was set back
        (replace(WAIT, deadline=9060.0, asked_at=9000.0), 10.0, 60.0),  # and it is not the first drain
    ],
)
def test_when_it_is_time_to_leave(drain: Drain, now: float, left: float | None) -> None:
    assert time_left(drain, now) == left


@pytest.mark.parametrize(
    "request_",
    [
        DrainRequest(deadline=0.0),
        DrainRequest(deadline=float("inf")),
        DrainRequest(mode=DrainMode.MOVE, deadline=5.0),
        DrainRequest(grace=-1.0),
        DrainRequest(reason="x" * 1025),
    ],
)
def test_what_no_node_could_do_is_refused(request_: DrainRequest) -> None:
    with pytest.raises(InvalidSpec):
        check(request_)


def test_a_drain_crosses_the_journal_whole() -> None:
    for mode, deadline, grace in itertools.product(DrainMode, (0.0, 1060.5), (None, 0.0, 3.5)):
        drain = Drain(mode=mode, since=1000.25, deadline=deadline, reason="neue Platte ü", grace=grace)
        assert read_drain(drain_text(drain)) == drain


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"mode": "sleep", "since": 1}', '{"mode": 1, "since": 1}'])
def test_a_drain_that_cannot_be_read_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_drain(text)


def test_who_is_refused_hears_since_when_and_why() -> None:
    assert why(replace(WAIT, reason="new disk")) == "since 1970-01-01 00:16:40 UTC: new disk"
