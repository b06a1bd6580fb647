"""Writes error files. A file that cannot be written raises nothing: what was to be reported matters more."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import time
import traceback
from typing import Any

from agentd.elastic.multiprocessing.errors.failure import MAX_ERROR_FILE_BYTES, read_report
from agentd.elastic.multiprocessing.errors.files import replace_file

__all__ = ["ErrorHandler"]

log = logging.getLogger(__name__)

ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"

# Each of the two texts of a report; escaped, a character takes 12 bytes at most.
_MAX_TEXT = MAX_ERROR_FILE_BYTES // 12 // 2 - 1024


class ErrorHandler:
    """Puts an exception into the file that TORCHELASTIC_ERROR_FILE names, in torch's format.

    Made for extension as torch's: override `initialize` and `record_exception`, or `_get_error_file_path` to
    write elsewhere. Without a path nothing is written.
    """

    def initialize(self) -> None:
        """Called by `record` before the function: lets fatal signals print all threads' stacks to stderr.

        Where that is impossible (no usable stderr) a warning is logged.
        """
        problem: Exception | None = None
        for stream in (sys.stderr, sys.__stderr__):
            try:
                faulthandler.enable(stream, all_threads=True)  # type: ignore[arg-type]
                return
            except (OSError, RuntimeError, ValueError, AttributeError) as error:
                problem = error
        log.warning("stacks will not be printed on a fatal signal: %s", problem)

    def record_exception(self, e: BaseException) -> None:
        """Write `e` with its traceback and the time; texts that are too long lose their middle.

        A file that cannot be written is a logged warning. Readers see the whole file or none of it.
        """
        path = self._get_error_file_path()
        if path:
            extra = {"py_callstack": _cut(_callstack(e)), "timestamp": str(int(time.time()))}
            self._write_error_file(
                path, json.dumps({"message": {"message": _cut(_summary(e)), "extraInfo": extra}})
            )

    def dump_error_file(self, rootcause_error_file: str, error_code: int = 0) -> None:
        """Copy a child's error file to this process' own, with the child's exit code in it unless that is 0.

        This is how the cause travels up a tree of processes. What is in the own file already is logged and
        replaced. A child's file that is no report becomes a report that says so; one that is not there is a
        logged warning.
        """
        report, _ = read_report(rootcause_error_file)
        if report is None:
            log.warning("there is no error file %s to pass on", rootcause_error_file)
            return
        if error_code:
            self.override_error_code_in_rootcause_data(rootcause_error_file, report, error_code)
        path = self._get_error_file_path()
        if not path:
            log.error(
                "the error file %s is not passed on: set %s to have it copied there",
                rootcause_error_file,
                ERROR_FILE_VARIABLE,
            )
            return
        former, _ = read_report(path)
        if former is not None:
            log.warning("%s is replaced; it said: %s", path, json.dumps(former))
        self._write_error_file(path, json.dumps(report))
        log.info("passed the error file %s on as %s", rootcause_error_file, path)

    def override_error_code_in_rootcause_data(
        self, rootcause_error_file: str, rootcause_error: dict[str, Any], error_code: int = 0
    ) -> None:
        """Put `error_code` into a report's message, in place: a child cannot know how it will end.

        Only the long form has a place for it; for others a warning is logged.
        """
        message = rootcause_error.get("message")
        if isinstance(message, dict):
            message["errorCode"] = error_code
        else:
            log.warning(
                "%s has no place for an error code; exit code %d is left out",
                rootcause_error_file,
                error_code,
            )

    def _get_error_file_path(self) -> str | None:
        return os.environ.get(ERROR_FILE_VARIABLE)

    def _write_error_file(self, file_path: str, error_msg: str) -> None:
        try:
            replace_file(file_path, error_msg.encode())
        except (OSError, ValueError) as error:
            log.warning("the error file %s cannot be written: %s", file_path, error)


def _summary(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as problem:  # noqa: BLE001 - user code; its failure must not hide what failed first
        return f"{type(error).__name__}: (its text is lost: __str__ raised {type(problem).__name__})"


def _callstack(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception as problem:  # noqa: BLE001 - as above
        return f"(the traceback is lost: formatting it raised {type(problem).__name__})"


def _cut(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
