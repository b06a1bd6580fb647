"""Who is which rank: from an assignment, from sizes alone, or exchanged through the store as in torch."""

from __future__ import annotations

import json

from agentd.core.assignment import Assignment
from agentd.core.ranks import RankBases, deal_ranks
from agentd.elastic.agent.server.spec import Worker, WorkerSpec
from agentd.elastic.utils.store import Store, wait_for_keys
from agentd.procs.waiter import Waiter
from agentd.quickdata import dataclass

ROLE_INFO = "torchelastic/role_info/"
ASSIGNED = "torchelastic/assigned_ranks/"


@dataclass(frozen=True, slots=True)
class RoleInstance:
    """One agent's size, as the others see it."""

    role: str
    rank: int
    local_world_size: int

    def to_json(self) -> bytes:
        """The bytes torch's agents exchange."""
        fields = {"role": self.role, "rank": self.rank, "local_world_size": self.local_world_size}
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RoleInstance:
        """The reverse of `to_json`."""
        fields = json.loads(data)
        return cls(fields["role"], fields["rank"], fields["local_world_size"])


def identical_bases(group_rank: int, group_world_size: int, local_world_size: int) -> RankBases:
    """The bases when all agents are alike; nothing is exchanged."""
    rank = group_rank * local_world_size
    world_size = group_world_size * local_world_size
    return RankBases(rank, world_size, rank, world_size)


def assigned_bases(assignment: Assignment) -> RankBases:
    """The bases that the rendezvous decided."""
    return RankBases(
        assignment.rank_base,
        assignment.world_size,
        assignment.role_rank_base,
        assignment.role_world_size,
    )


def exchanged_bases(
    store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec, waiter: Waiter
) -> RankBases:
    """Tell the store this agent's size; group rank 0 answers all. Keys and values are torch's."""
    own = RoleInstance(spec.role, group_rank, spec.local_world_size)
    store.set(f"{ROLE_INFO}{group_rank}", own.to_json())
    if group_rank == 0:
        keys = [f"{ROLE_INFO}{rank}" for rank in range(group_world_size)]
        wait_for_keys(store, keys, waiter)
        agents = [RoleInstance.from_json(data) for data in store.multi_get(keys)]
        bases = deal_ranks([(agent.role, agent.local_world_size) for agent in agents])
        store.multi_set(
            [f"{ASSIGNED}{rank}" for rank in range(group_world_size)],
            [json.dumps([b.rank, b.world_size, b.role_rank, b.role_world_size]) for b in bases],
        )
    key = f"{ASSIGNED}{group_rank}"
    wait_for_keys(store, [key], waiter)
    return RankBases(*json.loads(store.get(key)))


def workers_from(bases: RankBases, local_world_size: int) -> list[Worker]:
    """One worker for each local rank, consecutive from the bases."""
    return [
        Worker(
            local_rank=local_rank,
            global_rank=bases.rank + local_rank,
            role_rank=bases.role_rank + local_rank,
            world_size=bases.world_size,
            role_world_size=bases.role_world_size,
        )
        for local_rank in range(local_world_size)
    ]
