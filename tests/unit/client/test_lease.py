"""How a keeper renews a controller lease: how often, and what it makes of failures."""

from __future__ import annotations

import asyncio
import logging

import pytest

from agentd.api.errors import AgentError, NoControllerLease, NotSupported, RunEnded, Unreachable
from agentd.api.types import ControllerLease
from agentd_client.keeping import AsyncLeaseKeeper, LeaseKeeper
from agentd_client.lease import Renewals

LEASE = ControllerLease(duration=30.0, until=99.0)
SHORT = ControllerLease(duration=0.03, until=99.0)


def test_two_renewals_may_be_lost_before_a_lease_ends() -> None:
    renewals = Renewals("r")
    assert renewals.pause == 1.0
    renewals.renewed(LEASE)
    assert renewals.pause == 10.0
    renewals.failed(Unreachable("a"))
    assert renewals.pause == 1.0
    renewals.renewed(SHORT)
    renewals.failed(Unreachable("a"))
    assert renewals.pause == pytest.approx(0.01)


def test_what_fails_again_and_again_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    renewals = Renewals("r")
    with caplog.at_level(logging.INFO, "agentd_client.lease"):
        for _ in range(3):
            renewals.failed(Unreachable("a"))
        renewals.renewed(LEASE)
        renewals.renewed(LEASE)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


class Answers:
    """What renewals bring, one after the other; the last one again and again."""

    def __init__(self, *answers: ControllerLease | AgentError) -> None:
        self.count = 0
        self._answers = answers

    def __call__(self) -> ControllerLease:
        answer = self._answers[min(self.count, len(self._answers) - 1)]
        self.count += 1
        if isinstance(answer, AgentError):
            raise answer
        return answer

    async def later(self) -> ControllerLease:
        return self()


@pytest.fixture(params=[RunEnded("r", "succeeded"), NoControllerLease("r"), NotSupported("RenewLease", "0")])
def hopeless(request: pytest.FixtureRequest) -> AgentError:
    error: AgentError = request.param
    return error


def test_a_keeper_tries_again_until_the_run_has_ended() -> None:
    answers = Answers(SHORT, Unreachable("a"), SHORT, RunEnded("r", "stopped"))
    with LeaseKeeper("r", answers) as keeper:
        assert keeper.wait(10)
        assert isinstance(keeper.problem, RunEnded)
        assert keeper.lease == SHORT
    assert answers.count == 4


def test_a_keeper_of_what_cannot_be_kept_says_so_at_once(hopeless: AgentError) -> None:
    with pytest.raises(type(hopeless)), LeaseKeeper("r", Answers(hopeless)):
        raise AssertionError("it was entered")


@pytest.mark.asyncio
async def test_the_asyncio_keeper_does_the_same(hopeless: AgentError) -> None:
    answers = Answers(SHORT, Unreachable("a"), SHORT, RunEnded("r", "stopped"))
    async with AsyncLeaseKeeper("r", answers.later) as keeper:
        assert await keeper.wait(10)
        assert isinstance(keeper.problem, RunEnded)
    assert answers.count == 4
    with pytest.raises(type(hopeless)):
        async with AsyncLeaseKeeper("r", Answers(hopeless).later):
            raise AssertionError("it was entered")


@pytest.mark.asyncio
async def test_leaving_a_keeper_ends_its_renewals() -> None:
    answers = Answers(LEASE)
    with LeaseKeeper("r", answers) as keeper:
        assert not keeper.wait(0.01)
    async with AsyncLeaseKeeper("r", answers.later) as later:
        assert not await later.wait(0.01)
    await asyncio.sleep(0)
    assert answers.count == 2
