"""`python -m benchmarks.members HUB HUB_PID RUN INCARNATION COUNT`: members whose workers are only numbers.

Each speaks the real protocol on a connection of its own, with as little around it as can be: what is measured
is their hub. They join, fail once, succeed; on standard output what each step took, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import grpc
import grpc.aio
import psutil
from google.protobuf import duration_pb2

from agentd.hub.links import insecure_channel
from agentd.v1 import rendezvous_service_pb2 as pb
from agentd.v1 import run_pb2
from agentd.v1.rendezvous_service_pb2_grpc import RendezvousServiceStub

ROLE: Final = "default"
PATIENCE_S: Final = 240.0
SETTLE_S: Final = 1.5
"""Until what members are told besides, such as views, has been said."""
REATTACH_S: Final = 60
FIRST_PAUSE_S: Final = 0.1
LAST_PAUSE_S: Final = 2.0
"""Between two dials, as a node's session has it."""
PASSING: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
)
"""Why another dial may go better: a hub, or a machine, that is too busy."""


def name_of(number: int) -> str:
    """The node list's name of a member."""
    return f"n{number:04}"


class Crowd:
    """What all members of the run wait for together."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._here: dict[str, int] = {}
        self._reached: dict[str, asyncio.Event] = {}
        self.problem: BaseException | None = None
        self.redialled = 0

    def note(self, what: str) -> None:
        """One more member is that far."""
        self._here[what] = self._here.get(what, 0) + 1
        if self._here[what] == self._count:
            self._event(what).set()

    def ended(self, member: asyncio.Task[None]) -> None:
        """A member's session is over; if it broke, the figure is none."""
        if not member.cancelled() and member.exception() is not None:
            self.problem = self.problem or member.exception()
            for event in self._reached.values():
                event.set()

    async def all_are(self, what: str) -> None:
        """Return when every member is that far; raise if one never will be."""
        await asyncio.wait_for(self._event(what).wait(), PATIENCE_S)
        if self.problem is not None:
            raise self.problem

    def _event(self, what: str) -> asyncio.Event:
        return self._reached.setdefault(what, asyncio.Event())


class Member:
    """A node with one worker group. Its workers start and end at once.

    As a real one it outlives streams: it dials again, tells what it has, and repeats what was not answered.
    """

    def __init__(self, number: int, hub: str, run_id: str, incarnation: int, crowd: Crowd) -> None:
        self._hub = hub
        self._crowd = crowd
        self._port = 20_000 + number
        self._state = pb.MemberState(role=ROLE, local_world_size=8, condition=pb.MEMBER_CONDITION_JOINING)
        self._report = pb.JoinRequest(
            ready=pb.MemberReady(role=ROLE, local_world_size=8, master_port=self._port)
        )
        """Said and not answered."""
        self._beats = 0
        self._finished = False
        self._speaking = asyncio.Lock()
        self._call: Any = None
        self._hello = pb.SessionHello(
            run_id=run_id,
            incarnation=incarnation,
            node_id=name_of(number),
            agent_uid=f"uid-{number}",
            session_epoch=1,
            address=f"127.0.0.1:{self._port}",
            node_name=name_of(number),
            reattach_window=duration_pb2.Duration(seconds=REATTACH_S),
        )

    async def live(self) -> None:
        """From the first dial to the end of the run."""
        pause = FIRST_PAUSE_S
        while not self._finished:
            try:
                await self._one_stream()
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    raise
            if not self._finished:
                self._crowd.redialled += 1
                self._hello.session_epoch += 1
                # Many lose one hub together, and shall not come back together.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LAST_PAUSE_S)

    async def _one_stream(self) -> None:
        beating: asyncio.Task[None] | None = None
        async with insecure_channel(self._hub) as channel:
            # The generated stubs are typed for synchronous channels.
            stub: Any = RendezvousServiceStub(cast("grpc.Channel", channel))
            self._call = stub.Join()
            del self._hello.members[:]
            if self._state.round:
                self._hello.members.append(self._state)
            try:
                await self._write(pb.JoinRequest(hello=self._hello))
                while (word := await self._call.read()) is not grpc.aio.EOF:
                    kind = word.WhichOneof("message")
                    if kind == "welcome":
                        await self._write(self._report)
                        interval = word.welcome.heartbeat.ToNanoseconds() / 1e9
                        beating = asyncio.ensure_future(self._beat(interval))
                    elif kind == "finished":
                        self._finished = True
                        self._crowd.note("finished")
                        return
                    else:
                        await self._hear(kind, word)
            finally:
                self._call = None
                if beating is not None:
                    beating.cancel()

    async def fail(self) -> None:
        """A worker of the round fails."""
        failure = pb.AgedFailure(failure=run_pb2.Failure(pid=1, exit_code=1))
        failed = pb.MemberFailed(role=ROLE, round=self._state.round, failures=[failure])
        await self._tell(pb.JoinRequest(failed=failed))

    async def succeed(self) -> None:
        """All workers of the round end well."""
        self._state.condition = pb.MEMBER_CONDITION_DONE
        await self._tell(pb.JoinRequest(done=pb.MemberDone(role=ROLE, round=self._state.round)))

    async def _hear(self, kind: str, word: pb.JoinResponse) -> None:
        if kind == "assignment":
            if word.assignment.round > self._state.round:
                self._crowd.note(f"in round {word.assignment.round}")
            self._state.round = word.assignment.round
            self._state.condition = pb.MEMBER_CONDITION_RUNNING
            self._report = pb.JoinRequest()
        elif kind == "stop_round":
            if self._state.condition != pb.MEMBER_CONDITION_JOINING:
                self._crowd.note(f"told to stop {self._state.round}")
            self._state.condition = pb.MEMBER_CONDITION_JOINING
            gone = pb.RoundGone(role=ROLE, round=self._state.round, master_port=self._port)
            await self._tell(pb.JoinRequest(gone=gone))

    async def _beat(self, interval: float) -> None:
        pause = interval * random.uniform(0.5, 1.0)
        while True:
            await asyncio.sleep(pause)
            pause = interval
            self._beats += 1
            await self._write(pb.JoinRequest(heartbeat=pb.SessionHeartbeat(sequence=self._beats)))

    async def _tell(self, report: pb.JoinRequest) -> None:
        self._report = report
        await self._write(report)

    async def _write(self, request: pb.JoinRequest) -> None:
        """Say it, if anybody hears: a stream that is over says why to whoever reads it."""
        async with self._speaking:
            if self._call is not None and request.WhichOneof("message"):
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._call.write(request)


