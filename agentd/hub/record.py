"""A hub's record as the journal has it, written by its agentd or by another version before it announced."""

from __future__ import annotations

import json

from agentd.host.shaped import ShapeError, build
from agentd.host.sound import sound
from agentd.hub.state import HubRecord


def read_record(text: str) -> HubRecord:
    """The record. Fields of a newer version are left out. Raises `ValueError` where none can be read."""
    try:
        record: HubRecord = sound(build(HubRecord, json.loads(text), "record"), "record")
    except (ShapeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return record
