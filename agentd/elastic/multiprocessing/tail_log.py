"""Copies growing log files to a console, line by line, in a thread: no console holds up supervision."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TextIO

from agentd.elastic.multiprocessing.tails.following import Follower
from agentd.elastic.multiprocessing.tails.lines import LineFilter, LineMerger, Piece
from agentd.elastic.multiprocessing.tails.sinks import Sink, SinkStuck, Stop, TextSink, sink_for
from agentd.procs.inotify import Inotify

__all__ = ["TailLog", "tail_logfile"]

log = logging.getLogger(__name__)

_GATHER_S = 0.01  # lines that come one by one are written together
_LOOK_ANYWAY_S = 1.0
_THREADS_OWN_END_S = 0.5  # beyond the patience with the console, in which the thread gives up by itself


def _every_line(_line: str) -> bool:
    return True


class TailLog:
    """Writes each line of `log_files` to `dst`, after the prefix of its local rank.

    The files need not exist yet. A line is written when it is complete, once and with one prefix; one of
    more than 256 Ki characters, or a progress bar, in pieces. Bytes that are no UTF-8 become U+FFFD. A file
    that is cut short is read again from its beginning. When `dst` is gone (EPIPE, closed) there is one
    warning and the copying ends; the files have it all.
    """

    def __init__(
        self,
        name: str,
        log_files: Mapping[int, str],
        dst: TextIO | None,
        log_line_prefixes: Mapping[int, str] | None = None,
        interval_sec: float = 0.1,
        log_line_filter: LineFilter = _every_line,
    ) -> None:
        """`log_files` are by local rank; one that `log_line_prefixes` lacks has the prefix `[<name><rank>]:`.

        `interval_sec` is how often files are looked at that do not exist yet, or that the kernel does not
        watch; others are read when they are written. `log_line_filter(line)` drops lines where it is false.
        Without a `dst` nothing is done.
        """
        self._name = name
        self._dst = dst
        prefixes = {rank: f"[{name}{rank}]:" for rank in log_files} | dict(log_line_prefixes or {})
        keep = None if log_line_filter is _every_line else log_line_filter
        self._sources = [
            (rank, prefixes[rank], Follower(path, keep))
            for rank, path in log_files.items()
            if path not in {"", os.devnull}
        ]
        self._interval_s = interval_sec
        self._merger = LineMerger()
        self._stop: Stop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> TailLog:
        """Begin, in one thread. Where limits prevent that it is a warning: workers do not depend on it."""
        if self._dst is None or not self._sources or self._thread is not None:
            return self
        try:
            self._stop = Stop()
            self._thread = threading.Thread(
                target=self._run, args=(self._dst, self._stop), name=f"TailLog_{self._name}", daemon=True
            )
            self._thread.start()
        except (OSError, RuntimeError) as error:
            log.warning("the output of %s is not shown: %s", self._name, error)
            self._thread = None
        return self

    def ask_stop(self) -> None:
        """Begin to stop without waiting; `stop` then waits. Harmless when repeated."""
        if self._stop is not None:
            self._stop.tell()

    def stop(self) -> None:
        """Return when all that was written before is out. Harmless when repeated.

        A console that takes nothing for 2 s, or not all within 30 s, is given up with a warning.
        """
        self.ask_stop()
        if self._thread is not None and self._stop is not None and not self._stopped:
            self._join(self._thread, self._stop)
        if self._stop is not None and (self._thread is None or not self._thread.is_alive()):
            self._stop.close()
            self._stop = None
        self._stopped = True

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def _join(self, thread: threading.Thread, stop: Stop) -> None:
        while thread.is_alive() and (left_s := stop.patience_s() + _THREADS_OWN_END_S) > 0:
            thread.join(left_s)
        if thread.is_alive():
            self._warn_given_up()

    def _run(self, dst: TextIO, stop: Stop) -> None:
        watcher, sink = Inotify(), sink_for(dst, stop)
        try:
            self._copy(sink, stop, watcher)
        except SinkStuck:
            self._warn_given_up()
        except (OSError, ValueError) as error:
            log.warning("the output of %s is shown no longer, see %s: %s", self._name, self._where(), error)
        except Exception:
            log.exception("the output of %s is shown no longer, see %s", self._name, self._where())
        finally:
            for _, _, follower in self._sources:
                follower.close()
            watcher.close()
            sink.close()

    def _copy(self, sink: Sink, stop: Stop, watcher: Inotify) -> None:
        watched: set[int] = set()
        while stop.told_at is None:
            for rank, _, follower in self._sources:
                # Before it is read: what is written after the reading is then told.
                if rank not in watched and follower.opened() and watcher.add(follower.path) is not None:
                    watched.add(rank)
            if not self._copy_new(sink):
                self._wait(stop, watcher, all_watched=len(watched) == len(self._sources))
        for _, _, follower in self._sources:
            follower.seal()
        while self._copy_new(sink):
            pass
        for rank, prefix, follower in self._sources:
            self._write(sink, rank, prefix, follower.finish())

    def _copy_new(self, sink: Sink) -> bool:
        """A portion of each file, so that none starves; tells whether there was any."""
        found = False
        for rank, prefix, follower in self._sources:
            pieces = follower.read()
            found |= pieces is not None
            self._write(sink, rank, prefix, pieces or ())
        return found

    def _write(self, sink: Sink, rank: int, prefix: str, pieces: Iterable[Piece]) -> None:
        text = "".join([self._merger.put(rank, prefix, piece) for piece in pieces])
        if text:
            sink.write(text)

    def _wait(self, stop: Stop, watcher: Inotify, *, all_watched: bool) -> None:
        timeout_s = max(self._interval_s, _LOOK_ANYWAY_S) if all_watched else self._interval_s
        if watcher.fileno() < 0:
            stop.wait(timeout_s)
            return
        stop.wait(timeout_s, watcher.fileno())
        if watcher.read():
            stop.wait(_GATHER_S)

    def _warn_given_up(self) -> None:
        log.warning(
            "the console takes nothing: the last output of %s is only in %s", self._name, self._where()
        )

    def _where(self) -> str:
        return ", ".join(follower.path for _, _, follower in self._sources)


def tail_logfile(
    header: str,
    file: str,
    dst: TextIO,
    finished: threading.Event,
    interval_sec: float,
    log_line_filter: Callable[[str], bool] | None = None,
) -> None:
    """Copy one file to `dst` in this thread, each line after `header`, until `finished` is set.

    What was written before that is still copied. Looks every `interval_sec`. Raises what `dst` raises.
    """
    follower, merger, sink = Follower(file, log_line_filter), LineMerger(), TextSink(dst)

    def write(pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            sink.write(merger.put(0, header, piece))

    try:
        while not finished.is_set():
            pieces = follower.read()
            write(pieces or ())
            if pieces is None:
                finished.wait(interval_sec)
        follower.seal()
        while (pieces := follower.read()) is not None:
            write(pieces)
        write(follower.finish())
    finally:
        follower.close()
