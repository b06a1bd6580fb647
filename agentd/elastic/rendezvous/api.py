"""The rendezvous interface: how agents of one run find each other and agree on a round.

The names and meanings are torch's, so that a handler written for it serves here unchanged. What a handler
may offer beyond them is in `agentd.elastic.rendezvous.coordinated`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.elastic.utils.store import Store


class RendezvousError(Exception):
    """Base of all errors of a rendezvous."""


class RendezvousClosedError(RendezvousError):
    """The rendezvous is closed: the run has ended or is about to."""


class RendezvousTimeoutError(RendezvousError):
    """Not enough agents came in time."""


class RendezvousConnectionError(RendezvousError):
    """What the agents meet through cannot be reached."""


class RendezvousStateError(RendezvousError):
    """The shared state is corrupt, or lacks what was asked for."""


class RendezvousGracefulExitError(RendezvousError):
    """This agent was not needed and may leave in peace."""


@dataclass(frozen=True)
class RendezvousStoreInfo:
    """Where the workers of a round meet: MASTER_ADDR and MASTER_PORT."""

    master_addr: str
    master_port: int


class RendezvousInfo:
    """A formed round, as one agent sees it."""

    def __init__(
        self, store: Store, rank: int, world_size: int, bootstrap_store_info: RendezvousStoreInfo
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._bootstrap_store_info = bootstrap_store_info

    @property
    def store(self) -> Store:
        """The store that the agents of the round share."""
        return self._store

    @property
    def rank(self) -> int:
        """The agent's group rank."""
        return self._rank

    @property
    def world_size(self) -> int:
        """The number of agents."""
        return self._world_size

    @property
    def bootstrap_store_info(self) -> RendezvousStoreInfo:
        """Where the workers meet."""
        return self._bootstrap_store_info


class RendezvousHandler(ABC):
    """One agent's access to the rendezvous of a run."""

    @abstractmethod
    def get_backend(self) -> str:
        """The name of this kind of rendezvous."""

    @property
    def use_agent_store(self) -> bool:
        """Whether workers may use the agents' own store at MASTER_ADDR and MASTER_PORT."""
        return False

    @abstractmethod
    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round and wait until it is formed.

        Raises a `RendezvousError` when that cannot be.
        """

    @abstractmethod
    def is_closed(self) -> bool:
        """Whether no further round will be formed."""

    @abstractmethod
    def set_closed(self) -> None:
        """Let no further round be formed."""

    @abstractmethod
    def num_nodes_waiting(self) -> int:
        """How many agents came after the round was formed and wait for the next one."""

    @abstractmethod
    def get_run_id(self) -> str:
        """The run's id."""

    @abstractmethod
    def shutdown(self) -> bool:
        """Give back what the handler holds; tells whether that went well."""
