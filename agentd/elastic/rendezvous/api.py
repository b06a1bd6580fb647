"""The rendezvous interface: how agents of one run find each other and agree on a round.

The names and meanings are torch's, so that a handler written for it serves here unchanged. What a handler
may offer beyond them is in `agentd.elastic.rendezvous.coordinated`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from agentd.quickdata import dataclass

if TYPE_CHECKING:
    from agentd.elastic.utils.store import Store

__all__ = [
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "rendezvous_handler_registry",
]


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

    MASTER_ADDR_KEY: ClassVar[str] = "MASTER_ADDR"
    """Under this key of the store rank 0 leaves the address for the others."""
    MASTER_PORT_KEY: ClassVar[str] = "MASTER_PORT"
    """And under this one the port, as text."""

    master_addr: str
    """A name or address of rank 0's machine that the others reach."""
    master_port: int
    """A port there."""

    @staticmethod
    def build(
        rank: int, store: Store, local_addr: str | None, server_port: int | None = None
    ) -> RendezvousStoreInfo:
        """Let rank 0 say through the store where the workers meet; every rank calls this and gets the same.

        Rank 0 offers `local_addr`, or else the name or address under which its machine is reached, and
        `server_port`, or else a free port. That port stays held for as long as `store` lives, or until
        `build` is called with it again: no other program gets it, and a worker that binds it with
        SO_REUSEADDR, as TCPStore does, gets it. The others wait for the store's timeout at most.
        """
        if rank == 0:
            addr, port = _offered(store, local_addr, server_port)
            store.set(RendezvousStoreInfo.MASTER_ADDR_KEY, addr.encode())
            store.set(RendezvousStoreInfo.MASTER_PORT_KEY, str(port).encode())
        addr = store.get(RendezvousStoreInfo.MASTER_ADDR_KEY).decode()
        return RendezvousStoreInfo(addr, int(store.get(RendezvousStoreInfo.MASTER_PORT_KEY)))


def _offered(store: Store, local_addr: str | None, server_port: int | None) -> tuple[str, int]:
    from agentd.elastic.utils.ports import HeldPort, hold_with, own_address

    addr = local_addr or own_address()
    if server_port:
        return addr, server_port
    port = HeldPort()
    hold_with(store, port)
    return addr, port.number


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
        """The run's id: the same for all its agents, and what workers know as TORCHELASTIC_RUN_ID."""

    @abstractmethod
    def shutdown(self) -> bool:
        """Give back what the handler holds; tells whether that went well."""


class RendezvousParameters:
    """What a handler is made from: who meets, where, under which name, and options of the backend."""

    def __init__(
        self,
        backend: str,
        endpoint: str,
        run_id: str,
        min_nodes: int,
        max_nodes: int,
        local_addr: str | None = None,
        **kwargs: Any,
    ) -> None:
        """`endpoint` is `host[:port]`, `kwargs` what only this backend knows. ValueError for senseless ones.

        `min_nodes` and `max_nodes` count agents. `local_addr` is the address of this machine to offer to
        others, found out if none is given.
        """
        if not backend:
            raise ValueError("the rendezvous backend has no name: give one, such as static")
        if min_nodes < 1:
            raise ValueError(f"min_nodes must be 1 or more, is {min_nodes}")
        if max_nodes < min_nodes:
            raise ValueError(f"max_nodes must be at least min_nodes, which is {min_nodes}; is {max_nodes}")
        self.backend = backend
        """The name the handler's creator is registered under."""
        self.endpoint = endpoint
        """Where the agents meet; its meaning is the backend's."""
        self.run_id = run_id
        """The run's id: agents of different runs never meet."""
        self.min_nodes = min_nodes
        """The fewest agents that form a round."""
        self.max_nodes = max_nodes
        """The most agents of a round."""
        self.config: dict[str, Any] = kwargs
        """The backend's own options."""
        self.local_addr = local_addr
        """The address of this machine for others, if it is given."""

    def get(self, key: str, default: Any = None) -> Any:
        """An option as it was given, or `default`."""
        return self.config.get(key, default)

    def get_as_bool(self, key: str, default: bool | None = None) -> bool | None:
        """An option that is true or false, 1 or 0, or one of these words: true t yes y, false f no n."""
        value = self.get(key, default)
        if value is None or isinstance(value, bool):
            return value
        found = _BOOLS.get(str(value).strip().lower()) if isinstance(value, (int, str)) else None
        if found is None:
            raise ValueError(f"the rendezvous option {key}={value!r} must be true or false")
        return found

    def get_as_int(self, key: str, default: int | None = None) -> int | None:
        """An option that is a whole number, or its text."""
        value = self.get(key, default)
        if value is None:
            return value
        try:
            return int(value)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"the rendezvous option {key}={value!r} must be a whole number") from None


_BOOLS = {
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n"), False),
}

RendezvousHandlerCreator: TypeAlias = Callable[[RendezvousParameters], RendezvousHandler]
"""Makes the handler of a backend."""


class RendezvousHandlerRegistry:
    """Creators of handlers, by the name of their backend."""

    def __init__(self) -> None:
        self._creators: dict[str, RendezvousHandlerCreator] = {}

    @property
    def backends(self) -> tuple[str, ...]:
        """The names that are registered, sorted."""
        return tuple(sorted(self._creators))

    def register(self, backend: str, creator: RendezvousHandlerCreator) -> None:
        """Let `creator` make the handlers of `backend`.

        ValueError for an empty name, and for one that another creator has already.
        """
        if not backend:
            raise ValueError("the rendezvous backend has no name")
        former = self._creators.setdefault(backend, creator)
        if former is not creator:
            raise ValueError(
                f"the rendezvous backend {backend!r} is {former!r} already; {creator!r} comes late"
            )

    def create_handler(self, params: RendezvousParameters) -> RendezvousHandler:
        """Make the handler of `params.backend`.

        ValueError for a backend nobody registered, RuntimeError if the handler says it is of another one.
        """
        creator = self._creators.get(params.backend)
        if creator is None:
            known = ", ".join(self.backends) or "none"
            raise ValueError(f"the rendezvous backend {params.backend!r} is unknown; known are: {known}")
        handler = creator(params)
        if (named := handler.get_backend()) != params.backend:
            raise RuntimeError(
                f"the creator registered for the rendezvous backend {params.backend!r} made a handler of "
                f"{named!r}: {creator!r}"
            )
        return handler


rendezvous_handler_registry = RendezvousHandlerRegistry()
"""The registry of this process; `rendezvous.registry.get_rendezvous_handler` fills it and asks it."""
