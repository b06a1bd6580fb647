"""The key-value store agents meet in, and waits on it that stay open to events.

torch's stores fit `Store` as they are. Nothing here blocks in the store for something that may never come:
conditions are asked for, and the time between is spent in the `Waiter`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Protocol

from agentd.procs.waiter import Waiter

FIRST_POLL_S = 0.005
LAST_POLL_S = 0.25


class Store(Protocol):
    """What an agent needs of a store. `get`, `wait` and `multi_get` block until the keys are there."""

    def set(self, key: str, value: str | bytes, /) -> object: ...
    def get(self, key: str, /) -> bytes: ...
    def add(self, key: str, amount: int, /) -> int: ...
    def check(self, keys: list[str], /) -> bool: ...
    def multi_get(self, keys: list[str], /) -> Sequence[bytes]: ...
    def multi_set(self, keys: list[str], values: list[str | bytes], /) -> object: ...
    @property
    def timeout(self) -> timedelta: ...


class StoreTimeout(TimeoutError):
    """Others did not do their part in the store in time."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"{what}: not there after {timeout_s:g} s. Look at the other agents of the run.")
        self.what = what
        self.timeout_s = timeout_s


def barrier(store: Store, world_size: int, key_prefix: str, barrier_timeout: float, waiter: Waiter) -> None:
    """Wait until `world_size` callers are here. A prefix serves once. Agents of torch may be among them."""
    counter = f"{key_prefix}/num_members"
    if store.add(counter, 1) == world_size:
        # Nothing of ours waits for this key; agents of torch do.
        store.set(f"{key_prefix}/last_member", "<val_ignored>")
        return
    deadline = time.monotonic() + barrier_timeout
    if not _poll(lambda: store.add(counter, 0) >= world_size, waiter, deadline):
        here = store.add(counter, 0)
        raise StoreTimeout(f"barrier {key_prefix}: {here} of {world_size} members", barrier_timeout)


def wait_for_keys(store: Store, keys: list[str], waiter: Waiter) -> None:
    """Wait, for the store's own timeout at most, until all keys are there."""
    timeout_s = store.timeout.total_seconds()
    if not _poll(lambda: store.check(keys), waiter, time.monotonic() + timeout_s):
        missing = ", ".join(key for key in keys if not store.check([key]))
        raise StoreTimeout(missing or ", ".join(keys), timeout_s)


def _poll(condition: Callable[[], bool], waiter: Waiter, deadline: float) -> bool:
    interval = FIRST_POLL_S
    while not condition():
        now = time.monotonic()
        if now >= deadline:
            return False
        # The waiter returns for any event; the store is asked only when the interval is over.
        pause = min(now + interval, deadline)
        waiter.wait_until(partial(_passed, pause), pause)
        interval = min(interval * 2, LAST_POLL_S)
    return True


def _passed(moment: float) -> bool:
    return time.monotonic() >= moment
