"""The storm: runs come and go, faults strike and are healed, and it is asked all the time if all is well.

Then comes the calm: everything is healed, every run must end, and nothing may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentd.api.errors import AgentError
from agentd.api.history import Event
from tests.e2e.chaos import invariants
from tests.e2e.chaos.book import Book
from tests.e2e.chaos.faults import strike
from tests.e2e.chaos.load import GRACE_S, Caller
from tests.e2e.chaos.observe import BYSTANDER, Acting, acting, witnesses
from tests.e2e.chaos.plan import FORKING, KINDS, LEAVE_NODE_WELL, Fault, Forking, Job, Kind, faults, jobs
from tests.e2e.chaos.world import Place, Undo, Wished, World, world
from tests.support import leaks

NODES = ("n1", "n2", "n3", "n4", "n5")
LOOK_S = 0.1
ASK_S = 1.0
SETTLE_S = 6.0
"""What a node in contact may take to learn of the end of a run or round, on a slow and busy machine."""
MOST_ILL = 3
"""Nodes that may be ill when another is struck: the rest gets runs on, and so something to break."""
CALM_S = 60.0
IDLE_CONNECTIONS = 12
PROGRAM = Path(__file__).parent / "worker.sh"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How much storm is wanted."""

    seed: int
    faults: int = 200
    """Ends after so many."""
    rate: float = 8.0
    """Faults a second."""
    runs: int = 8
    """At once."""
    kinds: tuple[Kind, ...] = tuple(KINDS)
    forking: Forking = FORKING[""]


@dataclass
class Outcome:
    """What came of it."""

    survived: Counter[Kind] = field(default_factory=Counter)
    struck: list[Fault] = field(default_factory=list)
    phases: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    violations: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self, seed: int) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.survived.most_common())
        phases = ", ".join(f"{count} {phase}" for phase, count in self.phases.most_common())
        return (
            f"seed {seed}: {sum(self.survived.values())} faults survived in {self.seconds:.0f} s ({kinds});"
            f" {sum(self.phases.values())} runs ({phases}), {self.rounds} rounds"
        )


async def storm(wish: Wish, root: Path) -> Outcome:
    """Have the storm, and tell what came of it: with violations it ends early."""
    outcome = Outcome()
    folder = root / "out"
    folder.mkdir()
    began = time.monotonic()

    def note(text: str) -> None:
        outcome.log.append(f"{time.monotonic() - began:7.2f} {text}")

    async with world(root, NODES, note) as fleet:
        try:
            await _Storm(wish, fleet, folder, outcome).live()
        except AssertionError as error:
            outcome.violations.append(str(error))
        outcome.seconds = time.monotonic() - began
    (root / "storm.log").write_text("\n".join([*outcome.log, *outcome.violations]) + "\n")
    return outcome


