"""What becomes of calls whose fleet is closed under them: they end soon, and say why."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agentd_client import AsyncFleet, AsyncRunHandle, Command, Fleet, RoleSpec, RunHandle, RunSpec, drive_sync
from agentd_client.testing import FakeFleet
from tests.support.waiting import wait_until, wait_until_async

SPEC = RunSpec(run_id="r", roles=(RoleSpec(command=Command(entrypoint="x.py"), local_world_size=2),))
SOON_S = 30.0
"""Far below the time that a call of a fleet that is not closed would wait."""


@pytest.fixture
def fakes() -> Iterator[FakeFleet]:
    with FakeFleet(2) as fleet:
        yield fleet


def streams(fakes: FakeFleet) -> set[int]:
    """How many streams are open, at each node."""
    return {agent.open_streams for agent in fakes.agents}


async def _read(run: AsyncRunHandle) -> None:
    async for _ in run.logs(follow=True):
        pass


def test_what_waits_in_a_coroutine_ends_when_its_fleet_is_closed(fakes: FakeFleet) -> None:
    async def closed_meanwhile() -> float:
        fleet = AsyncFleet(fakes.targets)
        run = await fleet.run(SPEC)
        waiting = [asyncio.create_task(run.wait()), asyncio.create_task(_read(run))]
        await wait_until_async(lambda: streams(fakes) == {3})
        began = time.monotonic()
        await fleet.close()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, RuntimeError)
            assert "closed" in str(outcome)
        return time.monotonic() - began

    assert asyncio.run(closed_meanwhile()) < SOON_S


def test_what_waits_in_a_thread_ends_when_its_fleet_is_closed(fakes: FakeFleet) -> None:
    fleet, said = Fleet(fakes.targets), list[str]()

    def wait(run: RunHandle) -> None:
        with pytest.raises(RuntimeError) as raised:
            run.wait()
        said.append(str(raised.value))

    waiting = threading.Thread(target=wait, args=(fleet.run(SPEC),))
    waiting.start()
    wait_until(lambda: streams(fakes) == {1})
    fleet.close()
    waiting.join(SOON_S)
    assert said == ["this client is closed"]


def test_a_call_that_is_given_up_is_waited_for_until_grpc_has_let_go_of_it() -> None:
    """Else a process that ends now may wait for gRPC's lock on the call, which a thread took along."""
    told: list[str] = []

    class GivenUp:
        def add_callback(self, over: Callable[[], None]) -> bool:
            def end() -> None:
                told.append("over")
                over()

            threading.Timer(0.05, end).start()
            return True

    drive_sync._wait_until_over(GivenUp())
    assert told == ["over"]
