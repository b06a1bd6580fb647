"""The timer server of one round of workers, on the agent's own waiter: no thread, one named pipe.

On when TORCHELASTIC_ENABLE_FILE_TIMER is "1", as torch has it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.elastic.timer.file_server import FileTimerServer
    from agentd.elastic.timer.wire import FileTimerRequest
    from agentd.procs.waiter import Waiter

__all__ = ["ENABLE_VARIABLE", "FILE_VARIABLE", "Watchdog"]

ENABLE_VARIABLE = "TORCHELASTIC_ENABLE_FILE_TIMER"
"""Exactly "1" turns the watchdog on, as in torch."""
FILE_VARIABLE = "TORCHELASTIC_TIMER_FILE"
"""Names the pipe: to the agent, which one to make; to workers, which one to write to."""
FAULTHANDLER_VARIABLE = "PYTHONFAULTHANDLER"
MAX_INTERVAL_S = 1.0


class Watchdog:
    """Ends workers that do not release their timers in time, and tells why. One for each round."""

    def __init__(self, server: FileTimerServer, path: str, env: Mapping[str, str], folder: str = "") -> None:
        """`env`: what the workers' variables go over. `folder`: made for the pipe, and removed with it."""
        self.path = path
        """The named pipe: what workers know as TORCHELASTIC_TIMER_FILE."""
        self._server = server
        self._env = env
        self._folder = folder

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str],
        *,
        run_id: str,
        waiter: Waiter,
        owns: Callable[[int], bool],
        stacks_dir_of: Callable[[int], str],
        log_event: Callable[[str, FileTimerRequest | None], object] | None = None,
    ) -> Watchdog | None:
        """The watchdog `env` asks for, not started; `None` if it asks for none.

        Its pipe is TORCHELASTIC_TIMER_FILE, else a new one in a folder that only this user can enter. Raises
        `TimerPipeError` if it cannot be made. `owns(pid)`: whether the process belongs to the group; no other
        is ever signalled. `stacks_dir_of(pid)`: a worker's log folder; for a process that is none of the
        workers it may answer "", then the worker it descends from is asked for. `log_event(name, request)`:
        as `FileTimerServer`'s.
        """
        if env.get(ENABLE_VARIABLE) != "1":
            return None
        # Late: most agents have no watchdog.
        from agentd.elastic.timer.file_server import FileTimerServer

        path, folder = env.get(FILE_VARIABLE, ""), ""
        if not path:
            folder = _make_folder()
            path = os.path.join(folder, "timer")
        # Workers may run in another directory.
        path = str(Path(path).absolute())
        try:
            server = FileTimerServer(
                path,
                run_id,
                MAX_INTERVAL_S,
                log_event=log_event,
                waiter=waiter,
                owns=owns,
                stacks_dir_of=lambda pid: _folder_above(pid, stacks_dir_of),
            )
        except OSError:
            _remove(folder)
            raise
        return cls(server, path, env, folder)

    @property
    def last_progress_time(self) -> int:
        """When it last went round, in whole seconds since the epoch; now, until a client came."""
        return self._server.get_last_progress_time()

    def worker_env(self) -> dict[str, str]:
        """What workers get: where the pipe is, and what lets them tell their stacks before a kill."""
        from agentd.procs.stack_signal import SIGNAL_VARIABLE, default_signal

        exported = {FILE_VARIABLE: self.path}
        if SIGNAL_VARIABLE not in self._env:
            exported[SIGNAL_VARIABLE] = str(default_signal())
        if FAULTHANDLER_VARIABLE not in self._env:
            exported[FAULTHANDLER_VARIABLE] = "1"
        return exported

    def start(self) -> None:
        """Begin, on the waiter. Starts once."""
        self._server.start()

    def stop(self) -> None:
        """End; no pipe and no folder is left. Harmless when repeated, never waits long."""
        self._server.stop()
        _remove(self._folder)

    def explain(self, pid: int) -> str:
        """Why this process or one below it was killed, in one sentence; empty if the watchdog did not."""
        return self._server.explain(pid)


def _make_folder() -> str:
    import tempfile

    from agentd.elastic.timer.pipe import TimerPipeError

    try:
        return tempfile.mkdtemp(prefix="agentd-watchdog-")  # of mode 0700
    except OSError as error:
        # Without a file name: there is no folder for temporary files at all.
        folder = error.filename or "in a temporary folder"
        problem = "no folder for temporary files (TMPDIR) can be written: " + (error.strerror or str(error))
        raise TimerPipeError(error.errno or errno.EIO, folder, problem) from error


def _remove(folder: str) -> None:
    if folder:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _folder_above(pid: int, stacks_dir_of: Callable[[int], str]) -> str:
    """Of the worker itself, or of the one that started it: a shell that runs a training script, say."""
    from agentd.procs.lineage import lineage

    for ancestor in lineage(pid):
        with contextlib.suppress(LookupError):
            if folder := stacks_dir_of(ancestor):
                return folder
        if ancestor == os.getpid():
            break
    return ""