class Steps:
    """Seconds of each step, and the processor time it cost the hub and the members."""

    def __init__(self, hub_pid: int) -> None:
        self._processes = {"hub": psutil.Process(hub_pid), "members": psutil.Process(os.getpid())}
        self.took: dict[str, float] = {}

    async def take(
        self, name: str, act: Callable[[], Awaitable[object]], *goals: Callable[[], Awaitable[None]]
    ) -> None:
        """Time one step: each of its goals from its beginning."""
        before, began = self._used(), time.perf_counter()
        await act()
        for number, goal in enumerate(goals):
            await goal()
            self.took[f"{name}{number or ''}"] = time.perf_counter() - began
        for who, used in self._used().items():
            self.took[f"{name}_{who}_cpu"] = used - before[who]
        await asyncio.sleep(SETTLE_S)
        self.took["hub_resident"] = self._processes["hub"].memory_info().rss

    def _used(self) -> dict[str, float]:
        times = {who: process.cpu_times() for who, process in self._processes.items()}
        return {who: each.user + each.system for who, each in times.items()}


async def measure(hub: str, hub_pid: int, run_id: str, incarnation: int, count: int) -> dict[str, float]:
    """All steps of a run of so many members."""
    crowd = Crowd(count)
    members = [Member(number, hub, run_id, incarnation, crowd) for number in range(count)]
    steps = Steps(hub_pid)
    living: list[asyncio.Task[None]] = []

    async def dial() -> None:
        for member in members:
            living.append(asyncio.ensure_future(member.live()))
            living[-1].add_done_callback(crowd.ended)

    def until(what: str) -> Callable[[], Awaitable[None]]:
        return lambda: crowd.all_are(what)

    await steps.take("join", dial, until("in round 1"))
    await steps.take("again", members[-1].fail, until("told to stop 1"), until("in round 2"))
    everybody = (member.succeed() for member in members)
    await steps.take("end", lambda: asyncio.gather(*everybody), until("finished"))
    await asyncio.wait_for(asyncio.gather(*living), PATIENCE_S)
    return {**steps.took, "redialled": crowd.redialled}


def main() -> None:
    """Measure, and print what came out."""
    hub, hub_pid, run_id, incarnation, count = sys.argv[1:]
    # Rings of a short life are no matter of the figure.
    gc.disable()
    print(json.dumps(asyncio.run(measure(hub, int(hub_pid), run_id, int(incarnation), int(count)))))


if __name__ == "__main__":
    main()
