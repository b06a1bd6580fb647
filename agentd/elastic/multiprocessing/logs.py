"""Where workers write: which streams go to files, and where these and the error files lie."""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TypeAlias

from agentd.quickdata import dataclass

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
ROUND_VARIABLE = "AGENTD_ROUND"

log = logging.getLogger(__name__)

_MAX_RUN_ID = 60  # characters of it in a file name, of which some take 4 bytes of 255

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

_DIGIT = re.compile(r"[0-3]")
_BY_RANK = re.compile(r"\d+:[0-3](,\d+:[0-3])*")


class Std(enum.IntFlag):
    """A worker's output streams, torch's numbers."""

    NONE = 0
    """Neither."""
    OUT = 1
    """Standard output."""
    ERR = 2
    """Standard error."""
    ALL = OUT | ERR
    """Both."""

    @classmethod
    def from_str(cls, vm: str) -> Std | dict[int, Std]:
        """Read `"3"`, or `"0:3,1:1"` for single local ranks; absent ranks have NONE. Raises `ValueError`."""
        if _DIGIT.fullmatch(vm):
            return cls(int(vm))
        if not _BY_RANK.fullmatch(vm):
            raise ValueError(f"{vm!r}: give a digit from 0 to 3, or local_rank:digit items joined by commas")
        items = (item.split(":") for item in vm.split(","))
        return {int(rank): cls(int(digit)) for rank, digit in items}


StdByRank: TypeAlias = "Std | Mapping[int, Std]"


def to_map(val_or_map: StdByRank, local_world_size: int) -> dict[int, Std]:
    """One value for each local rank; ranks that a mapping lacks have NONE."""
    if isinstance(val_or_map, Std):
        return dict.fromkeys(range(local_world_size), val_or_map)
    return {rank: val_or_map.get(rank, Std.NONE) for rank in range(local_world_size)}


@dataclass
class LogsDest:
    """Files of a round by local rank; an empty path is the console."""

    stdouts: dict[int, str] = field(default_factory=dict)
    """Where each worker's stdout goes."""
    stderrs: dict[int, str] = field(default_factory=dict)
    """Where each worker's stderr goes."""
    tee_stdouts: dict[int, str] = field(default_factory=dict)
    """Those of `stdouts` that are copied to the console."""
    tee_stderrs: dict[int, str] = field(default_factory=dict)
    """Those of `stderrs` that are copied to the console."""
    error_files: dict[int, str] = field(default_factory=dict)
    """Where each worker's failure is expected, `/dev/null` if nowhere."""
    filtered_stdout: str = ""
    """Where lines of all stdouts that match a filter go; empty if nowhere."""
    filtered_stderr: str = ""
    """Where lines of all stderrs that match a filter go; empty if nowhere."""


class LogsSpecs(ABC):
    """Decides for each round where workers write."""

    def __init__(
        self,
        log_dir: str | None = None,
        redirects: StdByRank = Std.NONE,
        tee: StdByRank = Std.NONE,
        local_ranks_filter: set[int] | None = None,
    ) -> None:
        """What they mean is for each kind to say; `DefaultLogsSpecs` has torch's meaning."""
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


