"""A rendezvous of known agents: each has its rank, and rank 0 serves the store at an address all know.

What belongs to a round is kept under its number, so that no restart reads an answer of the round before.
An agent that restarts brings the others along: they see it wait for the next round and join it, at no cost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from agentd.api.targets import Target
from agentd.elastic.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.utils import parse_rendezvous_endpoint
from agentd.elastic.utils.store import MOST_NAMED, KeyValueStore, StoreError, poll

if TYPE_CHECKING:
    from agentd.elastic.agent.server.spec import WorkerSpec
    from agentd.elastic.utils.tcp_store import TcpStore
    from agentd.procs.waiter import Waiter

__all__ = ["StaticTCPRendezvous", "create_rdzv_handler"]

DEFAULT_TIMEOUT_S = 600
LINGER_S = 2.0
PATIENCE_S = 3.0
"""So long the agent, which does nothing else meanwhile, waits for an answer of the store."""
LOOK_S = 0.5
"""So long a look at the store may hold up an agent whose workers run."""
FIRST_LOOK_AGAIN_S = 1.0
LAST_LOOK_AGAIN_S = 10.0
"""So long a store that is out of reach is left alone: longer after each look in vain."""
NEWEST_KEY = "newest_round"

_log = logging.getLogger(__name__)


class StaticTCPRendezvous(RendezvousHandler):
    """One agent's access; the constructor's first arguments are torch's."""

    def __init__(
        self,
        master_addr: str,
        master_port: int,
        rank: int,
        world_size: int,
        run_id: str,
        timeout: float,
        *,
        store: KeyValueStore | None = None,
    ) -> None:
        """`timeout` is in seconds and holds for each round.

        Agents meet in a `TcpStore` at the address, which rank 0 serves. Given, `store` is used in its place
        and stays its owner's; if it is torch's, it must be the one at the address, and workers share it.
        """
        self.master_addr = master_addr
        """Where rank 0 serves the store, as all agents reach it."""
        self.master_port = master_port
        """The store's port there."""
        self.rank = rank
        """This agent's, fixed; 0 serves the store."""
        self.world_size = world_size
        """How many agents there are, fixed."""
        self.run_id = run_id
        """Runs of other ids may use the same store."""
        self.timeout = timedelta(seconds=timeout)
        """How long the agents wait for each other in each round."""
        self._given_store = store
        self._own_store: TcpStore | None = None
        self._waiter: Waiter | None = None
        self._round = 0
        self._lost = False
        self._look_again_at = 0.0
        self._look_again_s = FIRST_LOOK_AGAIN_S

    def attach(
        self, spec: WorkerSpec, waiter: Waiter, request_stop: Callable[[float | None], object]
    ) -> None:
        """Wait in this agent's waiter, so that a stop ends the wait."""
        self._waiter = waiter

    def get_backend(self) -> str:
        """`static`."""
        return "static"

    @property
    def use_agent_store(self) -> bool:
        """Whether workers find the agents' store at MASTER_ADDR and MASTER_PORT: only if it is torch's."""
        return type(self._given_store).__module__.partition(".")[0] == "torch"

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until all agents are here for the next round.

        Raises RendezvousTimeoutError, which names the ranks that are missing, RendezvousConnectionError when
        there is no store.
        """
        try:
            store = self._store()
            self._join(store)
            round_store = _prefixed(f"{self.run_id}/round_{self._round}", store)
            return RendezvousInfo(round_store, self.rank, self.world_size, self._workers_meet(round_store))
        except (StoreError, ConnectionError) as error:
            raise RendezvousConnectionError(f"run {self.run_id!r}: {error}") from error

    def is_closed(self) -> bool:
        """Never: the agents are known, and each ends by itself."""
        return False

    def set_closed(self) -> None:
        """Does nothing, as in torch."""

    def num_nodes_waiting(self) -> int:
        """How many agents wait for a round that this one has not joined yet.

        None if the store is out of reach: the workers go on, and their own end tells what is the matter.
        """
        own = self._own_store
        store = self._given_store if own is None else own.hurried(LOOK_S)
        if store is None or time.monotonic() < self._look_again_at:
            return 0
        try:
            rounds = _prefixed(self.run_id, store)
            newest = rounds.add(NEWEST_KEY, 0)
            self._found()
            return self.world_size - len(self._missing(rounds, newest)) if newest > self._round else 0
        except (StoreError, OSError, RuntimeError) as error:
            # Of RuntimeErrors: torch's stores raise their own kinds of it.
            if not self._lost:
                _log.warning("run %s: %s; the workers go on", self.run_id, error)
            self._lost, self._look_again_at = True, time.monotonic() + self._look_again_s
            self._look_again_s = min(self._look_again_s * 2, LAST_LOOK_AGAIN_S)
            return 0

    def get_run_id(self) -> str:
        """The run's id, as it was given."""
        return self.run_id

    def shutdown(self) -> bool:
        """Give the store back. Rank 0, who serves it, waits a moment for the others to be through with it."""
        store, self._own_store = self._own_store, None
        if store is not None:
            store.close(LINGER_S)
        return True

    def _store(self) -> KeyValueStore:
        if self._given_store is not None:
            return self._given_store
        if self._lost and self.rank != 0:
            # Rank 0's agent may have begun anew: what it serves then is another store.
            self.shutdown()
        self._found()
        if self._own_store is None:
            self._own_store = self._connected()
        return self._own_store

    def _found(self) -> None:
        self._lost, self._look_again_at, self._look_again_s = False, 0.0, FIRST_LOOK_AGAIN_S

    def _connected(self) -> TcpStore:
        from agentd.elastic.utils.tcp_store import TcpStore

        serves = self.rank == 0
        try:
            return TcpStore(
                self.master_addr,
                self.master_port,
                None,
                serves,
                self.timeout,
                patience=PATIENCE_S,
                waiter=self._waiter,
            )
        except StoreError:
            raise
        except OSError as error:
            raise RendezvousConnectionError(
                f"run {self.run_id!r}: rank 0 cannot serve at port {self.master_port}: {error}. "
                "Choose another port for all agents"
            ) from error

    def _join(self, store: KeyValueStore) -> None:
        """Take part in the newest round, or begin one, until a round has all agents."""
        rounds = _prefixed(self.run_id, store)
        self._round = self._enter(rounds, max(self._round + 1, rounds.add(NEWEST_KEY, 0)))

        def complete() -> bool:
            newest = rounds.add(NEWEST_KEY, 0)
            if newest > self._round:
                self._round = self._enter(rounds, newest)
            return rounds.check(self._member_keys(self._round))

        timeout_s = self.timeout.total_seconds()
        if not poll(complete, timeout_s, self._waiter):
            missing = self._missing(rounds, self._round)
            names = ", ".join(map(str, missing[:MOST_NAMED])) + (" ..." if missing[MOST_NAMED:] else "")
            where = Target(host=self.master_addr, port=self.master_port)
            raise RendezvousTimeoutError(
                f"run {self.run_id!r}: round {self._round} at {where} is not complete "
                f"after {timeout_s:g} s: of {self.world_size} agents, missing are ranks {names}"
            )

    def _enter(self, rounds: KeyValueStore, round_: int) -> int:
        """Join this round, or a later one if this rank has been in it: in an agent that is dead by now."""
        while rounds.add(_member_key(round_, self.rank), 1) > 1:
            round_ += 1
        while (newest := rounds.add(NEWEST_KEY, 0)) < round_:
            rounds.compare_set(NEWEST_KEY, str(newest), str(round_))
        return round_

    def _missing(self, rounds: KeyValueStore, round_: int) -> list[int]:
        keys = self._member_keys(round_)
        return [rank for rank, key in enumerate(keys) if not rounds.check([key])]

    def _member_keys(self, round_: int) -> list[str]:
        return [_member_key(round_, rank) for rank in range(self.world_size)]

    def _workers_meet(self, round_store: KeyValueStore) -> RendezvousStoreInfo:
        if self.use_agent_store:
            return RendezvousStoreInfo(self.master_addr, self.master_port)
        return RendezvousStoreInfo.build(self.rank, round_store, self.master_addr)


