"""A Stop that was accepted, as text for the journal: the next agentd carries out what this one could not."""

from __future__ import annotations

import json

from agentd.api.types import StopRequest
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
