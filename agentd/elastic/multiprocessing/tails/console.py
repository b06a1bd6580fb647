"""All copies of a group's output: what is tee'd to this process' console, and lines picked by filters."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from agentd.elastic.multiprocessing.logs import LogsDest
from agentd.elastic.multiprocessing.tail_log import TailLog

__all__ = ["ConsoleTails"]

log = logging.getLogger(__name__)


class ConsoleTails:
    """Tails of one group's log files. Nothing of it harms workers; with nothing to copy it costs nothing."""

    def __init__(
        self,
        dest: LogsDest,
        prefixes: Mapping[int, str] | None,
        name: str,
        duplicate_stdout_filters: Sequence[str] | None = None,
        duplicate_stderr_filters: Sequence[str] | None = None,
    ) -> None:
        """`prefixes` are by local rank; a missing one is `[<name><local rank>]:`.

        Lines of any redirected stream that contain one of the filters go to `dest.filtered_stdout` or
        `dest.filtered_stderr`, too.
        """
        self._dest = dest
        self._prefixes = prefixes
        self._name = name
        self._stdout_filters = tuple(duplicate_stdout_filters or ())
        self._stderr_filters = tuple(duplicate_stderr_filters or ())
        self._tails: list[TailLog] = []
        self._files: list[TextIO] = []

    def start(self) -> None:
        """Begin to copy, to `sys.stdout` and `sys.stderr` as they are now."""
        dest = self._dest
        self._tail(dest.tee_stdouts, sys.stdout)
        self._tail(dest.tee_stderrs, sys.stderr)
        self._duplicate(dest.stdouts, dest.filtered_stdout, self._stdout_filters)
        self._duplicate(dest.stderrs, dest.filtered_stderr, self._stderr_filters)

    def stop(self) -> None:
        """Return when all that was written before is copied. Bounded and repeatable as `TailLog.stop`."""
        for tail in self._tails:
            tail.ask_stop()
        for tail in self._tails:
            tail.stop()
        self._tails.clear()
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()

    def _tail(self, files: Mapping[int, str], dst: TextIO | None, filters: tuple[str, ...] = ()) -> None:
        if not files or dst is None:
            return
        if filters:
            tail = TailLog(
                self._name,
                files,
                dst,
                self._prefixes,
                log_line_filter=lambda line: any(text in line for text in filters),
            )
        else:
            tail = TailLog(self._name, files, dst, self._prefixes)
        self._tails.append(tail.start())

    def _duplicate(self, files: Mapping[int, str], path: str, filters: tuple[str, ...]) -> None:
        redirected = {rank: file for rank, file in files.items() if file not in {"", os.devnull}}
        if not filters or not redirected:
            return
        try:
            file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by stop()
        except OSError as error:
            log.warning("lines of %s that match %s are not gathered: %s", self._name, filters, error)
            return
        self._files.append(file)
        self._tail(redirected, file, filters)
