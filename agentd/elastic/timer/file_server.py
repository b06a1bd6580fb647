"""The agent's side of the timer pipe: reads requests, and ends processes of its group whose time is up.

The whole server is one pump in a `Waiter`: the agent's own, or one that a thread of this server turns. It
never waits for a client, for a dump of stacks, or for whatever is wrong with the pipe.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agentd.elastic.timer import debug_info_logging
from agentd.elastic.timer.book import Timer, TimerBook, deadly
from agentd.elastic.timer.complaints import Complaints
from agentd.elastic.timer.pipe import TimerPipe
from agentd.elastic.timer.reaper import Reaper
from agentd.elastic.timer.wire import FileTimerRequest, LineReader
from agentd.procs import procfs
from agentd.procs.identity import ProcessIdentity, identify, is_alive
from agentd.procs.lineage import descends
from agentd.procs.waiter import Waiter

__all__ = ["FileTimerServer"]

LONGEST_TICK_S = 1.0
SHORTEST_TICK_S = 0.1
STOP_BOUND_S = 5.0
RUN_ONCE_BOUND_S = 10.0

log = logging.getLogger(__name__)


class FileTimerServer:
    """Ends workers that do not release their timers in time.

    `file_path`: the named pipe, made here; one that a dead server left is replaced, anything else is a
    `TimerPipeError`. `run_id`: for the debug hook. `max_interval`: seconds, at most one of which is the
    longest between two looks; an expiry is acted on when it is due. `daemon`: of the thread. `log_event(name,
    request)` is told "watchdog started", "timer expired", "kill worker process" and "watchdog stopped".

    `waiter`: run in it instead of a thread; `start` and `stop` then belong to the thread of that waiter.
    `owns(pid)`: whether the process may be signalled, by default whether it descends from this one. This
    process itself never is. `stacks_dir_of(pid)`: the folder for its stacks before it is killed, empty for
    none; by default that of the TORCHELASTIC_ERROR_FILE it was started with.

    A server starts once. Names and events are torch's; unlike torch's it never signals its own process, tries
    a kill that failed again, and waits in no open for a first client.
    """

    def __init__(
        self,
        file_path: str,
        run_id: str,
        max_interval: float = 10,
        daemon: bool = True,
        log_event: Callable[[str, FileTimerRequest | None], object] | None = None,
        *,
        waiter: Waiter | None = None,
        owns: Callable[[int], bool] | None = None,
        stacks_dir_of: Callable[[int], str] | None = None,
    ) -> None:
        self._file_path = file_path
        self._run_id = run_id
        self._tick_s = max(SHORTEST_TICK_S, min(max_interval, LONGEST_TICK_S))
        self._daemon = daemon
        self._log_event = log_event
        self._owns = owns or _descends_from_here
        self._stacks_dir_of = stacks_dir_of or _error_folder
        self._book = TimerBook()
        self._lines = LineReader()
        self._reaper = Reaper(self._stacks_folder, self._killed, self._book.next_due)
        self._known: dict[int, ProcessIdentity] = {}
        self._complaints = Complaints(file_path)
        self._next_tick = 0.0
        self._is_client_started = False
        self._last_progress_time = int(time.time())
        self._started = False
        self._stopping = False
        self._watchdog_thread: threading.Thread | None = None
        self._pipe = TimerPipe(file_path)
        self._waiter = waiter
        self._own_waiter = waiter is None

    def start(self) -> None:
        """Begin. Raises RuntimeError the second time: with a stop the pipe is gone, make a new server."""
        if self._started or self._stopping:
            raise RuntimeError("a timer server starts once: make a new one")
        self._started = True
        if self._waiter is None:
            self._waiter = Waiter()
            self._attach(self._waiter)
            self._watchdog_thread = threading.Thread(
                target=self._turn, args=(self._waiter,), daemon=self._daemon, name="FileTimerServer"
            )
            self._watchdog_thread.start()
        else:
            self._attach(self._waiter)
        log.info("timer server started on %s", self._file_path)
        self._tell("watchdog started", None)

    def stop(self) -> None:
        """End, and remove the pipe. Harmless when repeated.

        Whoever's time was up and who was still looked at is killed at once. Takes a few seconds at most.
        """
        if self._end():
            self._tell("watchdog stopped", None)

    def run_once(self) -> None:
        """Serve what waits in the pipe and end whose time is up, waiting for that; then stop. For tests."""
        self._detach()
        deadline = time.monotonic() + RUN_ONCE_BOUND_S
        wish = self._serve(time.monotonic())
        while self._reaper.pids and time.monotonic() < deadline:
            time.sleep(max(0.0, min(wish, deadline) - time.monotonic()))
            wish = self._serve(time.monotonic())
        self._end()

    def get_last_progress_time(self) -> int:
        """When this server last went round, in whole seconds since the epoch; now, until a client came."""
        return self._last_progress_time if self._is_client_started else int(time.time())

    def explain(self, pid: int) -> str:
        """Why this server killed the process, or one below it, in one sentence; empty if it did not."""
        return self._reaper.explain(pid)

    @staticmethod
    def is_process_running(pid: int) -> bool:
        """Whether there is such a process; one that only waits to be reaped runs no more."""
        stat = procfs.read_stat(pid)
        return stat is not None and not procfs.is_finished(stat)

    def register_timers(self, timer_requests: list[FileTimerRequest]) -> None:
        """Take requests in the order they came. Not for other threads than the server's."""
        self._register(timer_requests, time.monotonic())

    def clear_timers(self, worker_pids: set[int]) -> None:
        """Forget all timers of these processes, and of those that are gone. As `register_timers`."""
        gone = {pid for pid, owner in self._known.items() if not is_alive(owner)}
        for pid in gone:
            self._known.pop(pid, None)
        if gone or worker_pids:
            self._book.drop(gone | worker_pids)

    def get_expired_timers(self, deadline: float) -> dict[int, list[FileTimerRequest]]:
        """By process, the timers that have run out at `deadline`, in seconds since the epoch."""
        expired = self._book.expired(time.monotonic() + (deadline - time.time()))
        return {pid: [timer.request for timer in timers] for pid, timers in expired.items()}

    # --- one turn

    def _serve(self, now: float) -> float:
        """Everything that is due; what waits to be read comes first, for it may be a release."""
        if self._pipe.fileno() < 0:
            return now + self._tick_s  # stopped by another pump of this very turn
        data = self._pipe.read()
        if data:
            self._is_client_started = True
            self._register(self._lines.feed(data), now)
            self._complaints.garbage(self._lines.take_garbage(), self._lines.sample)
        self._complaints.tell(now)
        expired = self._book.expired(now, except_of=self._reaper.pids)
        if expired:
            self._expire(expired, now)
        if now >= self._next_tick:
            self.clear_timers(set())
            self._next_tick = now + self._tick_s
        self._last_progress_time = int(time.time())
        due = self._book.next_due() if not self._reaper.pids else self._next_tick
        wish = self._reaper.pump(now)
        return min(self._next_tick, max(due, now), self._next_tick if wish is None else wish)

    def _register(self, requests: list[FileTimerRequest], now: float) -> None:
        for request in requests:
            if request.expiration_time < 0:
                self._book.release(request.worker_pid, request.scope_id)
            elif (owner := self._owner_of(request.worker_pid)) is None:
                self._complaints.stranger(request.worker_pid)
            elif not self._book.acquire(request, owner, now=now, wall_now=time.time()):
                self._complaints.refused()

    def _owner_of(self, pid: int) -> ProcessIdentity | None:
        """The process that has the pid now, if it may be signalled."""
        identity = identify(pid)
        if identity is None or pid == os.getpid():
            return None
        if self._known.get(pid) != identity:
            if pid in self._known:
                self._book.drop({pid})  # a new process with an old pid does not inherit its timers
            if not self._allowed(pid):
                return None
            self._known[pid] = identity
        return identity

    def _expire(self, expired: dict[int, list[Timer]], now: float) -> None:
        self._book.drop(expired.keys())
        living = {pid: timers for pid, timers in expired.items() if is_alive(timers[0].owner)}
        debug_info_logging.log_debug_info_for_expired_timers(
            self._run_id, {pid: [timer.request.to_json() for timer in found] for pid, found in living.items()}
        )
        for pid, timers in living.items():
            told, killer = deadly(timers)
            for timer in told:
                self._tell("timer expired", timer.request)
            log.warning("timers of process %d ran out: %s", pid, [timer.request.scope_id for timer in told])
            if killer is not None:
                self._reaper.begin(killer, now)

    def _killed(self, timer: Timer) -> None:
        self._tell("kill worker process", timer.request)

    # --- what users gave us: may raise, must not harm

    def _tell(self, name: str, request: FileTimerRequest | None) -> None:
        if self._log_event is None:
            return
        try:
            self._log_event(name, request)
        except Exception:
            log.exception("the timer server's log_event raised on %r", name)

    def _allowed(self, pid: int) -> bool:
        try:
            return self._owns(pid)
        except Exception:
            log.exception("the timer server's owns raised on %d: it is not signalled", pid)
            return False

    def _stacks_folder(self, pid: int) -> str:
        try:
            return self._stacks_dir_of(pid)
        except Exception:
            log.exception("the timer server's stacks_dir_of raised on %d: no stacks are kept", pid)
            return ""

    # --- where it runs

    def _attach(self, waiter: Waiter) -> None:
        # Reading is the pump's work; the descriptor only wakes it.
        waiter.add(self._pipe, lambda: None)
        waiter.add_pump(self._serve)

    def _turn(self, waiter: Waiter) -> None:
        while not self._stopping:
            try:
                waiter.wait(None)
            except Exception:
                log.exception("a turn of the timer server failed")
                time.sleep(SHORTEST_TICK_S)

    def _detach(self) -> None:
        """Run nowhere any more."""
        self._stopping = True
        thread, self._watchdog_thread = self._watchdog_thread, None
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        waiter.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_BOUND_S)
        if self._pipe.fileno() >= 0:
            waiter.remove(self._pipe)
        waiter.remove_pump(self._serve)
        if self._own_waiter:
            waiter.close()

    def _end(self) -> bool:
        """Whether there was something to end."""
        self._detach()
        if self._pipe.fileno() < 0:
            return False
        self._reaper.close()
        self._pipe.close()
        return True


def _descends_from_here(pid: int) -> bool:
    return descends(pid, os.getpid())


def _error_folder(pid: int) -> str:
    stat = procfs.read_stat(pid)
    if stat is None or stat.state == "D":
        return ""  # who hangs in the kernel may hold what reading its environment waits for
    prefix = b"TORCHELASTIC_ERROR_FILE="
    for item in procfs.read_environ(pid).split(b"\0"):
        if item.startswith(prefix):
            folder = Path(os.fsdecode(item[len(prefix) :])).parent
            return str(folder) if folder.is_dir() else ""
    return ""