class _Storm:
    def __init__(self, wish: Wish, fleet: World, folder: Path, outcome: Outcome) -> None:
        self._wish = wish
        self._world = fleet
        self._folder = folder
        self._outcome = outcome
        self._book = Book()
        self._asked_at: dict[str, float] = {}
        self._began = time.monotonic()
        self._healing: set[asyncio.Task[None]] = set()
        self._callers: set[asyncio.Task[None]] = set()
        self._bystanders = _Bystanders(fleet, folder)

    async def live(self) -> None:
        """Storm, calm, end."""
        with self._bystanders:
            watching = [asyncio.create_task(self._watch())]
            watching += [asyncio.create_task(self._ask(name)) for name in self._world.places]
            doing = asyncio.create_task(self._rage())
            try:
                await asyncio.wait({doing, *watching}, return_when=asyncio.FIRST_COMPLETED)
                for task in (*watching, doing):
                    if task.done():
                        task.result()
            finally:
                await _cancel({doing, *watching, *self._callers, *self._healing})
            if not self._outcome.violations:
                await self._ends()

    # --- what happens

    async def _rage(self) -> None:
        loading = asyncio.create_task(self._load())
        try:
            for fault in faults(self._wish.seed, NODES, self._wish.rate, self._wish.kinds):
                if sum(self._outcome.survived.values()) >= self._wish.faults:
                    break
                await asyncio.sleep(max(0.0, self._began + fault.at - time.monotonic()))
                await self._strike(fault)
        finally:
            await _cancel({loading})
        self._world.note("calm")
        await asyncio.gather(*self._healing)
        await self._calm()

    async def _strike(self, fault: Fault) -> None:
        if fault.kind not in LEAVE_NODE_WELL and self._world.ill() >= MOST_ILL:
            return
        undo = await strike(self._world, fault)
        if undo is None:
            return
        self._world.note(str(fault))
        self._outcome.struck.append(fault)
        self._outcome.survived[fault.kind] += 1
        task = asyncio.create_task(self._heal(fault, undo))
        self._healing.add(task)
        task.add_done_callback(self._healed)

    async def _heal(self, fault: Fault, undo: Undo) -> None:
        await asyncio.sleep(fault.lasts)
        await undo()
        if fault.lasts:
            self._world.note(f"#{fault.number} is over")

    def _healed(self, task: asyncio.Task[None]) -> None:
        self._healing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._wrong([f"a fault could not be undone: {task.exception()}"])

    async def _load(self) -> None:
        coming = jobs(self._wish.seed, NODES, self._wish.forking)
        while True:
            while len(self._callers) < self._wish.runs:
                job = next(coming)
                if not job.careless and any(self._is_drained(node) for node in (job.hub, *job.nodes)):
                    continue
                caller = Caller(job, self._world, self._book, PROGRAM, self._folder)
                task = asyncio.create_task(caller.carry())
                self._callers.add(task)
                task.add_done_callback(self._callers.discard)
            await asyncio.sleep(LOOK_S)

    def _is_drained(self, node: str) -> bool:
        return self._world.places[node].wished.mode is not None

    async def _calm(self) -> None:
        """Nothing fails any more: every run ends by itself, everywhere."""
        for place in self._world.places.values():
            place.wish(Wished())
        ends = time.monotonic() + CALM_S
        while wrong := [*self._unfinished(), *invariants.nothing_left(self._world.look)]:
            if time.monotonic() > ends:
                self._wrong([f"{CALM_S:g} s after the last fault: {each}" for each in wrong])
                return
            await asyncio.sleep(LOOK_S)
        # Once more from all, of what is final now.
        asked = {name: self._asked_at.get(name, 0.0) for name in self._world.places}
        while any(self._asked_at.get(name, 0.0) <= at for name, at in asked.items()):
            await asyncio.sleep(LOOK_S)

    def _unfinished(self) -> Iterator[str]:
        if self._callers:
            yield f"{len(self._callers)} callers wait for their runs"
        for run_id in self._book.jobs:
            yield from invariants.unfinished(run_id, self._book.shown(run_id))

    # --- what is asked all the time

    async def _watch(self) -> None:
        former, former_acting = self._world.look, set[Acting]()
        while not self._outcome.violations:
            await asyncio.sleep(LOOK_S)
            now = self._world.see()
            self._wrong(invariants.two_rounds(former, now))
            contact = self._contact({seen.run_id for seen in now.workers()})
            self._wrong(invariants.overdue(now, self._book.standing, contact, GRACE_S + SETTLE_S))
            empty = {n: p.empty_since for n, p in self._world.places.items() if p.empty_since is not None}
            well = {name: place.well_since for name, place in self._world.places.items()}
            self._wrong(invariants.crowded(now, empty, well, GRACE_S + SETTLE_S))
            for run_id in self._book.abandoned:
                self._wrong(self._outlived(self._book.jobs[run_id], now.at))
            self._wrong(self._bystanders.hurt())
            now_acting = acting(now)
            self._wrong(invariants.two_acting(former_acting, now_acting))
            former, former_acting = now, now_acting

    async def _ask(self, name: str) -> None:
        place = self._world.places[name]
        while not self._outcome.violations:
            with contextlib.suppress(AgentError):
                well = not place.ailments
                if place.forgot:
                    place.forgot = False
                    self._book.forget(name)
                lasting = time.monotonic() > place.disk_bad_until
                runs = await place.client.list_runs(include_ended=True)
                now = time.monotonic()
                if well:
                    place.answered(now)
                self._wrong(self._book.see(name, runs, now, lasting=lasting))
                await place.tell_wish()
                await self._ask_drain(place)
                self._asked_at[name] = now
            await asyncio.sleep(ASK_S)

    async def _ask_drain(self, place: Place) -> None:
        """It shows what its operator wishes, whatever became of its agentd."""
        known, wished = place.wish_known, place.wished
        shown = (await place.client.get_node()).drain
        if known and place.wish_known and place.wished is wished:
            self._wrong(invariants.as_wished(place.name, wished.mode, shown))

    def _outlived(self, job: Job, now: float) -> Iterator[str]:
        book, well = self._book, self._world.places[job.hub].well_since
        yield from invariants.outlived(
            job, book.phase(job.run_id), now, book.abandoned[job.run_id], well, SETTLE_S
        )

    def _contact(self, run_ids: Iterable[str]) -> dict[tuple[str, str], float | None]:
        """By run and node, since when the node could know of the run what its hub knows."""
        found: dict[tuple[str, str], float | None] = {}
        for job in (self._book.jobs[run_id] for run_id in run_ids if run_id in self._book.jobs):
            hub = self._world.places[job.hub].well_since
            for node in job.nodes:
                own = self._world.places[node].well_since
                found[job.run_id, node] = None if hub is None or own is None else max(hub, own)
        return found

    def _wrong(self, found: Iterable[str]) -> None:
        for each in found:
            self._outcome.violations.append(each)
            self._world.note(f"VIOLATION {each}")

    # --- what is asked at the end

    async def _ends(self) -> None:
        for run_id, job in self._book.jobs.items():
            self._wrong(invariants.agreeing(run_id, job.hub, self._book.shown(run_id)))
            seen = witnesses(self._folder / run_id)
            last = self._book.by_hub.get(run_id)
            events = await self._history(run_id)
            phase, reason = (last.phase, last.reason) if last else (None, "")
            self._wrong(invariants.explained(job, phase, reason, events, seen))
            if run_id not in self._book.forgetful:
                self._wrong(invariants.ranks(job, seen))
                self._wrong(invariants.restarts(job, seen))
            self._outcome.phases[str(phase)] += 1
            self._outcome.rounds += last.round if last else 0
        for place in self._world.places.values():
            known = self._book.by_node[place.name]
            self._wrong(invariants.no_traceback(place.name, place.log.read_text(errors="replace")))
            self._wrong(invariants.no_other_files(place.name, place.files(), known))
            self._wrong(
                invariants.nothing_open(place.name, place.fresh, place.open_files(), IDLE_CONNECTIONS)
            )
        codes = await asyncio.gather(*(self._world.end(place) for place in self._world.places.values()))
        if any(codes):
            self._wrong([f"agentds ended with {codes}"])
        self._wrong(f"left behind: {seen}" for seen in self._world.see().processes.values())

    async def _history(self, run_id: str) -> Sequence[Event]:
        told = [
            await self._told_by(place, run_id)
            for place in self._world.places.values()
            if run_id in self._book.by_node[place.name]
        ]
        return [event for events in told for event in events]

    async def _told_by(self, place: Place, run_id: str) -> Sequence[Event]:
        """In the calm; a busy machine's answer may be late, and is asked for again."""
        ends = time.monotonic() + CALM_S
        while True:
            try:
                return await place.client.list_events(run_id)
            except AgentError:
                if time.monotonic() > ends:
                    raise
            await asyncio.sleep(LOOK_S)


