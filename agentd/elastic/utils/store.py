"""The key-value store agents meet in, and waits on it that stay open to events.

torch's stores fit `Store` as they are. Nothing here blocks in the store for something that may never come:
conditions are asked for, and the time between is spent in a `Waiter`, or asleep if none is given. Keys and
values are torch's, so that agents of torch may be among those that meet.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from agentd.procs.waiter import Waiter

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "KeyValueStore",
    "Store",
    "StoreError",
    "StoreTimeout",
    "barrier",
    "get_all",
    "pause",
    "poll",
    "store_timeout",
    "synchronize",
    "wait_for_keys",
]

FIRST_POLL_S = 0.005
LAST_POLL_S = 0.25
MOST_NAMED = 16
"""So many missing keys or ranks are named; with more, the sentence tells how many."""
VALUE_IGNORED = "<val_ignored>"


class Store(Protocol):
    """What an agent needs of a store. `get` and `multi_get` block until the keys are there.

    Any object with these methods will do, every store of torch among them.
    """

    def set(self, key: str, value: str | bytes, /) -> object:
        """Write a value over whatever was there."""

    def get(self, key: str, /) -> bytes:
        """The value, waiting for it for the store's timeout at most."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number kept as decimal text, 0 if it is not there; answers the sum."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there, without waiting."""

    def multi_get(self, keys: list[str], /) -> Sequence[bytes]:
        """The values in the order of the keys, waiting as `get` does."""

    def multi_set(self, keys: list[str], values: list[str | bytes], /) -> object:
        """Write several values."""

    @property
    def timeout(self) -> timedelta:
        """How long blocking methods wait at most."""


class KeyValueStore(Store, Protocol):
    """All that the stores of this library and torch's can do."""

    def wait(self, keys: list[str], timeout: timedelta = ..., /) -> object:
        """Block until all keys are there, for the store's timeout if no other is given."""

    def set_timeout(self, timeout: timedelta, /) -> object:
        """Let blocking methods wait so long at most."""

    def delete_key(self, key: str, /) -> bool:
        """Remove a key; tells whether it was there."""

    def num_keys(self) -> int:
        """How many keys there are."""

    def append(self, key: str, value: str | bytes, /) -> object:
        """Write behind the present value, or as the first one."""

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes, /) -> bytes:
        """Write `desired` if the value is `expected`, or if there is none and `expected` is empty.

        Answers the value that is there afterwards; `expected` if there is none.
        """


class StoreError(Exception):
    """A store cannot do what was asked: it is out of reach, full, or was asked for something senseless."""


class StoreTimeout(StoreError, TimeoutError):
    """Others did not do their part in the store in time."""

    def __init__(self, what: str, timeout_s: float, missing_ranks: Sequence[int] = ()) -> None:
        super().__init__(f"{what}: not there after {timeout_s:g} s. Look at the other agents of the run.")
        self.what = what
        """Which keys or members are missing."""
        self.timeout_s = timeout_s
        """How long was waited for them, in seconds."""
        self.missing_ranks = tuple(missing_ranks)
        """Who did not come, as far as it is known."""


@contextlib.contextmanager
def store_timeout(store: KeyValueStore, timeout: float) -> Iterator[None]:
    """Give the store another timeout, in seconds, for a while; the former comes back, also on an error."""
    from datetime import timedelta

    former = store.timeout
    store.set_timeout(timedelta(seconds=timeout))
    try:
        yield
    finally:
        store.set_timeout(former)


def barrier(
    store: Store,
    world_size: int,
    key_prefix: str,
    barrier_timeout: float = 300,
    rank: int | None = None,
    rank_tracing_decoder: Callable[[int], str] | None = None,
    trace_timeout: float = 10,
    *,
    waiter: Waiter | None = None,
) -> None:
    """Wait until `world_size` callers are here. A prefix serves once. Agents of torch may be among them.

    With `rank`, a `StoreTimeout` names the ranks that are missing, through `rank_tracing_decoder` if one is
    given; for callers of torch, who tell their rank only after their own timeout, it takes up to
    `trace_timeout` seconds longer. The store's own timeout is left alone.
    """
    if rank is None and rank_tracing_decoder is not None:
        raise AssertionError("rank_tracing_decoder names ranks: give rank as well")
    if rank is not None:
        store.set(_trace_key(key_prefix, rank), VALUE_IGNORED)
    counter = f"{key_prefix}/num_members"
    if _arrive(store, world_size, key_prefix):
        return
    if poll(lambda: store.add(counter, 0) >= world_size, barrier_timeout, waiter):
        return
    here = store.add(counter, 0)
    what = f"barrier {key_prefix}: {here} of {world_size} members"
    if rank is None:
        raise StoreTimeout(what, barrier_timeout)
    missing = _missing_ranks(store, world_size, key_prefix, here, trace_timeout, waiter)
    if rank == 0:
        # Callers of torch wait for it before they tell of their own timeout.
        store.set(f"{key_prefix}/TRACING_GATE", VALUE_IGNORED)
    names = _named([(rank_tracing_decoder or str)(index) for index in missing])
    raise StoreTimeout(f"{what}, missing ranks {names}", barrier_timeout, missing)


