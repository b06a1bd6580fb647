"""The runs of the storm, each with a caller who does not give up: one request id, asked until answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentd.api.errors import AgentError, Code
from agentd.api.types import (
    Command,
    EntrypointKind,
    IsolationPolicy,
    RendezvousSpec,
    RoleSpec,
    RunRequest,
    RunSpec,
    RunStatus,
    StopScope,
)
from tests.e2e.chaos.book import Book
from tests.e2e.chaos.plan import Job
from tests.e2e.chaos.world import World

HEARTBEAT_S = 0.2
LEASE_S = 1.0
WINDOW_S = 3.0
GRACE_S = 0.5
JOIN_S = 10.0
PAUSE_S = 0.3
TRANSIENT = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED})


def spec_of(job: Job, program: Path, folder: Path) -> RunSpec:
    """The run as a caller words it."""
    command = Command(
        entrypoint=str(program),
        arguments=(str(folder), f"{job.work:.2f}", str(job.manner)),
        kind=EntrypointKind.EXECUTABLE,
        working_directory=str(folder),
    )
    if job.preload:
        script = str(program.with_suffix(".py"))
        command = replace(command, kind=EntrypointKind.SCRIPT, entrypoint=script, python=sys.executable)
    return RunSpec(
        run_id=job.run_id,
        roles=tuple(
            RoleSpec(command=command, role=part.role, nodes=part.nodes, local_world_size=part.workers)
            for part in job.parts
        ),
        nodes=job.nodes,
        rendezvous=RendezvousSpec(
            min_members=job.min_members,
            max_members=job.max_members,
            join_timeout=JOIN_S,
            last_call=0.5,
            hub_timeout=JOIN_S,
            heartbeat=HEARTBEAT_S,
            lease=LEASE_S,
            reattach_window=WINDOW_S,
        ),
        max_restarts=job.max_restarts,
        stop_grace=GRACE_S,
        controller_lease=job.lease,
        on_isolation=IsolationPolicy.STOP if job.isolated_stop else IsolationPolicy.KEEP,
        preload=("decimal",) if job.preload else (),
        standby=job.standby,
    )


@dataclass
class Caller:
    """One run, from the wish for it to its end."""

    job: Job
    world: World
    book: Book
    program: Path
    folder: Path

    async def carry(self) -> None:
        """Start the run, end it if that is planned, and return once its hub says that it is over."""
        request = RunRequest(
            request_id=f"wish for {self.job.run_id}", spec=spec_of(self.job, self.program, self.folder)
        )
        status = await self._asked(self.job.hub, self._for(request, self.job.hub))
        if status is None:
            self.world.note(f"{self.job.run_id}: refused by its hub")
            return
        self.book.begin(self.job, status.incarnation)
        self.world.note(
            f"{self.job.run_id}/{status.incarnation} on {self.job.nodes}, hub {self.job.hub}: {self.job}"
        )
        others = [node for node in self.job.nodes if node != self.job.hub]
        asking = [asyncio.create_task(self._asked(node, self._for(request, node, status))) for node in others]
        if self.job.stop_after is not None:
            asking.append(asyncio.create_task(self._stop(self.job.stop_after, self.job.nodes)))
        if self.job.leaver:
            leaving = self._stop(self.job.work, (self.job.leaver,), StopScope.LEAVE)
            asking.append(asyncio.create_task(leaving))
        if self.job.lease is not None:
            asking.append(asyncio.create_task(self._renew(self.job.lease)))
        try:
            while not self.book.is_over(self.job.run_id):
                await asyncio.sleep(PAUSE_S)
                for task in asking:
                    if task.done():
                        task.result()
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        status = self.book.by_hub[self.job.run_id]
        self.world.note(f"{self.job.run_id} is {status.phase}: {status.reason}")

    def _for(self, request: RunRequest, node: str, first: RunStatus | None = None) -> RunRequest:
        return RunRequest(
            request_id=request.request_id,
            spec=request.spec,
            incarnation=first.incarnation if first else 0,
            hub_address=first.hub_address if first else "",
            node_name=node if node in self.job.nodes else "",
        )

    async def _asked(self, node: str, request: RunRequest) -> RunStatus | None:
        """The node's answer, however often it takes. None: it refuses."""
        place, first = self.world.places[node], True
        while not self.book.is_over(self.job.run_id):
            refuses, wished = first and place.wish_known and place.wished.mode is not None, place.wished
            first = False
            try:
                status = (await place.client.run(request)).status
                still = refuses and place.wish_known and place.wished is wished
                assert not still, f"{node} is drained, and took {self.job.run_id}"
                return status
            except AgentError as error:
                if error.code not in TRANSIENT:
                    self.world.note(f"{self.job.run_id}: {node} says {error}")
                    return None
            await asyncio.sleep(PAUSE_S)
        return None

    async def _renew(self, lease: float) -> None:
        """Look after the run, by any of its nodes, for as long as planned."""
        ends = time.monotonic() + self.job.renewed_for
        picked = random.Random(f"renews {self.job.run_id}")
        while time.monotonic() < ends:
            node = picked.choice(self.job.nodes)
            sent = time.time()
            with contextlib.suppress(AgentError):
                await self.world.places[node].client.renew_lease(self.job.run_id)
                self.book.renewed[self.job.run_id] = sent
            await asyncio.sleep(lease / 4)
        self.book.abandoned[self.job.run_id] = time.monotonic()
        self.world.note(f"{self.job.run_id}: nobody renews its lease of {lease:.2f} s any more")

    async def _stop(self, after: float, nodes: Sequence[str], scope: StopScope = StopScope.TERMINATE) -> None:
        """Any of these nodes takes the wish."""
        await asyncio.sleep(after)
        picked = random.Random(self.job.run_id)
        while not self.book.is_over(self.job.run_id):
            node = picked.choice(nodes)
            with contextlib.suppress(AgentError):
                await self.world.places[node].client.stop(self.job.run_id, scope=scope, reason="planned")
                self.world.note(f"{self.job.run_id}: {node} took the wish to {scope.value}")
                return
            await asyncio.sleep(PAUSE_S)
