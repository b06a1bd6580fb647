"""What the stores of this library mean by their operations: one core for threads and for the network.

An operation is a name and fields of bytes; its answer is a list of bytes. No lock, no wait, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agentd.elastic.utils.store import StoreError

GET: Final = "get"
"""Answers the values of all the keys, nothing if one is missing."""
CHECK: Final = "check"
"""Answers 1 if all the keys are there, else 0."""
SET: Final = "set"
"""Takes keys and values in turn."""
ADD: Final = "add"
"""Takes key and number; answers the sum."""
APPEND: Final = "append"
"""Takes key and value."""
COMPARE_SET: Final = "compare_set"
"""Takes key, expected and desired; answers what is there afterwards, `expected` if nothing is."""
DELETE: Final = "delete"
"""Answers 1 if the key was there, else 0."""
COUNT: Final = "count"
"""Answers how many keys there are."""

CHANGES: Final = frozenset({SET, ADD, APPEND, COMPARE_SET})
"""Those that may bring a key somebody waits for."""

MAX_BYTES: Final = 1 << 30
"""A store takes so much and no more: keys and values together."""
MAX_NUMBER_DIGITS: Final = 20


class KeyValues:
    """Keys and values, and the operations on them."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._values: dict[bytes, bytes] = {}
        self._max_bytes = max_bytes
        self._bytes = 0

    def has(self, keys: Sequence[bytes]) -> bool:
        """Whether all keys are there."""
        return all(key in self._values for key in keys)

    def apply(self, operation: str, fields: Sequence[bytes]) -> list[bytes]:
        """Do it and answer. `StoreError` for what makes no sense or does not fit."""
        match operation, fields:
            case "get", keys:
                return [self._values[key] for key in keys] if self.has(keys) else []
            case "check", keys:
                return [b"1" if self.has(keys) else b"0"]
            case "set", pairs if len(pairs) % 2 == 0:
                for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                    self._put(key, value)
                return []
            case "add", [key, amount]:
                total = b"%d" % (self._number(key) + _as_number(amount, "the amount to add"))
                self._put(key, total)
                return [total]
            case "append", [key, value]:
                self._put(key, self._values.get(key, b"") + value)
                return []
            case "compare_set", [key, expected, desired]:
                return [self._compare_set(key, expected, desired)]
            case "delete", [key]:
                return [b"1" if self._remove(key) else b"0"]
            case "count", []:
                return [b"%d" % len(self._values)]
        raise StoreError(f"the store knows no operation {operation!r} with {len(fields)} fields")

    def _compare_set(self, key: bytes, expected: bytes, desired: bytes) -> bytes:
        present = self._values.get(key)
        if present is None and expected:
            return expected
        if present in (None, expected):
            self._put(key, desired)
            return desired
        return present or b""

    def _put(self, key: bytes, value: bytes) -> None:
        former = self._values.get(key)
        grown = len(value) - len(former) if former is not None else len(key) + len(value)
        if self._bytes + grown > self._max_bytes:
            raise StoreError(f"the store is full: it holds {self._bytes} of {self._max_bytes} bytes")
        self._values[key] = value
        self._bytes += grown

    def _remove(self, key: bytes) -> bool:
        value = self._values.pop(key, None)
        if value is None:
            return False
        self._bytes -= len(key) + len(value)
        return True

    def _number(self, key: bytes) -> int:
        value = self._values.get(key)
        return 0 if value is None else _as_number(value, f"the value of {key.decode(errors='replace')!r}")


def _as_number(text: bytes, what: str) -> int:
    # Long texts take int() long.
    try:
        if len(text) <= MAX_NUMBER_DIGITS:
            return int(text)
    except ValueError:
        pass
    raise StoreError(f"{what} is no number: {text[:40]!r}")
