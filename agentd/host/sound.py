"""Whether what a host reports can go on to status, journal and other machines, which are stricter than JSON.

A text with half a character in it, as an error message that names a file may have, is mended; a number that
nothing of its kind can be is a `ShapeError`.
"""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

from agentd.host.shaped import ShapeError, body_of

LARGEST = (1 << 31) - 1
"""Of a rank, a pid, a port, a round."""
LARGEST_COUNT = (1 << 53) - 1
"""Of what is counted for long."""
LAST_SECOND = 253402300799.0
"""Of the year 9999."""

_COUNTS = frozenset({"sequence", "last_sequence", "start_time", "incarnation"})


def sound(value: Any, where: str) -> Any:
    """The frozen value with its texts mended. Raises `ShapeError` for a number that cannot be."""
    found = body_of(value)
    mended = {name: _sound(name, item, f"{where}.{name}") for name, item in found.items()}
    changed = {name: item for name, item in mended.items() if item is not found[name]}
    return replace(value, **changed) if changed else value


def _sound(name: str, value: Any, where: str) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, tuple):
        items = tuple(_sound(name, item, where) for item in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, int) and not _lowest(name) <= value <= _highest(name):
        raise ShapeError(f"{where} cannot be {value:.6g}" if abs(value) < 1e300 else f"{where} is too large")
    if isinstance(value, float) and not 0 <= value <= LAST_SECOND:
        raise ShapeError(f"{where} cannot be {value:g}")
    return sound(value, where) if is_dataclass(value) else value


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _lowest(name: str) -> int:
    return -LARGEST - 1 if name == "exit_code" else 0


def _highest(name: str) -> int:
    return LARGEST_COUNT if name in _COUNTS else LARGEST
