"""Lines out of a stream of text, and lines of many streams into one. Pure.

A line goes out when its end is known, so that it is written once and with one prefix. What cannot be held
until then goes out in pieces: lines that are too long, and progress bars, which redraw one line for hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from agentd.quickdata import dataclass

LineFilter: TypeAlias = Callable[[str], bool]
"""Whether a line, its newline included, is wanted."""

MAX_HELD = 1 << 18
"""Characters of an unfinished line that are held at most."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some whole lines, or a part of one."""

    text: str
    starts: bool
    """It begins at the beginning of a line."""
    ends: bool
    """It ends with the end of a line."""


class LineCutter:
    """Cuts one stream into pieces. Only a newline ends a line; carriage returns stay."""

    def __init__(self, keep: LineFilter | None = None) -> None:
        """`keep` drops lines. One longer than `MAX_HELD` is judged by what was held of it."""
        self._keep = keep
        self._held: list[str] = []
        self._held_length = 0
        self._inside = False  # the beginning of the present line is out
        self._dropping = False

    def feed(self, text: str) -> list[Piece]:
        """Take more of the stream; answers what may go out now."""
        pieces: list[Piece] = []
        end = text.rfind("\n") + 1
        if end:
            pieces += self._lines(self._take() + text[:end])
            text = text[end:]
        self._hold(text)
        if self._held_length > MAX_HELD:
            pieces += self._part(self._take())
        elif self._keep is None and "\r" in text:
            pieces += self._redraws()
        return pieces

    def finish(self) -> list[Piece]:
        """The rest, when nothing more will come. An unfinished line gets its newline here."""
        if self._held or self._inside:
            return self._lines(self._take() + "\n")
        return []

    def _redraws(self) -> list[Piece]:
        """What was drawn before the last carriage return that does not just precede a newline to come."""
        text = self._take()
        end = text.rfind("\r", 0, -1) + 1
        self._hold(text[end:])
        return self._part(text[:end]) if end else []

    def _lines(self, text: str) -> list[Piece]:
        pieces = []
        if self._inside:
            end = text.index("\n") + 1
            if not self._dropping:
                pieces.append(Piece(text[:end], starts=False, ends=True))
            self._inside = self._dropping = False
            text = text[end:]
        if self._keep is not None:
            text = "".join(filter(self._keep, (line + "\n" for line in text.split("\n")[:-1])))
        if text:
            pieces.append(Piece(text, starts=True, ends=True))
        return pieces

    def _part(self, text: str) -> list[Piece]:
        starts = not self._inside
        if starts:
            self._inside = True
            self._dropping = self._keep is not None and not self._keep(text)
        return [] if self._dropping else [Piece(text, starts=starts, ends=False)]

    def _hold(self, text: str) -> None:
        if text:
            self._held.append(text)
            self._held_length += len(text)

    def _take(self) -> str:
        text = "".join(self._held)
        self._held.clear()
        self._held_length = 0
        return text


class LineMerger:
    """Gives each line the prefix of its source, and keeps the lines of different sources apart."""

    def __init__(self) -> None:
        self._open: int | None = None  # whose line is unfinished

    def put(self, source: int, prefix: str, piece: Piece) -> str:
        """The text to write for `piece`."""
        interrupted = self._open is not None and self._open != source
        continues = not piece.starts and self._open == source
        if not piece.starts and not continues and piece.text == "\n":
            return ""  # another source's line has ended this one already
        before = "\n" if interrupted else ""
        self._open = None if piece.ends else source
        if not piece.ends:
            return before + ("" if continues else prefix) + piece.text
        body = piece.text[:-1].replace("\n", "\n" + prefix)
        return before + ("" if continues else prefix) + body + "\n"
