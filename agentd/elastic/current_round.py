"""`assert_current_round`: what a worker asks before it writes where workers of a later round write too.

Standard library only, and nothing of agentd: a worker whose Python lacks agentd can have a copy of this file.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from typing import Any

__all__ = ["StaleRoundError", "assert_current_round"]

ROUND_FILE_VARIABLE = "AGENTD_ROUND_FILE"
TIMEOUT_S = 60.0
"""As long as a node whose hub is gone keeps its place: after that the others go on without it."""

_POLL_S = 0.1
_KEYS = (("run_id", "AGENTD_RUN_ID"), ("incarnation", "AGENTD_INCARNATION"))


class StaleRoundError(RuntimeError):
    """This worker may not write: its round is over, or nobody can say that it is not.

    Raised by `assert_current_round`. Let it end the worker: if the run goes on, it goes on elsewhere.
    """

    def __init__(self, sentence: str, *, round_file: str, round: int, newest: int | None) -> None:
        """Made by `assert_current_round` only."""
        super().__init__(sentence)
        self.round_file = round_file
        """The file that was asked: AGENTD_ROUND_FILE."""
        self.round = round
        """This worker's own round: AGENTD_ROUND; 0 if it has none."""
        self.newest = newest
        """The round that the file is of; None if it could not be read, or is of another run."""


def assert_current_round(timeout: float = TIMEOUT_S) -> float:
    """Return if this worker's round may write now; answers until when, in seconds of CLOCK_BOOTTIME.

    Call it right before what makes a checkpoint count, such as the rename to its final name, and compare
    `time.clock_gettime(time.CLOCK_BOOTTIME)` with the answer after a long write: past it, ask again before
    anything else is written. The answer reaches one lease (5 s by default) beyond the newest heartbeat of the
    node that its hub has answered, and no other round of the run writes before it has passed.

    Without contact with the hub, waits up to `timeout` seconds for it (by default 60, the re-attach window)
    and then raises `StaleRoundError`; at once if the round is over: the file is of a newer one, or of another
    run. Answers infinity where AGENTD_ROUND_FILE is not set, as under torchrun and under agents of the
    library: nobody keeps a round file there, and nothing fences.
    """
    path = os.environ.get(ROUND_FILE_VARIABLE)
    if not path:
        return math.inf
    own = _own_round(path)
    deadline = time.monotonic() + timeout
    while True:
        told = _read(path)
        until = _valid_until(told, own, path)
        if until > _boottime():
            return until
        left = deadline - time.monotonic()
        if left <= 0:
            raise _nobody_answers(told, own, path, timeout)
        time.sleep(min(_POLL_S, left))


def _valid_until(told: dict[str, Any], own: int, path: str) -> float:
    """Until when the round may write by what the file says; 0 if that is to be waited for."""
    for key, variable in _KEYS:
        mine = os.environ.get(variable)
        if mine is not None and key in told and str(told[key]) != mine:
            sentence = (
                f"the round file is of {key} {told[key]}, this worker is of {mine}: do not write, and end"
            )
            raise StaleRoundError(sentence, round_file=path, round=own, newest=None)
    newest = _round_of(told)
    if newest is None or newest < own:
        return 0.0
    if newest > own:
        sentence = (
            f"round {own} of this worker is over, round {newest} has begun here: do not write, and end; the "
            "workers of the new round go on from the last checkpoint"
        )
        raise StaleRoundError(sentence, round_file=path, round=own, newest=newest)
    return _validity_of(told) or 0.0


def _nobody_answers(told: dict[str, Any], own: int, path: str, timeout: float) -> StaleRoundError:
    newest, until = _round_of(told), _validity_of(told)
    if newest == own and until is not None:
        problem = f"ran out {_boottime() - until:.1f} s ago" if until else "has not begun"
        why = f"this node's contact with the hub of the run {problem}"
    elif newest == own:
        why = "the host of this worker is of an agentd that does not keep the round file"
    else:
        why = "there is none of this round: it was stopped, or the node's disk takes nothing"
    sentence = (
        f"round {own} could not be confirmed for {timeout:g} s ({path}): {why}. The others may have gone on "
        "without this node: do not write, and end; `agentctl status` on this node tells more"
    )
    return StaleRoundError(sentence, round_file=path, round=own, newest=newest)


def _own_round(path: str) -> int:
    text = os.environ.get("AGENTD_ROUND", "")
    try:
        return int(text)
    except ValueError:
        sentence = (
            f"AGENTD_ROUND is {text!r} though {ROUND_FILE_VARIABLE} is set: give the process that writes the "
            "whole environment of its worker"
        )
        raise StaleRoundError(sentence, round_file=path, round=0, newest=None) from None


def _read(path: str) -> dict[str, Any]:
    """What the file says; nothing if it is not there or cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _round_of(told: dict[str, Any]) -> int | None:
    newest = told.get("round")
    return newest if type(newest) is int else None


def _validity_of(told: dict[str, Any]) -> float | None:
    until = told.get("valid_until")
    # Beyond the last a float can be: nobody reckons with that.
    known = isinstance(until, (int, float)) and abs(until) <= sys.float_info.max
    return until if known else None


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # noqa: TID251 - the clock of this meaning