def get_all(
    store: Store, rank: int, prefix: str, world_size: int, *, waiter: Waiter | None = None
) -> Sequence[bytes]:
    """The values of `<prefix>0`, `<prefix>1`... of all ranks, waiting for the store's timeout at most.

    Rank 0 also waits until all have read: it may be the one that serves the store.
    """
    return _get_all(store, rank, prefix, world_size, store.timeout.total_seconds(), waiter)


def synchronize(
    store: Store,
    data: bytes,
    rank: int,
    world_size: int,
    key_prefix: str,
    timeout: float = 300,
    *,
    waiter: Waiter | None = None,
) -> Sequence[bytes]:
    """Give all ranks the data of all ranks, in their order. A prefix serves once."""
    store.set(f"{key_prefix}{rank}", data)
    return _get_all(store, rank, key_prefix, world_size, timeout, waiter)


def wait_for_keys(
    store: Store, keys: list[str], waiter: Waiter | None = None, timeout_s: float | None = None
) -> None:
    """Wait, for the store's own timeout if no other is given, until all keys are there."""
    if timeout_s is None:
        timeout_s = store.timeout.total_seconds()
    if not poll(lambda: store.check(keys), timeout_s, waiter):
        missing = [key for key in keys if not store.check([key])]
        raise StoreTimeout(_named(missing or keys), timeout_s)


def poll(condition: Callable[[], bool], timeout_s: float, waiter: Waiter | None) -> bool:
    """Ask again and again, ever less often, until the condition holds or the time is up; tells whether."""
    now = time.monotonic if waiter is None else waiter.now
    deadline, interval = now() + timeout_s, FIRST_POLL_S
    while not condition():
        left = deadline - now()
        if left <= 0:
            return False
        pause(min(interval, left), waiter)
        interval = min(interval * 2, LAST_POLL_S)
    return True


def pause(seconds: float, waiter: Waiter | None) -> None:
    """Let time pass: in the waiter, serving what lives there, else asleep."""
    if waiter is None:
        time.sleep(seconds)
        return
    moment = waiter.now() + seconds
    # The waiter returns for any event; the time is over only at its end.
    waiter.wait_until(partial(_reached, waiter, moment), moment)


def _get_all(
    store: Store, rank: int, prefix: str, world_size: int, timeout_s: float, waiter: Waiter | None
) -> Sequence[bytes]:
    keys = [f"{prefix}{index}" for index in range(world_size)]
    wait_for_keys(store, keys, waiter, timeout_s)
    values = store.multi_get(keys)
    finished = f"{prefix}/finished"
    if rank == 0:
        barrier(store, world_size, finished, timeout_s, waiter=waiter)
    else:
        _arrive(store, world_size, finished)
    return values


def _arrive(store: Store, world_size: int, key_prefix: str) -> bool:
    """Tell that one more is here; whether all are."""
    if store.add(f"{key_prefix}/num_members", 1) != world_size:
        return False
    # Nothing of ours waits for this key; agents of torch do.
    store.set(f"{key_prefix}/last_member", VALUE_IGNORED)
    return True


def _missing_ranks(
    store: Store, world_size: int, key_prefix: str, here: int, timeout_s: float, waiter: Waiter | None
) -> list[int]:
    def missing() -> list[int]:
        return [rank for rank in range(world_size) if not store.check([_trace_key(key_prefix, rank)])]

    poll(lambda: len(missing()) <= world_size - here, timeout_s, waiter)
    return missing()


def _trace_key(key_prefix: str, rank: int) -> str:
    return f"{key_prefix}{rank}/TRACE"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _reached(waiter: Waiter, moment: float) -> bool:
    return waiter.now() >= moment
