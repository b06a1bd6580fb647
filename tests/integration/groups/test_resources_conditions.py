"""What runs out on a node has a name in GetNode and Status while it lasts, and what runs goes on."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from agentd.api.errors import NodeDegraded
from agentd.core.conditions import Condition, DiskFacts, of_disk
from agentd.daemon import resources
from agentd.daemon.resources import ResourceWatch
from agentd.groups.conditions import Conditions
from tests.support.noding import one_node, run_spec
from tests.support.waiting import PATIENCE_S, wait_until_async

MIB = 1 << 20
ROOMY = DiskFacts(total=100 << 30, free=50 << 30, inodes=1000, inodes_free=500, read_only=False)


def facts(**changes: object) -> DiskFacts:
    from dataclasses import replace

    return replace(ROOMY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seen", "named"),
    [
        (facts(), ()),
        (facts(free=15 * MIB), (Condition.STATE_DISK_FULL,)),
        (facts(free=17 * MIB), ()),
        (facts(total=4 * MIB, free=MIB), ()),
        (facts(total=4 * MIB, free=4096), (Condition.STATE_DISK_FULL,)),
        (facts(inodes_free=0), (Condition.STATE_DISK_NO_INODES,)),
        (facts(inodes=0, inodes_free=0), ()),
        (facts(read_only=True, free=0), (Condition.STATE_DISK_READ_ONLY,)),
    ],
)
def test_a_disk_is_judged_by_what_it_can_still_take(seen: DiskFacts, named: tuple[Condition, ...]) -> None:
    assert tuple(of_disk(seen, "/state")) == named


def test_a_disk_that_was_full_counts_as_full_until_there_is_some_room() -> None:
    standing = (Condition.STATE_DISK_FULL,)
    assert tuple(of_disk(facts(free=17 * MIB), "/state", standing)) == standing
    assert not of_disk(facts(free=33 * MIB), "/state", standing)


def test_the_beginning_and_the_end_of_a_condition_are_told_once() -> None:
    book = Conditions()
    told: list[tuple[str, str]] = []
    book.on_turn(lambda name, sentence: told.append((name, sentence)))
    for sentence in ("no more", "no more", "none at all", "", ""):
        book.put(Condition.CANNOT_FORK, sentence)
    assert told == [("CANNOT_FORK", "no more"), ("CANNOT_FORK", "")]


def test_a_condition_keeps_the_time_since_when_it_stands() -> None:
    clock = [0.0]
    book = Conditions(lambda: clock[0])
    told: list[int] = []
    book.on_change(lambda: told.append(1))
    book.put(Condition.CANNOT_FORK, "no more")
    clock[0] = 3600.0
    book.put(Condition.CANNOT_FORK, "no more")
    assert book.details == {"CANNOT_FORK": "no more (since 1970-01-01 00:00:00 UTC)"}
    readiness = [book.ready]
    assert len(told) == 1
    book.put(Condition.CANNOT_FORK, "")
    readiness.append(book.ready)
    assert book.details == {}
    assert len(told) == 2
    assert readiness == [False, True]


@pytest.mark.asyncio
async def test_a_state_directory_that_is_gone_is_named_and_its_return_too(tmp_path: Path) -> None:
    folder, book = tmp_path / "state", Conditions()
    watch = ResourceWatch(str(folder), book)
    await watch.step()
    assert os.strerror(errno.ENOENT).lower() in book.details[Condition.STATE_DISK_UNUSABLE.value]
    folder.mkdir()
    await watch.step()
    assert Condition.STATE_DISK_UNUSABLE.value not in book.details


@pytest.mark.asyncio
async def test_a_refused_process_is_forgiven_when_nobody_tries_and_threads_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, can_start = Conditions(), [False]
    watch = ResourceWatch(str(tmp_path), book)
    monkeypatch.setattr(resources, "FORGIVEN_AFTER_S", 0.0)
    monkeypatch.setattr(resources, "can_start_thread", lambda: can_start[0])
    book.put(Condition.CANNOT_FORK, "no more")
    await watch.step()
    assert Condition.CANNOT_FORK.value in book.details
    can_start[0] = True
    await watch.step()
    assert Condition.CANNOT_FORK.value not in book.details


@pytest.mark.asyncio
async def test_a_disk_that_does_not_answer_is_slow_and_asked_once_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, asked, answers = Conditions(), [0], threading.Event()
    watch = ResourceWatch(str(tmp_path), book)

    def hang(_directory: str) -> DiskFacts:
        asked[0] += 1
        answers.wait(PATIENCE_S)
        return ROOMY

    monkeypatch.setattr(resources, "PATIENCE", 0.05)
    monkeypatch.setattr(resources, "disk_facts", hang)
    await watch.step()
    await wait_until_async(lambda: asked == [1])  # the thread that asks may come late
    for _ in range(2):
        await watch.step()
    assert asked == [1]
    assert Condition.STATE_DISK_SLOW.value in book.details
    answers.set()
    monkeypatch.setattr(resources, "PATIENCE", PATIENCE_S)
    await watch.step()
    assert book.details == {}


@pytest.mark.asyncio
async def test_a_run_shows_the_condition_and_a_new_one_is_refused_with_the_next_step(tmp_path: Path) -> None:
    async with one_node(tmp_path) as node:
        await node.run(run_spec())
        await node.runs("job")
        book = node.registry._conditions
        book.put(Condition.STATE_DISK_FULL, "nothing is free")
        status = await node.reaches("job", lambda s: s.nodes[0].conditions, "the condition")
        assert "nothing is free" in status.nodes[0].conditions["STATE_DISK_FULL"]
        with pytest.raises(NodeDegraded, match=r"STATE_DISK_FULL: nothing is free.*Free space there"):
            await node.run(run_spec(run_id="another"))
        again, created = await node.run(run_spec())
        assert (again.run_id, created) == ("job", False)
        book.put(Condition.STATE_DISK_FULL, "")
        await node.reaches("job", lambda s: not s.nodes[0].conditions, "no condition")
        _, created = await node.run(run_spec(run_id="another"))
        assert created
