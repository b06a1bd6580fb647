"""What agentctl says to its user, on standard error. A terminal that is gone takes no program down."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.api.errors import AgentError


def say(line: str) -> None:
    """One line under the program's name."""
    say_plain(f"agentctl: {line}")


def say_plain(line: str) -> None:
    """One line."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(readable(line) + "\n")
        sys.stderr.flush()


def say_all(lines: Iterable[str]) -> None:
    """Lines that belong together; the first under the program's name."""
    for i, line in enumerate(lines):
        say(line) if i == 0 else say_plain(line)


def say_problems(problems: Mapping[str, AgentError], what: str = "") -> None:
    """What nodes did not do, one line each."""
    for name, error in problems.items():
        say(f"node {name}{f' {what}' if what else ''}: {error}")


def readable(line: str) -> str:
    """Text from elsewhere must not move the cursor or fail to be written."""
    clean = "".join(
        char if char.isprintable() or char in "\t\n" else "\N{REPLACEMENT CHARACTER}" for char in line
    )
    encoding = sys.stderr.encoding or "utf-8"
    return clean.encode(encoding, "replace").decode(encoding)
