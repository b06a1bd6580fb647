"""What must hold whatever fails: pure checks of what was seen, each with a sentence for all that is wrong."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agentd.api.history import Event, EventKind
from agentd.api.types import TERMINAL, Drain, DrainMode, Phase, RunStatus
from tests.e2e.chaos.observe import Acting, Look, Role, Seen, Witness
from tests.e2e.chaos.plan import Job


def two_rounds(former: Look, now: Look) -> Iterator[str]:
    """A run has one round at a time on a node.

    Two looks prove it, one does not: what was seen early in a look may be gone before its end. A process of
    another round that was there at the former look, beside one that is still there, has lived beside it.
    """
    before: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for seen in former.workers():
        before[seen.node, seen.run_id].append(seen)
    for seen in now.workers():
        for other in before[seen.node, seen.run_id]:
            if (other.incarnation, other.round) > (seen.incarnation, seen.round):
                yield f"two rounds of {seen.run_id} alive on {seen.node}: {seen}; {other}"


def two_acting(former: Collection[Acting], now: Collection[Acting]) -> Iterator[str]:
    """Wherever its workers are, a run has one round that may write: a later one waits until it may not.

    Two looks prove it, see `two_rounds`.
    """
    newest: dict[tuple[str, int], Acting] = {}
    for each in sorted(former, key=lambda acting: acting.round):
        newest[each.run_id, each.incarnation] = each
    for each in now:
        later = newest.get((each.run_id, each.incarnation))
        if later is not None and later.round > each.round:
            both = f"{each.round} on {each.node}, {later.round} on {later.node}"
            yield f"two rounds of {each.run_id} may write: {both}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a run stands by its hub's own word, and since when that was known."""

    round: int = 0
    round_since: float = 0.0
    over_since: float | None = None


def overdue(
    now: Look,
    standing: Mapping[str, Standing],
    contact: Mapping[tuple[str, str], float | None],
    allowed_s: float,
) -> Iterator[str]:
    """Workers of a run that is over, or of a round that is, end soon once their node can know.

    `contact`: by run and node, since when the node and the run's hub are well and reach each other.
    """
    for seen in now.workers():
        stands = standing.get(seen.run_id)
        since = contact.get((seen.run_id, seen.node))
        if stands is None or since is None:
            continue
        stale = stands.over_since
        if stale is None and seen.round < stands.round:
            stale = stands.round_since
        if stale is not None and now.at - max(stale, since) > allowed_s:
            why = "the run is over" if stands.over_since is not None else f"round {stands.round} is there"
            yield f"{seen} is alive {now.at - max(stale, since):.1f} s after it had to end: {why}"


def crowded(
    now: Look, empty_since: Mapping[str, float], well_since: Mapping[str, float | None], allowed_s: float
) -> Iterator[str]:
    """A node that had to leave its runs has no workers any more.

    `empty_since`: by node, since when it has to; no other node has to. `well_since`: since when it could.
    """
    for seen in now.workers():
        asked, well = empty_since.get(seen.node), well_since.get(seen.node)
        if asked is not None and well is not None and now.at - max(asked, well) > allowed_s:
            yield f"{seen} is alive {now.at - max(asked, well):.1f} s after its drained node had to leave it"


def as_wished(node: str, wished: DrainMode | None, shown: Drain | None) -> Iterator[str]:
    """A node is drained if and only if its operator wants it."""
    mode = shown.mode if shown else None
    if mode is not wished:
        yield f"{node} is to have drain mode {wished}, and shows {mode}"


def outlived(
    job: Job, phase: Phase | None, now: float, abandoned: float | None, well: float | None, allowed_s: float
) -> Iterator[str]:
    """A run ends a lease after its caller went. `well`: since when its hub can know."""
    if job.lease is None or abandoned is None or well is None or phase in (None, Phase.STOPPING, *TERMINAL):
        return
    late = now - max(abandoned, well) - job.lease
    if late > allowed_s:
        yield f"{job.run_id} is {phase} {late:.1f} s after its lease ended, by its hub's word"


LEASE_ENDED = "its controller lease of"


