"""Worker output as prefixed lines. Pure: chunks in, bytes to write out.

Each file's bytes become whole lines behind `[role rank]:`, so that lines of many workers never mix.
"""

from __future__ import annotations

from dataclasses import field

from agentctl.flags import NO_CHOICE, Std, StdChoice
from agentd.api.types import LogChunk, LogGap, LogStream
from agentd.quickdata import dataclass

LONGEST_LINE = 64 * 1024
"""A line without an end is shown in pieces of this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """torch's flags for what the console shows. Files on the node always have everything."""

    redirects: StdChoice = NO_CHOICE
    """Only in the files."""
    tee: StdChoice = NO_CHOICE
    """Shown as well; over `redirects`."""
    local_ranks: frozenset[int] | None = None
    """Shown at all. None: every rank."""

    def shows(self, local_rank: int, stream: LogStream) -> bool:
        """Whether the console has this stream of this worker."""
        if self.local_ranks is not None and local_rank not in self.local_ranks:
            return False
        std = Std.OUT if stream is LogStream.STDOUT else Std.ERR
        return bool(std & self.tee.of(local_rank)) or not std & self.redirects.of(local_rank)


@dataclass(slots=True)
class LineAssembler:
    """Chunks of many files to whole lines."""

    choice: Choice = field(default_factory=Choice)
    prefixed: bool = True
    _partial: dict[tuple[str, int, int, LogStream], bytes] = field(default_factory=dict)

    def take(self, chunk: LogChunk) -> bytes:
        """The lines that a chunk completes."""
        if not self.choice.shows(chunk.local_rank, chunk.stream):
            return b""
        key = (chunk.role, chunk.rank, chunk.round, chunk.stream)
        *lines, rest = (self._partial.pop(key, b"") + chunk.data).split(b"\n")
        while len(rest) > LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        if rest:
            self._partial[key] = rest
        return self._joined(chunk.role, chunk.rank, lines)

    def cut(self, gap: LogGap) -> bytes:
        """What never gets its line's end, as that is lost."""
        data = self._partial.pop((gap.role, gap.rank, gap.round, gap.stream), b"")
        return self._joined(gap.role, gap.rank, [data]) if data else b""

    def rest(self) -> list[tuple[LogStream, bytes]]:
        """What never got its line's end, at the end."""
        found = [
            (stream, self._joined(role, rank, [data]))
            for (role, rank, _, stream), data in self._partial.items()
        ]
        self._partial.clear()
        return found

    def _joined(self, role: str, rank: int, lines: list[bytes]) -> bytes:
        prefix = f"[{role} {rank}]: ".encode() if self.prefixed else b""
        return b"".join(prefix + line.removesuffix(b"\r") + b"\n" for line in lines)
