"""What must hold in every history. The first breach is kept: who is watched may swallow exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentd.api.errors import AgentError
from agentd.api.types import Phase
from agentd.core.assignment import Assignment
from agentd.hub.messages import RunFinished
from agentd.hub.state import HubRecord

if TYPE_CHECKING:
    from tests.simulation.group import Host
    from tests.simulation.world import World


class Breach(AssertionError):
    """Something happened that must not."""


class Judge:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._places: dict[int, dict[tuple[str, str], Assignment]] = {}
        """By round, what each member was given."""
        self._started: set[tuple[int, str, str]] = set()
        self.outcome: Phase | None = None
        self.outcome_reason = ""
        self.failures: dict[int, int] = {}
        """By round, how many groups failed in it."""
        self.gentle = False
        """Whether nothing happened that justifies another round."""
        self.breach: Breach | None = None
        self._forgotten = False
        """Whether a hub died while its disk was behind what it had announced (JOURNAL_BEHIND). Its numbers,
        the order, even the end may be lost with it; who may run what is not."""

    @property
    def rounds(self) -> int:
        return max(self._places, default=0)

    def hub_forgets(self) -> None:
        """The hub dies, and its disk had not kept up."""
        self._world.trace("the hub forgets what its disk has not taken")
        self._forgotten = True

    def _accuse(self, what: str) -> None:
        if self.breach is None:
            self._world.trace("BREACH", what)
            self.breach = Breach(what)

    # --- a round ----------------------------------------------------------------------------------------

    def assigned(self, node: str, role: str, place: Assignment, restarts: int) -> None:
        """A member was given a place, of whose workers the last were started after so many `restarts`."""
        self._world.trace(node, "has a place", place.round, place.group_rank, place.group_world_size)
        members = self._places.setdefault(place.round, {})
        known = members.setdefault((node, role), place)
        if known != place:
            self._accuse(f"{node}/{role} has two places in round {place.round}: {known} and {place}")
        if place.restart_count < restarts:
            self._accuse(f"{node}/{role} knows of {restarts} restarts, the hub of {place.restart_count}")
        self._agrees(members, place)
        self._is_stable(place.round, (node, role))
        if self.gentle and place.round > 1:
            self._accuse(f"round {place.round} formed though nothing justifies it")

    def _agrees(self, members: dict[tuple[str, str], Assignment], place: Assignment) -> None:
        spec = self._world.spec
        ranks = [each.group_rank for each in members.values()]
        if len(set(ranks)) < len(ranks) or max(ranks) >= place.group_world_size:
            self._accuse(f"group ranks {ranks} of {place.group_world_size} in round {place.round}")
        shared = {_shared(each) for each in members.values()}
        if len(shared) > 1:
            self._accuse(f"members disagree about round {place.round}: {shared}")
        if place.restart_count > spec.max_restarts:
            self._accuse(f"restart {place.restart_count} of {spec.max_restarts}")

    def _is_stable(self, round_: int, member: tuple[str, str]) -> None:
        now, before = self._places[round_], self._places.get(round_ - 1)
        if before is None or self._forgotten:
            return
        place, earlier = now[member], before.get(member)
        counted = place.restart_count - next(iter(before.values())).restart_count
        if counted not in (0, 1) or (counted and not self.failures.get(round_ - 1)):
            self._accuse(
                f"{counted} restarts counted after {self.failures.get(round_ - 1, 0)} failures "
                f"in round {round_ - 1}"
            )
        if earlier is None:
            return
        for other, their in now.items():
            if (known := before.get(other)) and (known.group_rank < earlier.group_rank) != (
                their.group_rank < place.group_rank
            ):
                if other != member:
                    self._accuse(f"{member} and {other} changed places in round {round_}")
        if earlier.group_rank == 0 and place.group_rank != 0:
            self._accuse(f"rank 0 moved from {member} in round {round_}, in which it takes part")

    def workers_started(self, host: Host, place: Assignment) -> None:
        """The heart: who else runs, and may it still act?"""
        world, now, node = self._world, self._world.clock.now, host.node
        mine = (place.round, node.name, host.role)
        if mine in self._started:
            self._accuse(f"{node.name} starts round {place.round} twice")
        self._started.add(mine)
        for other in world.nodes.values():
            for role, round_ in other.running():
                if other is node and round_ != place.round:
                    self._accuse(f"{node.name} runs rounds {round_} and {place.round}")
                if round_ >= place.round or (role == host.role and other is node):
                    continue
                until = other.contact.until(round_) if other.contact else 0.0
                if until > now:
                    self._accuse(
                        f"{node.name} starts round {place.round} while {other.name}/{role} runs {round_} "
                        f"and may act for {until - now:.3f} s"
                    )

    def failed(self, round_: int) -> None:
        """A group tells its hub that it failed in a round."""
        if self.gentle:
            self._accuse(f"a group failed in round {round_} though nothing went wrong")
        self.failures[round_] = self.failures.get(round_, 0) + 1

    # --- the end ----------------------------------------------------------------------------------------

    def recorded(self, record: HubRecord) -> None:
        """The hub writes down what it is about to say."""
        if record.outcome is not None:
            self._is_the_outcome(record.outcome, f"the record: {record.reason}")
        elif self.outcome is not None and not self._forgotten:
            self._accuse(f"the run was {self.outcome} ({self.outcome_reason}) and lives again")

    def finished(self, node: str, finished: RunFinished) -> None:
        """A node hears that the run is over."""
        self._world.trace(node, "hears the end", finished.phase, finished.reason)
        self._is_the_outcome(finished.phase, f"{node} heard: {finished.reason}")

    def _is_the_outcome(self, phase: Phase, where: str) -> None:
        if self.outcome is None:
            self.outcome, self.outcome_reason = phase, where
        elif self.outcome is not phase and not self._forgotten:
            self._accuse(f"the run was {self.outcome} ({self.outcome_reason}), then {phase} ({where})")

    def gave_up(self, node: str, why: str) -> None:
        """A node's session waited too long for its hub."""
        self._world.trace(node, "gives up on the hub", why)
        if self.gentle:
            self._accuse(f"{node} gave up on its hub: {why}")

    def refused(self, node: str, error: AgentError) -> None:
        """A node's session was refused for good: no healthy one ever is."""
        self._accuse(f"{node} was refused: {error}")

    def at_the_end(self) -> None:
        """Faults have stopped long ago: the run has made its way to its end, everywhere."""
        world = self._world
        if world.clock.faults:
            self._accuse(f"a process failed: {world.clock.faults[0]}")
        if self.outcome is None:
            self._accuse("the run has not ended")
        for node in world.nodes.values():
            if running := node.running():
                self._accuse(f"{node.name} still runs {running}")
            if node.agentd is not None and not node.ended:
                self._accuse(f"the part of {node.name} has not ended")
        self._explained()

    def _explained(self) -> None:
        """A run that failed has a reason that happened."""
        world, spec = self._world, self._world.spec
        if self.gentle and self.outcome is not Phase.SUCCEEDED:
            self._accuse(f"the run is {self.outcome} ({self.outcome_reason}) though nothing went wrong")
        if self.outcome is Phase.STOPPED and not world.terminated:
            self._accuse("the run is STOPPED and nobody asked for that")
        if self.outcome is not Phase.FAILED or self._forgotten:
            return
        if "restarts used" in self.outcome_reason:
            if len(self.failures) <= spec.max_restarts:
                self._accuse(f"failures in {len(self.failures)} rounds were too many: {self.outcome_reason}")
        elif "membership changes used" not in self.outcome_reason and self._enough_are_able():
            self._accuse(f"nothing explains the end of the run: {self.outcome_reason}")

    def _enough_are_able(self) -> bool:
        able = [node for node in self._world.nodes.values() if node.is_able]
        members = sum(len(node.roles) for node in able)
        return members >= self._world.spec.rendezvous.min_members


def _shared(place: Assignment) -> tuple[object, ...]:
    """What all members of a round must be told alike."""
    return (
        place.group_world_size,
        place.world_size,
        place.master_addr,
        place.master_port,
        place.restart_count,
        place.max_restarts,
    )