def stopped_too_soon(job: Job, run: RunStatus, renewed: float | None) -> Iterator[str]:
    """A lease ends no run without one, and none within the lease after a renewal that was answered.

    `renewed`: when the last of these was sent, by the clock of the run's times.
    """
    if run.phase is not Phase.STOPPED or not run.reason.startswith(LEASE_ENDED):
        return
    if job.lease is None:
        yield f"{job.run_id} has no lease, and was stopped: {run.reason}"
    elif renewed is not None and run.finished_at < renewed + job.lease:
        after = run.finished_at - renewed
        yield f"{job.run_id} was stopped {after:.2f} s after a renewal of its lease of {job.lease:.2f} s"


def ranks(job: Job, seen: Sequence[Witness]) -> Iterator[str]:
    """In each round ranks are a permutation, and all workers were told the same."""
    rounds: dict[int, list[Witness]] = defaultdict(list)
    for witness in seen:
        if witness.event == "began":
            rounds[witness.round].append(witness)
    for number, workers in sorted(rounds.items()):
        where = f"{job.run_id}, round {number}"
        told = {(w.world_size, w.restart_count, w.max_restarts, w.master) for w in workers}
        if len(told) > 1:
            yield f"{where}: workers were told different things: {sorted(told)}"
        given = [w.rank for w in workers]
        if len(set(given)) != len(given):
            yield f"{where}: a rank was given twice: {sorted((w.rank, w.node, w.pid) for w in workers)}"
        if not all(0 <= w.rank < w.world_size for w in workers):
            yield f"{where}: ranks {sorted(given)} of {workers[0].world_size} workers"
        for group in {(w.node, w.role) for w in workers}:
            own = sorted(w.rank for w in workers if (w.node, w.role) == group)
            if own != list(range(own[0], own[0] + len(own))):
                yield f"{where}: ranks {own} of one group, {group[1]} on {group[0]}"
        for role in {w.role for w in workers}:
            yield from _ranks_of_role(f"{where}, role {role}", [w for w in workers if w.role == role])


def _ranks_of_role(where: str, workers: Sequence[Witness]) -> Iterator[str]:
    sizes, given = {w.role_world_size for w in workers}, sorted(w.role_rank for w in workers)
    if len(sizes) > 1:
        yield f"{where}: workers were told different sizes: {sorted(sizes)}"
    if len(set(given)) != len(given) or not all(0 <= each < max(sizes) for each in given):
        yield f"{where}: role ranks {given} of {max(sizes)}"


def restarts(job: Job, seen: Sequence[Witness]) -> Iterator[str]:
    """Counts stay within the budget and never fall."""
    highest = 0
    by_round = sorted({(w.round, w.restart_count) for w in seen})
    for number, count in by_round:
        if count > job.max_restarts:
            yield f"{job.run_id}, round {number}: restart {count} of {job.max_restarts}"
        if count < highest:
            yield f"{job.run_id}, round {number}: the restart count fell from {highest} to {count}"
        highest = max(highest, count)


@dataclass
class Results:
    """Every terminal phase that was ever shown. It is what will be shown for ever."""

    shown: dict[tuple[str, str, int], Phase] = field(default_factory=dict)

    def see(self, node: str, runs: Iterable[RunStatus], *, lasting: bool) -> Iterator[str]:
        """What a node shows, all of it. `lasting`: its journal is well, so that what is new will stay."""
        now = {(node, run.run_id, run.incarnation): run.phase for run in runs}
        for key, phase in self.shown.items():
            if key[0] == node and now.get(key) is not phase:
                yield f"{key[1]}/{key[2]} was {phase} on {node} and is {now.get(key) or 'not known'}"
        if lasting:
            self.shown.update({key: phase for key, phase in now.items() if phase in TERMINAL})


