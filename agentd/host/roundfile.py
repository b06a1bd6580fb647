"""The round file: what a worker asks before it writes where others write too. docs/workers.md has its format.

Whoever reads it finds a whole file, of a round that runs here; there is none between two rounds. Without a
disk it stays what it was and runs out: who asks it keeps off, others work.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from agentd.procs.wholefile import write_whole

ROUND_FILE = "round.json"

_log = logging.getLogger(__name__)


class RoundFile:
    """The file of one group. Its host is the only one that writes it."""

    def __init__(self, group_dir: str, *, run_id: str, incarnation: int, node_id: str) -> None:
        """Another host may have left one, of a round whose workers died with it: it goes."""
        self._path = f"{group_dir}/{ROUND_FILE}"
        self._run = {"run_id": run_id, "incarnation": incarnation}
        self._node_id = node_id
        self._written: tuple[int, float] | None = None
        self._failing = False
        self.remove()

    def write(self, round_: int, valid_until: float) -> None:
        """The round runs here, and may act until then (CLOCK_BOOTTIME). Nothing to do if the file says so."""
        if self._written == (round_, valid_until):
            return
        told = {**self._run, "round": round_, "valid_until": valid_until, "node_id": self._node_id}
        try:
            write_whole(self._path, json.dumps(told).encode() + b"\n", mode=0o644)
        except OSError as error:
            self._failed(error)
        else:
            self._written, self._failing = (round_, valid_until), False

    def remove(self) -> None:
        """Nothing of the round runs here any more."""
        self._written = None
        try:
            Path(self._path).unlink(missing_ok=True)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            # Once for each trouble: it is tried again with every heartbeat.
            _log.error("the round file is not on disk: %s: %s", self._path, error)
        self._failing = True