def create_rdzv_handler(params: RendezvousParameters) -> StaticTCPRendezvous:
    """The handler for these parameters. Options: `rank` (required), `timeout` in whole seconds (600).

    ValueError without a rank below `max_nodes`, without host and port in the endpoint, and for less than a
    second.
    """
    rank = params.get_as_int("rank")
    if rank is None:
        raise ValueError("the static rendezvous needs the option rank: this agent's place among max_nodes")
    if not 0 <= rank < params.max_nodes:
        raise ValueError(f"rank must be between 0 and {params.max_nodes - 1}, is {rank}")
    endpoint = params.endpoint.strip()
    host, port = parse_rendezvous_endpoint(endpoint, -1)
    if not endpoint or port < 0:
        raise ValueError(f"the static rendezvous needs an endpoint host:port, has {endpoint!r}")
    given = params.get_as_int("timeout")
    timeout = DEFAULT_TIMEOUT_S if given is None else given
    if timeout < 1:
        raise ValueError(f"timeout must be at least 1 second, is {params.get('timeout')}")
    return StaticTCPRendezvous(host, port, rank, params.max_nodes, params.run_id, timeout)


def _prefixed(prefix: str, store: KeyValueStore) -> KeyValueStore:
    from agentd.elastic.utils.stores import PrefixStore

    return PrefixStore(prefix, store)


def _member_key(round_: int, rank: int) -> str:
    return f"round_{round_}/here/{rank}"
