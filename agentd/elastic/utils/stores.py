"""Stores that need no torch: one for the threads of a process, and one that puts a prefix on another's keys.

`TcpStore`, for agents on many machines, is in `agentd.elastic.utils.tcp_store`.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta

from agentd.elastic.utils import keyvalues
from agentd.elastic.utils.keyvalues import KeyValues
from agentd.elastic.utils.store import KeyValueStore, StoreTimeout

__all__ = ["BaseStore", "InMemoryStore", "PrefixStore"]

DEFAULT_TIMEOUT = timedelta(seconds=300)


class BaseStore(ABC):
    """The operations of a `KeyValueStore`, torch's names and meanings, over whatever does them."""

    def __init__(self, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        """`timeout` is how long blocking methods wait at most."""
        self._timeout = timeout

    @abstractmethod
    def _ask(self, operation: str, *fields: bytes) -> list[bytes]:
        """Do an operation of `keyvalues`."""

    @abstractmethod
    def _wait(self, keys: Sequence[bytes], deadline: float) -> bool:
        """Block until all keys are there or the monotonic deadline passes; tells whether they are."""

    @property
    def timeout(self) -> timedelta:
        """How long blocking methods wait at most."""
        return self._timeout

    def set_timeout(self, timeout: timedelta, /) -> None:
        """Let blocking methods wait so long at most."""
        self._timeout = timeout

    def set(self, key: str, value: str | bytes, /) -> None:
        """Write a value over whatever was there."""
        self._ask(keyvalues.SET, _bytes(key), _bytes(value))

    def get(self, key: str, /) -> bytes:
        """The value, waiting for it for the store's timeout at most. Raises `StoreTimeout`."""
        return self.multi_get([key])[0]

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number kept as decimal text, 0 if it is not there; answers the sum."""
        return int(self._ask(keyvalues.ADD, _bytes(key), b"%d" % amount)[0])

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there, without waiting."""
        return self._ask(keyvalues.CHECK, *map(_bytes, keys)) == [b"1"]

    def wait(self, keys: list[str], timeout: timedelta | None = None, /) -> None:
        """Block until all keys are there, for the store's timeout if no other is given.

        Raises `StoreTimeout`, which names the keys that are not.
        """
        timeout_s = (self._timeout if timeout is None else timeout).total_seconds()
        if not self._wait([_bytes(key) for key in keys], time.monotonic() + timeout_s):
            raise self._timed_out(keys, timeout_s)

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """The values in the order of the keys, waiting as `get` does."""
        wanted = [_bytes(key) for key in keys]
        timeout_s = self._timeout.total_seconds()
        deadline = time.monotonic() + timeout_s
        # Again, because a key may be deleted between the wait and the question.
        while wanted and not (values := self._ask(keyvalues.GET, *wanted)):
            if not self._wait(wanted, deadline):
                raise self._timed_out(keys, timeout_s)
        return values if wanted else []

    def multi_set(self, keys: list[str], values: list[str | bytes], /) -> None:
        """Write several values at once."""
        pairs = zip(keys, values, strict=True)
        self._ask(keyvalues.SET, *(_bytes(item) for pair in pairs for item in pair))

    def append(self, key: str, value: str | bytes, /) -> None:
        """Write behind the present value, or as the first one."""
        self._ask(keyvalues.APPEND, _bytes(key), _bytes(value))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes, /) -> bytes:
        """Write `desired` if the value is `expected`, or if there is none and `expected` is empty.

        Answers the value that is there afterwards; `expected` if there is none.
        """
        return self._ask(keyvalues.COMPARE_SET, _bytes(key), _bytes(expected), _bytes(desired))[0]

    def delete_key(self, key: str, /) -> bool:
        """Remove a key; tells whether it was there."""
        return self._ask(keyvalues.DELETE, _bytes(key)) == [b"1"]

    def num_keys(self) -> int:
        """How many keys there are."""
        return int(self._ask(keyvalues.COUNT)[0])

    def _timed_out(self, keys: list[str], timeout_s: float) -> StoreTimeout:
        missing = [key for key in keys if not self.check([key])]
        return StoreTimeout(", ".join((missing or keys)[:16]), timeout_s)


class InMemoryStore(BaseStore):
    """A store for the threads of one process."""

    def __init__(self, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        """`timeout` is how long blocking methods wait at most."""
        super().__init__(timeout)
        self._values = KeyValues()  # guarded by _changed
        self._changed = threading.Condition()

    def _ask(self, operation: str, *fields: bytes) -> list[bytes]:
        with self._changed:
            answer = self._values.apply(operation, fields)
            if operation in keyvalues.CHANGES:
                self._changed.notify_all()
            return answer

    def _wait(self, keys: Sequence[bytes], deadline: float) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: self._values.has(keys), max(0.0, deadline - time.monotonic())
            )


class PrefixStore:
    """Another store, ours or torch's, in which all keys here begin with a prefix and a slash."""

    def __init__(self, prefix: str, store: KeyValueStore) -> None:
        """Closing `store` stays its owner's."""
        self._prefix = f"{prefix}/"
        self._store = store

    @property
    def underlying_store(self) -> KeyValueStore:
        """The store behind."""
        return self._store

    @property
    def timeout(self) -> timedelta:
        """That of the store behind."""
        return self._store.timeout

    def set_timeout(self, timeout: timedelta, /) -> None:
        """Set that of the store behind."""
        self._store.set_timeout(timeout)

    def set(self, key: str, value: str | bytes, /) -> None:
        """Write a value over whatever was there."""
        self._store.set(self._prefix + key, value)

    def get(self, key: str, /) -> bytes:
        """The value, waiting for it for the store's timeout at most."""
        return self._store.get(self._prefix + key)

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number kept as decimal text, 0 if it is not there; answers the sum."""
        return self._store.add(self._prefix + key, amount)

    def check(self, keys: list[str], /) -> bool:
        """Whether all keys are there, without waiting."""
        return self._store.check(self._all(keys))

    def wait(self, keys: list[str], timeout: timedelta | None = None, /) -> None:
        """Block until all keys are there, for the store's timeout if no other is given."""
        if timeout is None:
            self._store.wait(self._all(keys))
        else:
            self._store.wait(self._all(keys), timeout)

    def multi_get(self, keys: list[str], /) -> Sequence[bytes]:
        """The values in the order of the keys, waiting as `get` does."""
        return self._store.multi_get(self._all(keys))

    def multi_set(self, keys: list[str], values: list[str | bytes], /) -> None:
        """Write several values."""
        self._store.multi_set(self._all(keys), values)

    def append(self, key: str, value: str | bytes, /) -> None:
        """Write behind the present value, or as the first one."""
        self._store.append(self._prefix + key, value)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes, /) -> bytes:
        """See `KeyValueStore.compare_set`."""
        return self._store.compare_set(self._prefix + key, expected, desired)

    def delete_key(self, key: str, /) -> bool:
        """Remove a key; tells whether it was there."""
        return self._store.delete_key(self._prefix + key)

    def num_keys(self) -> int:
        """How many keys the store behind has, with whatever prefix."""
        return self._store.num_keys()

    def _all(self, keys: list[str]) -> list[str]:
        return [self._prefix + key for key in keys]


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
