"""Where workers write: which streams go to files, and where these and the error files lie."""

from __future__ import annotations

import contextlib
import enum
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
ROUND_VARIABLE = "AGENTD_ROUND"

_DIGIT = re.compile(r"[0-3]")
_BY_RANK = re.compile(r"\d:[0-3](,\d:[0-3])*")


class Std(enum.IntFlag):
    """A worker's output streams."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = OUT | ERR

    @classmethod
    def from_str(cls, text: str) -> Std | dict[int, Std]:
        """Read `"3"`, or `"0:3,1:1"` for single local ranks."""
        if _DIGIT.fullmatch(text):
            return cls(int(text))
        if not _BY_RANK.fullmatch(text):
            raise ValueError(
                f"{text!r}: give a digit from 0 to 3, or local_rank:digit items joined by commas"
            )
        items = (item.split(":") for item in text.split(","))
        return {int(rank): cls(int(digit)) for rank, digit in items}


StdByRank: TypeAlias = "Std | Mapping[int, Std]"


def to_map(value: StdByRank, local_world_size: int) -> dict[int, Std]:
    """One value for each local rank; ranks that a mapping lacks have NONE."""
    if isinstance(value, Std):
        return dict.fromkeys(range(local_world_size), value)
    return {rank: value.get(rank, Std.NONE) for rank in range(local_world_size)}


@dataclass
class LogsDest:
    """Files by local rank; an empty path is the console."""

    stdouts: dict[int, str] = field(default_factory=dict)
    stderrs: dict[int, str] = field(default_factory=dict)
    tee_stdouts: dict[int, str] = field(default_factory=dict)
    tee_stderrs: dict[int, str] = field(default_factory=dict)
    error_files: dict[int, str] = field(default_factory=dict)
    filtered_stdout: str = ""
    filtered_stderr: str = ""


class LogsSpecs(ABC):
    """Decides for each round where workers write."""

    def __init__(
        self,
        log_dir: str | None = None,
        redirects: StdByRank = Std.NONE,
        tee: StdByRank = Std.NONE,
        local_ranks_filter: set[int] | None = None,
    ) -> None:
        self._root_log_dir = log_dir
        self._redirects = redirects
        self._tee = tee
        self._local_ranks_filter = local_ranks_filter

    @abstractmethod
    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folders of a round. Puts TORCHELASTIC_ERROR_FILE into each environment."""

    @property
    @abstractmethod
    def root_log_dir(self) -> str:
        """The folder that holds everything."""


class RoundLogsSpecs(LogsSpecs):
    """`<log_root>/round_<n>/<local_rank>/{stdout.log, stderr.log, error.json}`, everything to files.

    The round is AGENTD_ROUND of the environment. A round has a folder of its own for ever: none is reused,
    also after a change of membership, which leaves the restart count as it is.
    """

    def __init__(self, log_root: str) -> None:
        super().__init__(log_root, redirects=Std.ALL)
        self._root = log_root

    @property
    def root_log_dir(self) -> str:
        return self._root

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        dest = LogsDest()
        for local_rank, env in envs.items():
            folder = Path(self._root, f"round_{env[ROUND_VARIABLE]}", str(local_rank))
            folder.mkdir(parents=True, exist_ok=True)
            error_file = folder / "error.json"
            error_file.unlink(missing_ok=True)
            env[ERROR_FILE_VARIABLE] = str(error_file)
            dest.error_files[local_rank] = str(error_file)
            dest.stdouts[local_rank] = str(folder / "stdout.log")
            dest.stderrs[local_rank] = str(folder / "stderr.log")
        return dest


@contextlib.contextmanager
def opened_log(path: str) -> Iterator[int | None]:
    """A descriptor to give a worker for a stream, `None` for the console.

    Appending, so that whoever cuts a growing file short leaves no hole in it.
    """
    if not path:
        yield None
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)