def explained(
    job: Job, phase: Phase | None, reason: str, events: Sequence[Event], seen: Sequence[Witness]
) -> Iterator[str]:
    """A run has ended, and its history, of all nodes together, says why.

    `phase` and `reason` are its hub's last word.
    """
    if phase is None or phase not in TERMINAL:
        yield f"{job.run_id} has not ended: {phase}"
        return
    kinds = {event.kind for event in events}
    if EventKind.RUN_ENDED.value not in kinds:
        yield f"{job.run_id} is {phase}, and no history says that it ended"
    last = max((w.round for w in seen), default=0)
    done = {w.rank for w in seen if w.event == "done" and w.round == last}
    size = max((w.world_size for w in seen if w.round == last), default=0)
    if phase is Phase.SUCCEEDED and (not size or done != set(range(size))):
        yield f"{job.run_id} succeeded, but of {size} ranks of round {last} only {sorted(done)} were done"
    leased = job.lease is not None and any(LEASE_ENDED in event.detail for event in events)
    if phase is Phase.STOPPED and EventKind.STOP_ASKED.value not in kinds and not leased:
        yield f"{job.run_id} is stopped ({reason}), and no history has the stop that somebody asked for"
    if phase is Phase.FAILED and not kinds & _CAUSES and not reason:
        yield f"{job.run_id} failed, and neither its history nor its reason says of what"
    if phase is Phase.LOST:
        yield f"{job.run_id} is lost ({reason}), by its hub's word"


_CAUSES = {EventKind.WORKERS_FAILED.value, EventKind.HOST_ENDED.value, EventKind.UNKILLABLE.value}


def unfinished(run_id: str, shown: Mapping[str, RunStatus]) -> Iterator[str]:
    """Every node that knows of the run says that it is over."""
    live = {node: status.phase.value for node, status in shown.items() if status.phase not in TERMINAL}
    if live:
        yield f"{run_id} has not ended everywhere: {live}"


def agreeing(run_id: str, hub: str, shown: Mapping[str, RunStatus]) -> Iterator[str]:
    """What nodes say at the end is the hub's word. One that had left has an end of its own: not success."""
    word = shown[hub].phase if hub in shown else None
    for node, status in shown.items():
        left = word is Phase.SUCCEEDED and status.reason
        if status.phase is not word and Phase.SUCCEEDED in (status.phase, word) and not left:
            yield f"{run_id} is {word} by its hub {hub}, and {status.phase} ({status.reason}) by {node}"


def untouched(bystanders: Collection[tuple[int, int]], alive: Collection[tuple[int, int]]) -> Iterator[str]:
    """Processes that look like ours and are not live on. Each is (pid, start time)."""
    for pid, _ in sorted(set(bystanders) - set(alive)):
        yield f"pid {pid}, which belongs to nobody here, was ended"


def nothing_left(now: Look) -> Iterator[str]:
    """With every run over, nodes run their agentd and its host in stock, and nothing else."""
    for seen in now.processes.values():
        if seen.role not in (Role.AGENTD, Role.STOCK):
            yield f"left behind: {seen}"


def nothing_open(node: str, fresh: Sequence[str], now: Sequence[str], allowed: int) -> Iterator[str]:
    """An agentd without a run holds what one that has just begun does, and a few idle connections."""
    pidfds = [target for target in now if "pidfd" in target]
    if pidfds:
        yield f"agentd of {node} still holds {len(pidfds)} processes by pidfd"
    if len(now) > len(fresh) + allowed:
        yield f"agentd of {node} has {len(now)} descriptors, {len(fresh)} when it began: {sorted(now)}"


def no_other_files(node: str, names: Iterable[str], runs: Collection[str]) -> Iterator[str]:
    """The state directory has the journal, the lock, the socket, and folders of runs it knows.

    What a process that was killed left half written in such a folder goes with the run.
    """
    for name in names:
        first, _, rest = name.partition("/")
        known = rest.split("/")[0] in runs if first == "runs" else first in _STATE_FILES
        if not known:
            yield f"a file beyond retention on {node}: {name}"


def no_traceback(node: str, log: str) -> Iterator[str]:
    """Whatever fails, agentd says so in a line: a traceback is a fault of its own."""
    for story in log.split("Traceback (most recent call last):")[1:]:
        last = next((line for line in story.splitlines() if line and not line.startswith(" ")), "")
        yield f"agentd of {node} wrote a traceback: {last}"


_STATE_FILES = frozenset(
    {"agent_uid", "agentd.db", "agentd.db-wal", "agentd.db-shm", "agentd.lock", "hosts.sock"}
)
