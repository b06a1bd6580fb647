"""What callers asked for and was accepted, as text for the journal: the next agentd carries it out."""

from __future__ import annotations

import json
from dataclasses import asdict

from agentd.api.types import Drain, StopRequest
from agentd.host.shaped import ShapeError, build


def wish_text(request: StopRequest) -> str:
    """The request for the journal."""
    wish = {"run_id": request.run_id, "scope": request.scope.value, "reason": request.reason}
    return json.dumps(wish if request.grace is None else {**wish, "grace": request.grace})


def read_wish(text: str, incarnation: int) -> StopRequest | None:
    """The request, of that incarnation of its run; None if there was none that can be read."""
    try:
        wish: StopRequest = build(StopRequest, {**json.loads(text), "incarnation": incarnation}, "wish")
    except (ValueError, TypeError, RecursionError, ShapeError):
        return None
    return wish


def drain_text(drain: Drain) -> str:
    """The drain for the journal."""
    return json.dumps({**asdict(drain), "mode": drain.mode.value})


def read_drain(text: str) -> Drain:
    """The drain. Raises `ValueError` or `RecursionError` where none can be read."""
    try:
        drain: Drain = build(Drain, json.loads(text), "drain")
    except ShapeError as error:
        raise ValueError(str(error)) from None
    return drain