class DefaultLogsSpecs(LogsSpecs):
    """Torch's layout, with a folder for each attempt that nobody uses again.

    `<log_dir>/<run_id>_<random>/attempt_<n>/<local_rank>/{stdout.log, stderr.log, error.json}`, `n` being
    the restart count. It stays the same when only the membership changes: the second folder of a count is
    then `attempt_<n>.1`, the third `attempt_<n>.2`. None is ever deleted. Lines gathered by filters are in
    `attempt_<n>/filtered_stdout.log` and `filtered_stderr.log`.

    The run's folder is made for the first round and kept by this object. `/dev/null` as `log_dir`: no files
    at all, everything goes to the console, and workers record no errors.
    """

    def __init__(
        self,
        log_dir: str | None = None,
        redirects: StdByRank = Std.NONE,
        tee: StdByRank = Std.NONE,
        local_ranks_filter: set[int] | None = None,
    ) -> None:
        """`log_dir` is made if it is missing; without one it is a new `torchelastic_*` among temporary files.

        `redirects` go to files only, `tee` to files and the console. With a `local_ranks_filter` that is not
        empty nothing of other local ranks reaches the console: what they do not redirect is dropped. Raises
        `NotADirectoryError` when `log_dir` is a file.
        """
        super().__init__(log_dir, redirects, tee, local_ranks_filter)
        self._run_log_dir = ""
        if not log_dir:
            import tempfile

            self._root_log_dir = tempfile.mkdtemp(prefix="torchelastic_")
        elif log_dir != os.devnull:
            if Path(log_dir).is_file():
                raise NotADirectoryError(f"log_dir: {log_dir} is a file; name a folder")
            Path(log_dir).mkdir(parents=True, exist_ok=True)

    @property
    def root_log_dir(self) -> str:
        return str(self._root_log_dir)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folders of a round, named by TORCHELASTIC_RUN_ID and _RESTART_COUNT of the first worker.

        Puts TORCHELASTIC_ERROR_FILE into each environment, empty where errors are not recorded.
        """
        if self._root_log_dir == os.devnull:
            return self._without_files(envs)
        first = envs.get(0, {})
        attempt = self._new_attempt(
            first.get("TORCHELASTIC_RUN_ID", "test_run_id"), first.get("TORCHELASTIC_RESTART_COUNT", "0")
        )
        tee = to_map(self._tee, len(envs))
        redirects = to_map(self._redirects, len(envs))
        dest = LogsDest(
            filtered_stdout=str(attempt / "filtered_stdout.log"),
            filtered_stderr=str(attempt / "filtered_stderr.log"),
        )
        for local_rank, env in envs.items():
            folder = attempt / str(local_rank)
            folder.mkdir()
            dest.error_files[local_rank] = env[ERROR_FILE_VARIABLE] = str(folder / "error.json")
            self._place(dest, local_rank, folder, redirects[local_rank] | tee[local_rank], tee[local_rank])
        return dest

    def __repr__(self) -> str:
        return (
            f"DefaultLogsSpecs(root_log_dir={self._root_log_dir}, redirects={self._redirects}, "
            f"tee={self._tee}, local_ranks_filter={self._local_ranks_filter})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DefaultLogsSpecs):
            return NotImplemented
        return self._settings() == other._settings()

    __hash__ = None  # type: ignore[assignment]

    def _settings(self) -> tuple[object, ...]:
        return self._root_log_dir, self._redirects, self._tee, self._local_ranks_filter

    def _place(self, dest: LogsDest, local_rank: int, folder: Path, to_file: Std, tee: Std) -> None:
        """Where the two streams of a worker go."""
        shown = not self._local_ranks_filter or local_rank in self._local_ranks_filter
        for stream, name, files, tees in (
            (Std.OUT, "stdout.log", dest.stdouts, dest.tee_stdouts),
            (Std.ERR, "stderr.log", dest.stderrs, dest.tee_stderrs),
        ):
            if to_file & stream:
                files[local_rank] = str(folder / name)
                if tee & stream and shown:
                    tees[local_rank] = files[local_rank]
            else:
                files[local_rank] = "" if shown else os.devnull

    def _new_attempt(self, run_id: str, restart_count: str) -> Path:
        """A folder that nobody had before: a worker of a former round may still hold its files."""
        if not self._run_log_dir:
            self._run_log_dir = self._new_run_folder(run_id)
        folder = Path(self._run_log_dir, f"attempt_{restart_count}")
        for number in itertools.count(1):
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError:
                folder = folder.with_name(f"attempt_{restart_count}.{number}")
        return folder

    def _new_run_folder(self, run_id: str) -> str:
        import tempfile

        # Absolute: workers may run in another directory, or change it before they report.
        root = Path(self.root_log_dir).absolute()
        root.mkdir(parents=True, exist_ok=True)
        # A run id is the user's: it may hold what a file name must not.
        name = run_id.replace(os.sep, "_").replace("\0", "_")[:_MAX_RUN_ID]
        folder = tempfile.mkdtemp(prefix=f"{name}_", dir=root)
        log.info("log directory: %s", folder)
        return folder

    @staticmethod
    def _without_files(envs: dict[int, dict[str, str]]) -> LogsDest:
        for env in envs.values():
            env[ERROR_FILE_VARIABLE] = ""
        return LogsDest(
            stdouts=dict.fromkeys(envs, ""),
            stderrs=dict.fromkeys(envs, ""),
            error_files=dict.fromkeys(envs, os.devnull),
        )


class RoundLogsSpecs(LogsSpecs):
    """`<log_root>/round_<n>/<local_rank>/{stdout.log, stderr.log, error.json}`, everything to files.

    The round is AGENTD_ROUND of the environment. A round has a folder of its own for ever: none is reused,
    also after a change of membership, which leaves the restart count as it is.

    A disk that takes no new file costs the output of the workers that start meanwhile, and not their start:
    it goes to `/dev/null`, as their errors do.
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
            try:
                _prepare(folder)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                log.error("output of local rank %d is not kept: %s", local_rank, error)
                env[ERROR_FILE_VARIABLE] = ""
                for files in (dest.error_files, dest.stdouts, dest.stderrs):
                    files[local_rank] = os.devnull
                continue
            env[ERROR_FILE_VARIABLE] = dest.error_files[local_rank] = str(folder / "error.json")
            dest.stdouts[local_rank] = str(folder / "stdout.log")
            dest.stderrs[local_rank] = str(folder / "stderr.log")
            dest.filtered_stdout = str(folder.parent / "filtered_stdout.log")
            dest.filtered_stderr = str(folder.parent / "filtered_stderr.log")
        return dest


def _prepare(folder: Path) -> None:
    """A worker's folder with its two files, and no errors of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.json").unlink(missing_ok=True)
    for name in ("stdout.log", "stderr.log"):
        with opened_log(str(folder / name)):
            pass


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
