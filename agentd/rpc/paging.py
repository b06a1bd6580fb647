"""Pages of a list of runs: bounded in number and in bytes, stable while runs come and go."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence

from agentd.api.errors import InvalidSpec
from agentd.api.types import RunStatus

DEFAULT_SIZE = 100
LARGEST_SIZE = 1000
BYTES = 2 * 1024 * 1024
"""Of one page: half of what a message may be."""


def page(
    runs: Sequence[RunStatus], *, size: int, token: str, cost: Callable[[RunStatus], int]
) -> tuple[list[RunStatus], str]:
    """The runs of the page behind `token`, at least one if there is any, and the token of the next page.

    Pages go by (run_id, incarnation), not by position: a run that ends or starts moves no other.
    """
    after = _read_token(token)
    wanted = sorted((run for run in runs if _key(run) > after), key=_key)
    chosen: list[RunStatus] = []
    room = BYTES
    for run in wanted[: min(size or DEFAULT_SIZE, LARGEST_SIZE)]:
        room -= cost(run)
        if chosen and room < 0:
            break
        chosen.append(run)
    return chosen, _token(chosen[-1]) if len(chosen) < len(wanted) else ""


def _key(run: RunStatus) -> tuple[str, int]:
    return run.run_id, run.incarnation


def _token(run: RunStatus) -> str:
    return base64.urlsafe_b64encode(json.dumps(_key(run)).encode()).decode()


def _read_token(token: str) -> tuple[str, int]:
    if not token:
        return "", -1
    try:
        run_id, incarnation = json.loads(base64.urlsafe_b64decode(token))
        return str(run_id), int(incarnation)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidSpec("page_token", "is not one that Status gave; start without it") from None