class _Bystanders:
    """Processes that look like those of a run on each node, and belong to nobody there."""

    def __init__(self, fleet: World, folder: Path) -> None:
        self._world = fleet
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._known: set[tuple[int, int]] = set()

    def __enter__(self) -> None:
        env = {
            **os.environ,
            "AGENTD_RUN_ID": "run1",
            "TORCHELASTIC_RUN_ID": "run1",
            "RANK": "0",
            "AGENTD_GROUP_TOKEN": "0" * 32,
            BYSTANDER: "yes",
        }
        for name in NODES:
            # With the test they go too, even if it is killed.
            bound = ("setpriv", "--pdeathsig", "KILL")
            shell = f"{' '.join(bound)} sleep 100000 & wait # {PROGRAM}"
            command = [*bound, *self._world.net.within(name), "/bin/sh", "-c", shell]
            self._processes.append(
                subprocess.Popen(command, env=env, cwd=self._folder, start_new_session=True)
            )
        for process in self._processes:
            found = leaks.identify(process.pid)
            self._known.add((found.pid, found.start_time))

    def hurt(self) -> Iterator[str]:
        alive = set()
        for pid, _ in self._known:
            with contextlib.suppress(OSError):
                found = leaks.identify(pid)
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
                if state in "SR":
                    alive.add((found.pid, found.start_time))
        yield from invariants.untouched(self._known, alive)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            os.killpg(process.pid, 9)
            process.wait(10)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
