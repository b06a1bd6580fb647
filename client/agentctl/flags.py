"""What the values of flags mean. Pure; `ValueError` says what is wrong with a value."""

from __future__ import annotations

import enum
import math
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Final

from agentd.quickdata import dataclass

LARGEST_RANK: Final = 1_000_000
_DIGITS: Final = 20
_UNITS: Final[Mapping[str, float]] = MappingProxyType({"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0})
_ENV_NAME = re.compile(r"[^=\0]+")


class Std(enum.IntFlag):
    """torch's choice of output streams."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = 3


@dataclass(frozen=True, slots=True)
class StdChoice:
    """Streams for all local ranks, or for some of them."""

    every: Std = Std.NONE
    by_local_rank: Mapping[int, Std] = field(default_factory=dict)

    def of(self, local_rank: int) -> Std:
        """The streams of a local rank. A rank that a list does not name has none."""
        return self.by_local_rank.get(local_rank, self.every)


NO_CHOICE: Final = StdChoice()


def parse_std(text: str) -> StdChoice:
    """`3`, or `0:1,1:2`: stream 0 none, 1 stdout, 2 stderr, 3 both."""
    if ":" not in text:
        return StdChoice(every=_std(text))
    chosen: dict[int, Std] = {}
    for item in text.split(","):
        rank, colon, std = item.partition(":")
        if not colon:
            raise ValueError(f"{item!r} is not LOCAL_RANK:STREAMS, as in 0:1,1:3")
        chosen[_number(rank, "a local rank", 0, LARGEST_RANK)] = _std(std)
    return StdChoice(by_local_rank=chosen)


def _std(text: str) -> Std:
    return Std(_number(text, "a choice of streams (0 none, 1 stdout, 2 stderr, 3 both)", 0, 3))


def parse_nnodes(text: str) -> tuple[int, int]:
    """`2` or `1:4`: fewest and most nodes."""
    low_text, colon, high_text = text.partition(":")
    low = _number(low_text, "a number of nodes", 1, LARGEST_RANK)
    high = _number(high_text, "a number of nodes", 1, LARGEST_RANK) if colon else low
    if low > high:
        raise ValueError(f"{text!r}: the fewest ({low}) are more than the most ({high})")
    return low, high


def parse_nproc(text: str) -> int | str:
    """A number of workers, or `auto`, `cpu`, `gpu`."""
    if text in ("auto", "cpu", "gpu"):
        return text
    try:
        return _number(text, "a number of workers", 1, LARGEST_RANK)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of workers from 1, nor auto, cpu or gpu") from None


def parse_numbers(text: str) -> tuple[int, ...]:
    """`0,2-5`: numbers and ranges, each once, as given."""
    found: dict[int, None] = {}
    for item in text.split(","):
        first_text, dash, last_text = item.strip().partition("-")
        first = _number(first_text, "a number", 0, LARGEST_RANK)
        last = _number(last_text, "a number", 0, LARGEST_RANK) if dash else first
        if last < first:
            raise ValueError(f"{item!r} ends before it begins")
        found.update(dict.fromkeys(range(first, last + 1)))
    return tuple(found)


def parse_env(items: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` each; the last of a name wins."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{item!r} is not NAME=VALUE")
        found[name] = value
    return found


def parse_pairs(text: str) -> dict[str, str]:
    """`key=value,key=value`."""
    found: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{item!r} is not KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def parse_seconds(text: str) -> float:
    """A time that is not negative: a number of seconds, or with a unit as in `90s`, `10m`, `1.5h`, `2d`."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is not a number of seconds from 0, nor a time such as 90s, 10m, 2h, 1d")
    return seconds


def parse_signal(text: str) -> int:
    """A signal by number or name: `10`, `USR1`, `SIGUSR1`."""
    if text.isascii() and text.isdigit():
        return _number(text, "a signal", 1, 64)
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise ValueError(f"{text!r} is no signal: give a number or a name such as USR1") from None


def _number(text: str, what: str, lowest: int, highest: int) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS) or not lowest <= int(text) <= highest:
        raise ValueError(f"{text!r} is not {what} from {lowest} to {highest}")
    return int(text)
