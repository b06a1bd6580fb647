"""A handover that a caller asks for: once for each process, however often the call is repeated."""

from __future__ import annotations

import os
from collections.abc import Callable

from agentd.api.errors import HandoverRefused, InvalidSpec
from agentd.config.model import HostMode


class Handover:
    """What the Handover call does."""

    def __init__(self, node_id: str, mode: HostMode, begin: Callable[[], object]) -> None:
        """`begin` makes this agentd leave its groups to the next one."""
        self._node_id = node_id
        self._mode = mode
        self._begin = begin

    def ask(self, pid: int) -> int:
        """Begin if this is process `pid`; answers which it is. Raises `HandoverRefused`, `InvalidSpec`."""
        if not pid:
            raise InvalidSpec("pid", "names the process that is to hand over; GetNode tells it")
        if pid == os.getpid():
            if self._mode is not HostMode.KEEP:
                raise HandoverRefused(self._node_id, self._mode.value)
            self._begin()
        return os.getpid()
